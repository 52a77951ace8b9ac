"""Settings of the jobs and of the service."""
