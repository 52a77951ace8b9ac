"""What the scripts share: arguments, errors, exit statuses."""
