"""Checkpoints and the model registry."""
