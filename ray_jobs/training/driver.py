"""The driver of a training job: from checked settings to the registered model, on the head of the cluster."""

from __future__ import annotations

import json
import pickle
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_jobs.cluster import connection as cluster
from ray_jobs.cluster.progress_relay import start_relay
from ray_jobs.cluster.reader_actors import start_readers
from ray_jobs.command_line import command
from ray_jobs.models import checkpoints, registry
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.models.network_check import require_network
from ray_jobs.tracking import mlflow_run, provenance, rerun
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.record.figures import draw_validation_figures
from ray_jobs.training.task import Task
from ray_jobs.training.worker import PROGRAM_ERROR, run_worker
from service import environment
from service.cohort.label_policy import describe_splits
from service.cohort.manifest import Manifest
from service.errors import ProgramError, StoppedError
from service.progress.file import append_progress
from service.progress.record import Progress
from service.settings.parsing import flatten, to_dict
from service.settings.train import TrainSettings, find_changes
from service.storage import join

MLFLOW_PATIENCE_S = 120.0
"""Seconds that a complete training waits for MLflow, which must register its model."""


class TrainingStoppedError(StoppedError):
    """A training cannot continue: a loss is not finite, too many slides are lost, or a step does not fit the GPU.

    To act: the user, as the message says. A retry under the same name ends in the same way.
    """


def run_training(
    settings: TrainSettings, manifest: Manifest, *, name: str, storage: str, tags: Mapping[str, str] | None = None
) -> int:
    """Train on the cluster, record it in MLflow, and register the best model.

    Args:
        settings: settings of the training.
        manifest: checked slides, with splits.
        name: name of the job; the job of an earlier attempt with this name continues.
        storage: folder of the runs, a path or URI.
        tags: additional tags of the run.

    Returns:
        Exit status.

    Raises:
        UsageError: an encoder is unknown, or its weights are missing or wrong.
        TrainingStoppedError: the training cannot continue.
        ProgramError: a worker failed because of an error of this program.
        RecordError: MLflow is unavailable at the beginning or the end.
    """
    require_network(settings.model)  # wrong weights must not occupy the cluster until each worker has failed on them
    uri = mlflow_run.tracking_uri(storage)
    cluster.connect(command.worker_environment())
    why = f"{settings.compute.num_workers} training worker(s), and one CPU that reads slides ahead of them"
    settings = replace(settings, compute=cluster.fit_to_cluster(settings.compute, extra_cpus=1, why=why))
    cluster.require_shared(storage=storage, MLFLOW_TRACKING_URI=uri)
    run_id, finished = mlflow_run.start_run(uri, experiment=settings.experiment, name=name, storage=storage)
    folder = join(storage, name)
    tracker = mlflow_run.Tracker(uri, run_id, folder)
    print(f"job {name}, MLflow run {run_id}; runs: {registry.format_ui_command(uri)}", flush=True)
    append_progress(Progress(mlflow_run=run_id, activity="starting workers"))
    if finished:
        print("this job has finished; to start a new one, give it another --name")
        return 0
    tracker.log_params(flatten(to_dict(settings)) | {"manifest": manifest.uri, "manifest_sha256": manifest.sha256})
    tracker.begin()
    status = "FAILED"
    try:
        _record(tracker, settings, manifest, storage, tags or {})
        task = Task(settings, manifest.split("train"), manifest.split("val"), uri, run_id, folder)
        store = CheckpointStore(folder)
        if not _is_complete(store, task):
            run_workers(task, name, storage)
        metrics, version = _deliver(tracker, store, task, name)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray makes a SystemExit of Ctrl-C while it trains, and of SIGTERM
        status = "KILLED"
        raise KeyboardInterrupt from stop
    finally:
        tracker.end(status)
    _print_result(settings, metrics, version)
    return 0


def _record(
    tracker: mlflow_run.Tracker, settings: TrainSettings, manifest: Manifest, storage: str, tags: Mapping[str, str]
) -> None:
    """Write preset, manifest, packages and config file into the run."""
    overrides = json.dumps(find_changes(settings), sort_keys=True)
    tracker.set_tags({"preset": settings.preset, "preset_overrides": overrides[:5000], "storage": storage, **tags})
    tracker.set_tags({f"slides.{name.replace(' ', '_')}": count for name, count in describe_splits(manifest).items()})
    tracker.log_datasets(manifest)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / rerun.CONFIG_FILE
        config.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False))
        tracker.log_file(config)
        packages = Path(folder) / "packages.txt"
        packages.write_text(provenance.installed_packages())
        tracker.log_file(packages)


