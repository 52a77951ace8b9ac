"""The driver of a search: from checked settings to the config file of the best schedule."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from mlflow import MlflowClient
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_jobs.cluster import connection as cluster
from ray_jobs.command_line import command
from ray_jobs.models import registry
from ray_jobs.models.network_check import require_network
from ray_jobs.tracking import mlflow_run
from ray_jobs.training.memory.fit import get_first_gpu_bytes
from ray_jobs.tuning.pareto import Outcome, draw_front, make_table
from ray_jobs.tuning.report_trials import TrialReporter
from ray_jobs.tuning.search_space import RefusedSchedule, make_space, select_schedules
from ray_jobs.tuning.search_task import SearchTask, make_outcome, read_outcome, read_settings
from ray_jobs.tuning.trial import run_trial
from service import environment, storage
from service.cohort.manifest import Manifest
from service.errors import StoppedError
from service.progress.file import append_progress
from service.progress.record import Progress
from service.settings.parsing import flatten, to_dict
from service.settings.train import TrainSettings
from service.settings.tune import Schedule, SearchSettings, format_schedule

BEST_FILE = "best.yaml"
SNAPSHOT_EVERY_S = "1"
"""Seconds between Tune's snapshots. The process of a trial takes longer to start: a snapshot has each trial before that
creates its run in MLflow."""
SHOWN_REFUSALS = 5
"""Refused schedules that are printed; the others are only in MLflow."""


class NothingFoundError(StoppedError):
    """No trial has a score. To act: the user, as the message says."""


def tune_schedules(search: SearchSettings, base: TrainSettings, manifest: Manifest, *, name: str, folder: str) -> int:
    """Search on the cluster, record it in MLflow, and write the best config.

    Args:
        search: settings of the search.
        base: settings of the training that it varies.
        manifest: checked slides, with splits; split val has both labels.
        name: name of the job; the job of an earlier attempt with this name continues.
        folder: folder of the runs, a path or URI.

    Returns:
        Exit status.

    Raises:
        NothingFoundError: no trial has a score.
    """
    require_network(base.model, search.encoder)
    uri = mlflow_run.tracking_uri(folder)
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = SNAPSHOT_EVERY_S
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no event files: MLflow is the record
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it warns that there are none
    cluster.connect(command.worker_environment())
    # A trial is one process that also reads for itself, see `trial`.
    compute = replace(base.compute, num_workers=1, readers=0)
    base = replace(base, compute=cluster.fit_to_cluster(compute, extra_cpus=0, why="one trial at a time"))
    cluster.require_shared(storage=folder, MLFLOW_TRACKING_URI=uri)
    allowed, refused = select_schedules(search, base, _gpu_bytes(base))
    run_id, finished = mlflow_run.start_run(uri, experiment=base.experiment, name=name, storage=folder)
    print(f"job {name}, MLflow run {run_id}; runs: {registry.format_ui_command(uri)}", flush=True)
    append_progress(Progress(mlflow_run=run_id, activity="starting workers"))
    if finished:
        print("this search has finished; to start a new one, give it another --name")
        return 0
    task = SearchTask(name, base, search, manifest, uri, run_id, folder)
    tracker = mlflow_run.Tracker(uri, run_id, storage.join(folder, name))
    _record(tracker, task, allowed, refused)
    status = "FAILED"
    try:
        results = _run_trials(task, allowed)
        _deliver(tracker, task, _collect_outcomes(task, results))
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray makes a SystemExit of Ctrl-C and of SIGTERM
        status = "KILLED"
        raise KeyboardInterrupt from stop
    finally:
        tracker.end(status)
    return 0


def _gpu_bytes(base: TrainSettings) -> float | None:
    """Return the memory of a trial's GPU, or of its share of one, in bytes; None without GPUs."""
    compute = base.compute
    if compute.gpu_memory_gb:
        return compute.gpu_memory_gb * 1e9
    # The driver's GPU stands for those of the trials, which have not started.
    gpu_bytes = get_first_gpu_bytes()
    return gpu_bytes * min(1.0, compute.gpus_per_worker) if gpu_bytes and compute.gpus_per_worker else None


def _record(
    tracker: mlflow_run.Tracker, task: SearchTask, allowed: Sequence[Schedule], refused: Sequence[RefusedSchedule]
) -> None:
    """Write settings and refused schedules into the parent run."""
    search_params = {f"search.{key}": value for key, value in flatten(to_dict(task.settings)).items()}
    tracker.log_params(task.parameters(task.base) | search_params)
    tracker.begin()
    tracker.log_datasets(task.manifest)
    tracker.set_tags({"schedules.allowed": str(len(allowed)), "schedules.refused": str(len(refused))})
    print(f"{len(allowed)} schedules to choose from, {len(refused)} refused", flush=True)
    for refusal in refused[:SHOWN_REFUSALS]:
        print(f"  refused {format_schedule(refusal.schedule)}: {refusal.reason}")
    if len(refused) > SHOWN_REFUSALS:
        print(f"  and {len(refused) - SHOWN_REFUSALS} more, see refused.csv in MLflow", flush=True)
    rows = [(format_schedule(refusal.schedule), refusal.reason) for refusal in refused]
    tracker.add_text(pd.DataFrame(rows, columns=["schedule", "reason"]).to_csv(index=False), "refused.csv")
    tracker.flush()


def _run_trials(task: SearchTask, allowed: Sequence[Schedule]) -> dict[str, tune.Result]:
    """Run the trials that are left; return what Tune knows of each one, by its id."""
    results = _make_tuner(task, allowed).fit()
    return {Path(results[i].path).name: results[i] for i in range(len(results))}


