"""Checks before the application: connections, host names, tokens, rates and bodies, and the log of denied requests."""
