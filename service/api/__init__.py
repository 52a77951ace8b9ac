"""The queue over HTTP: `application` makes the app, `access` and `limits` guard it, `problems` tells errors, and
`jobs`, `results`, `recurring`, `tokens` and `health` are its routes."""
