"""Checkpoints and registered models."""
