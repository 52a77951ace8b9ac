"""The command line `magnet`: `main` runs commands, `parser` defines them, the other modules implement them.

A command's module is imported when the command runs. `main` and `parser` import nothing heavy, so that help appears at
once, and the commands that only call the API load neither pandas, SQLAlchemy nor the settings of jobs.
"""
