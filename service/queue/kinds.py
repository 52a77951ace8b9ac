"""The names of the kinds of jobs, in their own module: the help of the command line must not load more than that."""

KINDS = ("check", "train", "tune", "score")
