"""Cohorts: manifests, splits, label policies, outlines."""
