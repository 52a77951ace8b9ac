"""What the scripts share: options, paths, manifests, error messages and exit statuses."""
