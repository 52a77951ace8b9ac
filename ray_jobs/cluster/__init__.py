"""The Ray cluster, its reader actors, and other processes."""
