"""Cohorts of slides: manifests, folders, splits, label policies, outlines of lesions."""
