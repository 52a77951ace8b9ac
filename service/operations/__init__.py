"""Run and maintain a service: start, check, back up, restore."""
