"""Magnifying Networks: the model and its maths, on torch, timm and numpy alone."""
