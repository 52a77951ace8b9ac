"""Slides: formats, regions, windows."""
