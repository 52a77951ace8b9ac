"""A search from its checked settings to the best schedule's config file."""

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
from ray_jobs.plan import own_card_bytes
from ray_jobs.tracking import mlflow_run
from ray_jobs.tuning import pareto, trial
from ray_jobs.tuning.pareto import Outcome
from ray_jobs.tuning.report_trials import TrialsTold
from ray_jobs.tuning.search_space import Refused, schedules, space
from service import environment, storage
from service.cohort.manifest import Manifest
from service.errors import StoppedError
from service.settings.parsing import flat, to_dict
from service.settings.train import TrainSettings
from service.settings.tune import Schedule, SearchSettings, in_words

BEST_FILE = "best.yaml"
SNAPSHOT_EVERY_S = "1"
"""Seconds between Tune's snapshots. A trial's process needs longer to come up than that, so that none is forgotten
which has made its run in MLflow."""


class NothingFoundError(StoppedError):
    """No trial came to a score. To act: the user, as the message says."""


def tune_schedules(search: SearchSettings, base: TrainSettings, manifest: Manifest, *, name: str, folder: str) -> int:
    """Search on the cluster, record it, write the best config; an exit status.

    Args:
        search: the search.
        base: the training that it varies.
        manifest: checked, with splits; both classes are in val.
        name: of the job; one that was begun before goes on.
        folder: of the runs, a path or URI.

    Raises:
        NothingFoundError: no trial came to a score.
    """
    require_network(base.model, search.encoder)
    uri = mlflow_run.tracking_uri(folder)
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = SNAPSHOT_EVERY_S
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no event files: MLflow is the record
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it warns that there are none
    cluster.connect(command.worker_environment())
    one = replace(base.compute, num_workers=1, readers=0)
    base = replace(base, compute=cluster.fitted(one, extra_cpus=0, why="one trial at a time"))
    cluster.require_shared(storage=folder, MLFLOW_TRACKING_URI=uri)
    allowed, refused = schedules(search, base, _card_bytes(base))
    run_id, finished = mlflow_run.start_run(uri, experiment=base.experiment, name=name, storage=folder)
    print(f"job {name}, MLflow run {run_id}; runs: {registry.ui_command(uri)}", flush=True)
    if finished:
        print("this search is finished already; give a new one a --name of its own")
        return 0
    task = trial.Search(name, base, search, manifest, uri, run_id, folder)
    tracker = mlflow_run.Tracker(uri, run_id, storage.join(folder, name))
    _record(tracker, task, allowed, refused)
    status = "FAILED"
    try:
        results = _search(task, allowed)
        outcomes = _ended(task, results)
        _deliver(tracker, task, outcomes)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:
        status = "KILLED"
        raise KeyboardInterrupt from stop
    finally:
        tracker.end(status)
    return 0


def _card_bytes(base: TrainSettings) -> float | None:
    """Of the card that trials get, or of their share of it; None without GPUs."""
    compute = base.compute
    if compute.gpu_memory_gb:
        return compute.gpu_memory_gb * 1e9
    own = own_card_bytes()
    return own * min(1.0, compute.gpus_per_worker) if own and compute.gpus_per_worker else None


def _record(
    tracker: mlflow_run.Tracker, task: trial.Search, allowed: Sequence[Schedule], refused: Sequence[Refused]
) -> None:
    """Settings and refused schedules into the parent run."""
    searched = {f"search.{key}": value for key, value in flat(to_dict(task.settings)).items()}
    tracker.params(trial.parameters(task.base, task.manifest) | searched)
    tracker.begin()
    tracker.datasets(task.manifest)
    tracker.tags({"schedules.allowed": str(len(allowed)), "schedules.refused": str(len(refused))})
    print(f"{len(allowed)} schedules to choose from, {len(refused)} refused", flush=True)
    for one in refused[:5]:
        print(f"  refused {in_words(one.schedule)}: {one.reason}")
    if len(refused) > 5:
        print(f"  and {len(refused) - 5} more, see refused.csv in MLflow", flush=True)
    rows = [(in_words(one.schedule), one.reason) for one in refused]
    tracker.note_text(pd.DataFrame(rows, columns=["schedule", "reason"]).to_csv(index=False), "refused.csv")
    tracker.flush()


def _search(task: trial.Search, allowed: Sequence[Schedule]) -> dict[str, tune.Result]:
    """Run the trials, or those that an earlier attempt left; what Tune knows of each, by its id."""
    results = _tuner(task, allowed).fit()
    return {Path(results[i].path).name: results[i] for i in range(len(results))}


