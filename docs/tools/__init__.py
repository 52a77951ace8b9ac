"""The documentation site's own tools: generated reference pages, checked links, checked commands."""
