"""Reading of slides: file formats, windows of pixels for regions, caches, quality checks."""
