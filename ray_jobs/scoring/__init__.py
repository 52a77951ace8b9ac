"""Scoring of cohorts on Ray Data."""
