"""One trial of a search: a training with its own settings, in the process that Ray Tune starts for it.

It is the same attempt as that of a training, with one worker and without Ray Train: trials run in parallel, so that a
trial needs no workers, nor a placement group for which other trials would leave no room. A thread of the process reads
the root views, so that trials that fill the cluster wait for no CPU.
"""

from __future__ import annotations

import traceback

import torch
from ray import tune

from ray_jobs.command_line.transient_errors import find_root_error, is_transient
from ray_jobs.tracking import mlflow_run
from ray_jobs.tracking.provenance import hardware_tags
from ray_jobs.training.build import build_attempt
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.roots import stream_locally
from ray_jobs.training.learner import NotFiniteError
from ray_jobs.training.memory.fit import DoesNotFitError
from ray_jobs.training.quarantine import QuarantineError
from ray_jobs.training.task import Task
from ray_jobs.tuning.pareto import Outcome
from ray_jobs.tuning.search_task import SearchTask, Values, find_outcome, make_outcome, write_outcome, write_values
from service.queue.incidents import describe
from service.settings.train import TrainSettings
from service.settings.tune import make_trial_settings
from service.slides.reader import RegionReader

WORST = -1.0
"""Objective reported for a trial without an AUROC: below every trial that has one."""


def run_trial(values: Values, task: SearchTask) -> None:
    """Train with the values that Ray Tune selected, and report every epoch to it.

    Args:
        values: values by name.
        task: the search.
    """
    trial = tune.get_context().get_trial_id()
    # Searchers select the same values more than once where there are few schedules: nothing is trained twice.
    if (twin := find_outcome(task, values)) is not None:
        _report_outcome(task, twin)
        return
    write_values(task, trial, values)
    settings = make_trial_settings(task.base, values)
    tracker = _start_run(task, trial, settings)
    status, reason = "complete", ""
    try:
        _train(task, trial, settings, tracker)
    except (DoesNotFitError, torch.OutOfMemoryError) as error:
        status, reason = "does not fit", str(error)
    except (NotFiniteError, QuarantineError) as error:
        status, reason = "failed", str(error)
    except Exception as error:  # its kind decides whether Tune may start the trial again
        if is_transient(find_root_error(error)):
            raise  # Tune starts the trial again
        traceback.print_exc()
        status, reason = "failed", describe(error)
    outcome = make_outcome(task, trial, settings, status, reason)
    write_outcome(task, outcome, values)
    tracker.add_tags({"outcome": status, "outcome_reason": reason[:5000]})
    tracker.end("FAILED" if status == "failed" else "FINISHED")
    _report_outcome(task, outcome)


def _start_run(task: SearchTask, trial: str, settings: TrainSettings) -> mlflow_run.Tracker:
    """Open the trial's run in MLflow, that of an earlier attempt if there is one."""
    run_id, _ = mlflow_run.start_run(
        task.tracking_uri, experiment=settings.experiment, name=task.run_name(trial), storage=task.storage
    )
    tracker = mlflow_run.Tracker(task.tracking_uri, run_id, task.folder(trial))
    tracker.load_outbox()
    tracker.set_tags({"mlflow.parentRunId": task.parent_run, "trial": trial})
    tracker.log_params(task.parameters(settings))
    tracker.begin()
    tracker.log_datasets(task.manifest)
    return tracker


def _train(search: SearchTask, trial: str, settings: TrainSettings, tracker: mlflow_run.Tracker) -> None:
    """Take all remaining steps of a trial, and report each epoch to Ray Tune."""
    manifest, compute = search.manifest, settings.compute
    device = torch.device("cuda" if compute.gpus_per_worker else "cpu")
    task = Task(
        settings, manifest.split("train"), manifest.split("val"), tracker.uri, tracker.run_id, search.folder(trial)
    )

    def open_cold_reader() -> RegionReader:
        """Open a reader without cached bytes: those of another trial or epoch would make a schedule look cheap."""
        return RegionReader(
            compute.tile_cache_mb << 20, compute.reader_threads, disk_cache_bytes=0, deadline_s=get_store_deadline_s()
        )

    def report(metrics: dict[str, float]) -> None:
        objective = search.settings.compute_objective(metrics["val/auroc"], metrics["val/bytes_per_slide"])
        tune.report({"epoch": task.order.epochs_done(attempt.step), "objective": objective})

    with RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=get_store_deadline_s()) as reader:
        attempt = build_attempt(
            task,
            device,
            reader,
            tracker=tracker,
            monitor=mlflow_run.SystemMetrics(tracker),
            report=report,
            cold_reader=open_cold_reader,
        )
        tracker.add_tags(hardware_tags(device))
        order = attempt.task.order  # its micro-batch fits the GPU
        attempt.run(lambda step: stream_locally(reader, task.uris, order, settings.model.zoom, first_step=step))


def _report_outcome(task: SearchTask, outcome: Outcome) -> None:
    """Report the best epoch of a trial as its last, one past the others so that ASHA ends the trial only here."""
    objective = WORST if outcome.objective is None else outcome.objective
    tune.report({"epoch": task.base.recipe.epochs + 1, "objective": objective})
