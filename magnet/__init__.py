"""Magnifying Networks: the model and its training objective, on torch, timm and numpy alone.

This file imports nothing, so that the service can read settings, presets and regions without loading torch.
"""
