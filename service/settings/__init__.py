"""Settings of the service and of its jobs."""
