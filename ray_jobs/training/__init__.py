"""Training on Ray Train: one job, one group of workers, one loop on each worker.

From the outside in; a module uses those below it:

driver     runs the whole job: connects to the cluster, starts the workers, registers the best model
worker     is what Ray Train runs in each worker process; it decides which errors Ray may retry
build      builds a worker's attempt from a task; the tuning trials use it too
attempt    is the training loop of one worker, from the newest checkpoint to the last step
steps      does one worker's part of one step: opens slides, leaves out unreadable ones, cuts what exceeds the memory
learner    holds model and optimizer, and takes one optimizer step
task       is the data that the driver sends to each worker: settings, slides, folder

What these use: `input` (order of the slides, seeds, micro-batches read in advance), `memory` (prediction and choice of
the micro-batch), `record` (what is printed and tracked), `group` and `agreement` (exchange between workers),
`quarantine`, `preemption`, `evaluate`, `resume` (checkpoints). `bare_loop` is a training without Ray, for benchmarks
and tests.

`attempt`, `steps`, `learner` and all that they import run without Ray and MLflow; import-linter checks it.
"""
