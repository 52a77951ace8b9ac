"""Search for schedules and hyperparameters on Ray Tune.

driver          runs the whole search: checks, Ray Tune, table and best settings
search_task     is what the driver sends to each trial, and the files that a trial leaves
trial           trains with the values of one trial, in the process that Ray Tune starts for it
search_space    lists the schedules to try, and refuses those that are too large
pareto          compares the trials' scores with their costs
report_trials   prints the progress
"""
