"""Operation of a service: run its processes, check its parts, back up and restore its state."""
