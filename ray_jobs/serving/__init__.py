"""The service on one machine: its folder, its settings, its processes, and MLflow behind the service's tokens."""
