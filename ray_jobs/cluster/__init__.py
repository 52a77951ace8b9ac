"""Ray cluster, processes and reader actors."""
