"""The exit statuses of jobs, defined in this module only.

| status | meaning | another attempt |
| --- | --- | --- |
| 0 `DONE` | the job is done | |
| 1 `FAILED` | a failure that may be temporary: of a store, a node, MLflow or Ray | yes, with back-off |
| 2 `USAGE` | wrong input or settings, or more than the GPU or cluster offers: the user must change something | no |
| 3 `SLIDES_FAILED` | done, but some slides failed; the table lists them with the reasons | |
| 4 `STOPPED` | another attempt would stop at the same point: non-finite loss, too many failed slides | no |
| 5 `INTERNAL` | a bug in this program, with a traceback in the log: report it | no |
| 130 `INTERRUPTED` | stopped by Ctrl-C or a stop request | yes |
| 128 + N | ended by signal N: killed, out of memory, node lost | yes |

`ray job submit` turns every status except 0 into 1, and Ray's Jobs API reports only FAILED. The queue therefore reads
the status from the attempt's folder, where the job's supervisor writes it.
"""

DONE, FAILED, USAGE, SLIDES_FAILED, STOPPED, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
WITH_RESULTS = (DONE, SLIDES_FAILED)
"""Statuses of a job that has finished and has results."""
FINAL = (USAGE, STOPPED, INTERNAL)
"""Statuses after which another attempt would fail in the same way."""
