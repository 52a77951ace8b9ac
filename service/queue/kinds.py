"""The kinds of jobs, in a module of their own so that the command line's help loads nothing else."""

KINDS = ("check", "train", "tune", "score")