def _make_tuner(task: SearchTask, allowed: Sequence[Schedule]) -> tune.Tuner:
    """Return the tuner that an earlier attempt left, or else a new one."""
    compute, search = task.base.compute, task.settings
    resources = {"cpu": compute.cpus_per_worker, "gpu": compute.gpus_per_worker or 0}
    trainable = tune.with_resources(tune.with_parameters(run_trial, task=task), resources)
    place = storage.join(task.storage, task.name)
    if tune.Tuner.can_restore(storage.join(place, "tune")):
        print("continuing with the trials of this search", flush=True)
        return tune.Tuner.restore(storage.join(place, "tune"), trainable, resume_errored=True)
    grid = search.method == "grid"
    return tune.Tuner(
        trainable,
        param_space=make_space(search, allowed),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=1 if grid else search.trials,
            search_alg=_make_searcher(search),
            scheduler=_make_scheduler(search, task.base.recipe.epochs),
            # The other searchers have their own limit: Tune ignores this one for them.
            max_concurrent_trials=search.at_once if search.method == "optuna" else None,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=place,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=compute.max_failures),
            callbacks=[TrialReporter()],
        ),
    )


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


def _make_searcher(search: SearchSettings) -> Searcher | SearchAlgorithm:
    if search.method == "optuna":
        return OptunaSearch(seed=search.seed)
    return BasicVariantGenerator(max_concurrent=search.at_once or 0, random_state=search.seed)


def _make_scheduler(search: SearchSettings, epochs: int) -> TrialScheduler:
    """Return ASHA, which compares trials after the same number of epochs."""
    grace = min(search.grace_epochs, epochs)
    if search.reduction == 1:
        return FIFOScheduler()
    # One past the epochs: a trial that completes them all must still report its best one, see `trial`.
    return ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=search.reduction)


def _collect_outcomes(task: SearchTask, results: Mapping[str, tune.Result]) -> list[Outcome]:
    """Return how each trial that has a run ended, and close the runs of those that did not end by themselves."""
    client = MlflowClient(tracking_uri=task.tracking_uri)
    parent = client.get_run(task.parent_run)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{task.parent_run}'", order_by=["start_time"]
    )
    outcomes = []
    for run in children:
        trial = run.data.tags["trial"]
        if (outcome := read_outcome(task, trial)) is None:
            error = results[trial].error if trial in results else None
            status, reason = ("failed", str(error)) if error is not None else ("stopped early", "")
            outcome = make_outcome(task, trial, read_settings(task, trial), status, reason)
        if run.info.status == "RUNNING":  # also of a trial that was killed between its last report and its run's end
            client.set_tag(run.info.run_id, "outcome", outcome.status)
            client.set_terminated(run.info.run_id, "FAILED" if outcome.status == "failed" else "FINISHED")
        outcomes.append(outcome)
    return outcomes


def _deliver(tracker: mlflow_run.Tracker, task: SearchTask, outcomes: Sequence[Outcome]) -> None:
    """Write table, figure and best config into the parent run and the job's folder.

    Raises:
        NothingFoundError: no trial has a score.
    """
    table = make_table(outcomes)
    tracker.add_text(table.to_csv(index=False), "trials.csv")
    tracker.flush()
    print(table.drop(columns="reason").to_string(index=False, float_format="%.4g"))
    for outcome in outcomes:
        if outcome.reason:
            print(f"  {outcome.trial} {outcome.status}: {outcome.reason}")
    rated = [outcome for outcome in outcomes if outcome.objective is not None]
    if not rated:
        raise NothingFoundError(
            "no trial has a validation AUROC; the reasons are printed above and in trials.csv of the parent run"
        )
    best = max(rated, key=lambda outcome: outcome.objective or 0)
    tracker.log_figure(draw_front(outcomes), "front.png")
    config_uri = _write_config(tracker, task, best)
    tracker.add_tags({"best_trial": best.trial, "best_schedule": best.schedule})
    print(
        f"best: {best.schedule}, validation AUROC {best.auroc:.3f}, {(best.bytes_per_slide or 0) / 1e6:.2f} MB a slide"
    )
    for line in list_next_steps(task.manifest.uri, config_uri, environment.read_service_job()):
        print(line, flush=True)


def _write_config(tracker: mlflow_run.Tracker, task: SearchTask, best: Outcome) -> str:
    """Write the config of the best trial into the job's folder and the parent run; return its path or URI."""
    text = _config_text(task, best, read_settings(task, best.trial))
    uri = storage.join(task.storage, f"{task.name}/{BEST_FILE}")
    storage.write_bytes(uri, text.encode())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / BEST_FILE).write_text(text)
        tracker.log_file(Path(folder) / BEST_FILE)
    return uri


def _config_text(task: SearchTask, best: Outcome, settings: TrainSettings) -> str:
    """Return the content of a config file for `train.py`."""
    values: dict[str, Any] = to_dict(settings)
    text = io.StringIO()
    text.write(f"# The best of {task.name}: trial {best.trial}, validation AUROC {best.auroc:.4f} at its best epoch.\n")
    text.write("# Command: ray job submit -- python ray_jobs/train.py --manifest MANIFEST --config THIS\n")
    yaml.safe_dump(values, text, sort_keys=False)
    return text.getvalue()


def list_next_steps(manifest: str, config: str, job: str | None) -> list[str]:
    """Return commands that train with the best config.

    Args:
        manifest: path or URI of the manifest of the search.
        config: path or URI of the best config.
        job: id of the service's job, whose folder its user cannot open and must download from; None: the search was
            not started by the service.
    """
    if job is None:
        return [f"train with it: python ray_jobs/train.py --manifest {manifest} --config {config}"]
    train = f"magnet submit train --manifest {manifest} --config best.yaml"
    return [f"fetch it: magnet best {job} > best.yaml", f"train with it: {train}"]
