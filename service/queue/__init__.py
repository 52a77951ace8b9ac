"""A durable queue of jobs in front of a Ray cluster.

A user submits a job. The dispatcher starts it when the limits allow. Each attempt runs on the cluster under a
supervisor, and a failed one is repeated if that can help. The jobs table is the truth: what Ray reports is only a hint.

What a job is:
- `requests`: the four kinds of jobs as data, and the command of each; `kinds`: their names.
- `allowed`, `grants`, `quotas`: which places, rights and limits a user has.
- `job`: the rows of a job as types, and its states.

The database:
- `tables`, `migrations`: the tables, and their upgrades.
- `job_reader`, `store`: read and change jobs; `job_rows`: parts of a change.
- `lease`: lets one dispatcher work at a time. `audit`, `incidents`: logs of users' actions and of the service's errors.

Running jobs:
- `dispatcher`: the loop and the durable workflows. `scheduling`: the order in which jobs start.
- `attempts`: one attempt, from submission to its result; `observer`: watches it; `signals`: names ends by a signal;
  `backoff`: the wait before the next attempt.
- `ray_api`: Ray's Jobs API. `attempt_folder`: heartbeats, logs and stop requests in the object store, shared with
  `service.supervisor`.

Jobs and rows without a user:
- `arrivals`: watches and schedules, which submit jobs; `cron`: their times. `retention`: deletes old jobs.
"""
