"""What the exit statuses of jobs mean: the one place that says so.

| status | | another attempt |
| --- | --- | --- |
| 0 `DONE` | the job is done | |
| 1 `FAILED` | it failed, by something that may pass: a store, a node, MLflow, Ray | yes, with back-off |
| 2 `USAGE` | wrong input or settings, or more than the card or cluster has: the user must change something | no |
| 3 `SLIDES_FAILED` | done, but some slides failed; the table says which and why | |
| 4 `STOPPED` | it came to a point that the same again comes to: a loss that is no number, too many lost slides | no |
| 5 `INTERNAL` | an error of this program, with a traceback in the log: report it | no |
| 130 `INTERRUPTED` | Ctrl-C or a stop | yes |
| 128 + N | ended by signal N: killed, out of memory, its node gone | yes |

`ray job submit` makes 1 of all but 0, and Ray's Jobs API knows only FAILED. The queue therefore takes the status from
the attempt's folder, where the job's witness notes it.
"""

DONE, FAILED, USAGE, SLIDES_FAILED, STOPPED, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
WITH_RESULTS = (DONE, SLIDES_FAILED)
"""The job is done."""
FINAL = (USAGE, STOPPED, INTERNAL)
"""Another attempt would end in the same way."""
