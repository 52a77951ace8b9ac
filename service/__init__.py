"""Slides in object storage: reading regions, cohorts, tables. No torch, no Ray."""
