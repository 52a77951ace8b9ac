"""The job's parent process on the cluster."""
