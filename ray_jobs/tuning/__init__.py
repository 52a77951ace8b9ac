"""Search for schedules and hyperparameters on Ray Tune."""