def _tuner(task: trial.Search, allowed: Sequence[Schedule]) -> tune.Tuner:
    """A new one, or the one that an earlier attempt left."""
    compute, search = task.base.compute, task.settings
    resources = {"cpu": compute.cpus_per_worker, "gpu": compute.gpus_per_worker or 0}
    trainable = tune.with_resources(tune.with_parameters(trial.run_trial, search=task), resources)
    place = storage.join(task.storage, task.name)
    if tune.Tuner.can_restore(storage.join(place, "tune")):
        print("going on with this search's trials", flush=True)
        return tune.Tuner.restore(storage.join(place, "tune"), trainable, resume_errored=True)
    grid = search.method == "grid"
    return tune.Tuner(
        trainable,
        param_space=space(search, allowed),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=1 if grid else search.trials,
            search_alg=_searcher(search),
            scheduler=_scheduler(search, task.base.recipe.epochs),
            # The other searchers are told themselves: Tune ignores it for them.
            max_concurrent_trials=search.at_once if search.method == "optuna" else None,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=place,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=compute.max_failures),
            callbacks=[TrialsTold()],
        ),
    )


def _folder_name(one: Trial) -> str:
    return str(one.trial_id)


def _searcher(search: SearchSettings) -> Searcher | SearchAlgorithm:
    if search.method == "optuna":
        return OptunaSearch(seed=search.seed)
    return BasicVariantGenerator(max_concurrent=search.at_once or 0, random_state=search.seed)


def _scheduler(search: SearchSettings, epochs: int) -> TrialScheduler:
    """ASHA over epochs, which all depths count alike. A trial's last report is one past them."""
    grace = min(search.grace_epochs, epochs)
    if search.reduction == 1:
        return FIFOScheduler()
    return ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=search.reduction)


def _ended(task: trial.Search, results: Mapping[str, tune.Result]) -> list[Outcome]:
    """How each trial that has a run ended; the runs of those that others ended are closed."""
    client = MlflowClient(tracking_uri=task.tracking_uri)
    parent = client.get_run(task.parent_run)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{task.parent_run}'", order_by=["start_time"]
    )
    outcomes = []
    for run in children:
        name = run.data.tags["trial"]
        if (outcome := trial.recorded(task, name)) is None:
            error = results[name].error if name in results else None
            status, reason = ("failed", str(error)) if error is not None else ("stopped early", "")
            outcome = trial.outcome_of(task, name, trial.settings_of(task, name), status, reason)
        if run.info.status == "RUNNING":  # also of one that was killed between its last word and its run's end
            client.set_tag(run.info.run_id, "outcome", outcome.status)
            client.set_terminated(run.info.run_id, "FAILED" if outcome.status == "failed" else "FINISHED")
        outcomes.append(outcome)
    return outcomes


def _deliver(tracker: mlflow_run.Tracker, task: trial.Search, outcomes: Sequence[Outcome]) -> None:
    """Table, figure and best config into the parent run and the job's folder."""
    frame = pareto.table(outcomes)
    tracker.note_text(frame.to_csv(index=False), "trials.csv")
    tracker.flush()
    print(frame.drop(columns="reason").to_string(index=False, float_format="%.4g"))
    for one in outcomes:
        if one.reason:
            print(f"  {one.trial} {one.status}: {one.reason}")
    best = max((one for one in outcomes if one.objective is not None), key=lambda one: one.objective or 0, default=None)
    if best is None:
        raise NothingFoundError(
            "no trial came to a validation AUROC; their reasons are above and in trials.csv of the parent run"
        )
    tracker.figure(pareto.draw(outcomes), "front.png")
    text = _config_file(task, best, trial.settings_of(task, best.trial))
    place = storage.join(task.storage, f"{task.name}/{BEST_FILE}")
    storage.write_bytes(place, text.encode())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / BEST_FILE).write_text(text)
        tracker.file(Path(folder) / BEST_FILE)
    tracker.note_tags({"best_trial": best.trial, "best_schedule": best.schedule})
    print(
        f"best: {best.schedule}, validation AUROC {best.auroc:.3f}, {(best.bytes_per_slide or 0) / 1e6:.2f} MB a slide"
    )
    for line in next_steps(task.manifest.uri, place, environment.service_job()):
        print(line, flush=True)


def next_steps(manifest: str, config: str, job: str | None) -> list[str]:
    """Commands that train with the best config: a user of the service cannot open its folders, and fetches it.

    Args:
        manifest: of the search.
        config: path or URI of the best config.
        job: id of the service's job; None: the search was started by hand.
    """
    if job is None:
        return [f"train with it: python ray_jobs/train.py --manifest {manifest} --config {config}"]
    train = f"magnet submit train --manifest {manifest} --config best.yaml"
    return [f"fetch it: magnet best {job} > best.yaml", f"train with it: {train}"]


def _config_file(task: trial.Search, best: Outcome, settings: TrainSettings) -> str:
    """A config for `train.py`."""
    values: dict[str, Any] = to_dict(settings)
    text = io.StringIO()
    text.write(f"# The best of {task.name}: trial {best.trial}, validation AUROC {best.auroc:.4f} at its best epoch.\n")
    text.write("# Command: ray job submit -- python ray_jobs/train.py --manifest MANIFEST --config THIS\n")
    yaml.safe_dump(values, text, sort_keys=False)
    return text.getvalue()
