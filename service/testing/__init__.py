"""Fakes for tests, benchmarks and the demo."""
