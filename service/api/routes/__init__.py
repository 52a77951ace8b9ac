"""Routes of the API: paths, parameters and documentation. The modules of `service.api` do the work."""
