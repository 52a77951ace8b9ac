"""The migrations: each file changes the tables from one version to the next."""
