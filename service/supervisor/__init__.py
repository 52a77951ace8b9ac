"""The supervisor: the parent process of a job's command on the cluster.

`supervisor` starts the command and writes heartbeats, `command_log` keeps what it prints, `progress` reads what it
records, `reason` finds out why it failed, `secrets` masks credentials in all of them.
"""
