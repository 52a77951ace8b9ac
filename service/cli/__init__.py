"""The command line `magnet`: `main` dispatches, `parser` defines commands and options, the other modules run them.

A command's module is imported when the command runs. `main` and `parser` import nothing heavy, so that help appears at
once, and the commands that only talk to the API load neither pandas, SQLAlchemy nor the settings of jobs.
"""