def _is_complete(store: CheckpointStore, task: Task) -> bool:
    """Return whether an earlier attempt took the last step, so that only the record is missing."""
    published = store.list_published()
    return bool(published) and published[-1].step == task.order.num_steps


def run_workers(
    task: Task, name: str, storage: str, entry: Callable[[dict[str, Any]], str | None] = run_worker
) -> None:
    """Take all steps on the cluster; checkpoints are written to the job's folder.

    Args:
        task: the training.
        name: name of the job.
        storage: folder of the runs, a path or URI.
        entry: function that each worker runs.

    Raises:
        TrainingStoppedError: the training cannot continue.
        ProgramError: a worker failed because of an error of this program.
    """
    compute = task.settings.compute
    # Ray's annotations are still those of Train V1, which knows neither what a loop returns nor preemptions.
    trainer = TorchTrainer(
        entry,  # type: ignore[arg-type]
        # As bytes: Ray's controller unpickles its arguments, and would import torch and all of this for them (9 s).
        train_loop_config={"task": pickle.dumps(task), "readers": start_readers(compute, get_store_deadline_s())}
        | {"failure": join(task.folder, f"failures/{uuid.uuid4().hex}.txt"), "progress_relay": start_relay()},
        scaling_config=ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=bool(compute.gpus_per_worker),
            resources_per_worker={"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker or 0},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=storage,
            logging_config=LoggingConfig(log_level="WARNING"),
            # A spot machine that is taken away is no failure: such restarts are counted apart, and unlimited.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=compute.max_failures, max_preemption_failures=-1
            ),
        ),
    )
    if (reason := trainer.fit().return_value) is not None:  # type: ignore[attr-defined]
        raise ProgramError(reason) if reason.startswith(PROGRAM_ERROR) else TrainingStoppedError(reason)


def _deliver(
    tracker: mlflow_run.Tracker, store: CheckpointStore, task: Task, name: str
) -> tuple[dict[str, float], str]:
    """Send the best checkpoint to MLflow, as figures and as a registered model.

    Without validation slides (`fit_on: train+val`) the last epoch counts as the best.

    Returns:
        Metrics of the best epoch, and the version of the model.

    Raises:
        RecordError: MLflow is unavailable; the message says how to complete the record later.
    """
    tracker.load_outbox()
    if not tracker.flush_patiently(MLFLOW_PATIENCE_S):
        raise mlflow_run.MlflowUnavailableError(
            f"the training is complete and its checkpoints are in {task.folder}, but MLflow at {tracker.uri} is "
            f"unavailable. When it is available again, this completes the run and registers the model: "
            f"{command.resume_command(name)}"
        )
    best = store.find_best()
    assert best is not None  # every epoch publishes one
    settings = task.settings
    with tempfile.TemporaryDirectory(prefix="magnet-best-") as place:
        folder = Path(place)
        store.fetch(best, folder, [name for name in best.sha256 if name != checkpoints.TRAINING_FILE])
        if (scores := folder / checkpoints.VALIDATION_FILE).exists():
            values = json.loads(scores.read_text())
            drawn = draw_validation_figures(values["label"], values["probability"], values["threshold"])
            for file, figure in drawn.items():
                tracker.log_figure(figure, f"best_epoch/{file}")
        version = registry.register(
            tracker.uri, tracker.run_id, folder, name=settings.registered_model, alias=settings.alias
        )
        return checkpoints.read_info(folder).metrics, version


def _print_result(settings: TrainSettings, metrics: Mapping[str, float], version: str) -> None:
    """Print the score of the best epoch, and how to use the model."""
    name = f"models:/{settings.registered_model}@{settings.alias}"
    if "val/auroc" in metrics:
        low, high = metrics["val/auroc_low"], metrics["val/auroc_high"]
        print(f"best epoch: validation AUROC {metrics['val/auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if settings.fit_on == "train+val":
        print("trained on train and val: the last epoch is used, and only the test split can give a score")
    print(f"registered as {name} (version {version})")
    in_service = environment.read_rights_text() is not None  # the service sets it for its jobs
    score = "magnet submit score" if in_service else "python ray_jobs/score.py --out FOLDER"
    print(f"score slides with: {score} --manifest NEW.csv --model {name}", flush=True)
