"""A training job from its checked settings to the registered model."""

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
from ray_jobs.cluster.reader_actors import started_readers
from ray_jobs.command_line import command
from ray_jobs.models import checkpoints, registry
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.models.network_check import require_network
from ray_jobs.tracking import mlflow_run, provenance, rerun
from ray_jobs.training import worker
from ray_jobs.training.figures import figures
from ray_jobs.training.stream import store_patience_s
from service import environment
from service.cohort.label_policy import slide_counts
from service.cohort.manifest import Manifest
from service.errors import ProgramError, StoppedError
from service.settings.parsing import flat, to_dict
from service.settings.train import TrainSettings, changed
from service.storage import join

MLFLOW_PATIENCE_S = 120.0
"""Seconds that a complete training waits for MLflow."""


class TrainingStoppedError(StoppedError):
    """A training came to a point from which it cannot go on: a loss that is no number, or too many lost slides.

    To act: the user, as the message says. A retry under the same name comes to the same point.
    """


def train(
    settings: TrainSettings, manifest: Manifest, *, name: str, storage: str, tags: Mapping[str, str] | None = None
) -> int:
    """Train on the cluster, record it, register the best model; an exit status.

    Args:
        settings: of the training.
        manifest: checked, with splits.
        name: of the job; one that was begun before goes on.
        storage: folder of the runs, a path or URI.
        tags: for the run, beside its own.

    Raises:
        UsageError: an encoder is unknown, or its weights are missing or wrong.
        TrainingStoppedError: the training cannot go on.
        ProgramError: a worker failed by an error of this program.
        RecordError: MLflow is unavailable at the beginning or the end.
    """
    require_network(settings.model)  # wrong weights must not hold the cluster until each worker has failed on them
    uri = mlflow_run.tracking_uri(storage)
    cluster.connect(command.worker_environment())
    why = f"{settings.compute.num_workers} training worker(s), and one CPU that reads slides ahead of them"
    settings = replace(settings, compute=cluster.fitted(settings.compute, extra_cpus=1, why=why))
    cluster.require_shared(storage=storage, MLFLOW_TRACKING_URI=uri)
    run_id, finished = mlflow_run.start_run(uri, experiment=settings.experiment, name=name, storage=storage)
    folder = join(storage, name)
    tracker = mlflow_run.Tracker(uri, run_id, folder)
    print(f"job {name}, MLflow run {run_id}; runs: {registry.ui_command(uri)}", flush=True)
    if finished:
        print("this job is finished already; give a new job a --name of its own")
        return 0
    tracker.params(flat(to_dict(settings)) | {"manifest": manifest.uri, "manifest_sha256": manifest.sha256})
    tracker.begin()
    status = "FAILED"
    try:
        _record(tracker, settings, manifest, storage, tags or {})
        task = worker.Task(settings, manifest.split("train"), manifest.split("val"), uri, run_id, folder)
        store = CheckpointStore(folder)
        if not _trained(store, task):
            fit(task, name, storage)
        metrics, version = _deliver(tracker, store, task, name)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray makes a SystemExit of Ctrl-C while it trains, and of SIGTERM
        status = "KILLED"
        raise KeyboardInterrupt from stop
    finally:
        tracker.end(status)
    _tell(settings, metrics, version)
    return 0


def _record(
    tracker: mlflow_run.Tracker, settings: TrainSettings, manifest: Manifest, storage: str, tags: Mapping[str, str]
) -> None:
    """Preset, manifest, packages and config file into the run."""
    overrides = json.dumps(changed(settings), sort_keys=True)
    tracker.tags({"preset": settings.preset, "preset_overrides": overrides[:5000], "storage": storage, **tags})
    tracker.tags({f"slides.{name.replace(' ', '_')}": count for name, count in slide_counts(manifest).items()})
    tracker.datasets(manifest)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / rerun.CONFIG_FILE
        config.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False))
        tracker.file(config)
        packages = Path(folder) / "packages.txt"
        packages.write_text(provenance.installed_packages())
        tracker.file(packages)


def _trained(store: CheckpointStore, task: worker.Task) -> bool:
    """Whether an earlier attempt took the last step, and only the record was not made."""
    published = store.published()
    return bool(published) and published[-1].step == task.order.num_steps


def fit(
    task: worker.Task, name: str, storage: str, entry: Callable[[dict[str, Any]], str | None] = worker.train
) -> None:
    """Take all steps on the cluster; their checkpoints lie in the job's folder.

    Args:
        task: the training.
        name: of the job.
        storage: folder of the runs, a path or URI.
        entry: what each worker runs.

    Raises:
        TrainingStoppedError: the training cannot go on.
        ProgramError: a worker failed by an error of this program.
    """
    compute = task.settings.compute
    # Ray's annotations are still those of Train V1, which knows neither what a loop returns nor preemptions.
    trainer = TorchTrainer(
        entry,  # type: ignore[arg-type]
        # As bytes: Ray's controller unpickles what it is given and would import torch and all of this for it (9 s).
        train_loop_config={"task": pickle.dumps(task), "readers": started_readers(compute, store_patience_s())}
        | {"failure": join(task.folder, f"failures/{uuid.uuid4().hex}.txt")},
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
        raise ProgramError(reason) if reason.startswith(worker.OF_PROGRAM) else TrainingStoppedError(reason)


def _deliver(
    tracker: mlflow_run.Tracker, store: CheckpointStore, task: worker.Task, name: str
) -> tuple[dict[str, float], str]:
    """The best checkpoint into MLflow, as figures and as a registered model; its metrics, and the model's version.

    Without validation slides (`fit_on: train+val`) the last epoch's counts as the best.

    Raises:
        RecordError: MLflow is away; the message says what brings the rest when it is back.
    """
    tracker.resume()
    if not tracker.flush_patiently(MLFLOW_PATIENCE_S):
        raise mlflow_run.RecordError(
            f"the training is complete and its checkpoints lie in {task.folder}, but MLflow at {tracker.uri} is away. "
            f"When it is back, this sends what it lacks and registers the model: {command.again(name)}"
        )
    best = store.best()
    assert best is not None  # every epoch publishes one
    settings = task.settings
    with tempfile.TemporaryDirectory(prefix="magnet-best-") as place:
        folder = Path(place)
        store.fetch(best, folder, [name for name in best.sha256 if name != checkpoints.TRAINING_FILE])
        if (scores := folder / checkpoints.VALIDATION_FILE).exists():
            found = json.loads(scores.read_text())
            for file, figure in figures(found["label"], found["probability"], found["threshold"]).items():
                tracker.figure(figure, f"best_epoch/{file}")
        version = registry.register(
            tracker.uri, tracker.run_id, folder, name=settings.registered_model, alias=settings.alias
        )
        return checkpoints.describe(folder).metrics, version


def _tell(settings: TrainSettings, metrics: Mapping[str, float], version: str) -> None:
    name = f"models:/{settings.registered_model}@{settings.alias}"
    if "val/auroc" in metrics:
        low, high = metrics["val/auroc_low"], metrics["val/auroc_high"]
        print(f"best epoch: validation AUROC {metrics['val/auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if settings.fit_on == "train+val":
        print("trained on train and val: the last epoch is taken, and no score is known before the test split's")
    print(f"registered as {name} (version {version})")
    in_service = environment.rights_text() is not None  # the service tells its jobs
    score = "magnet submit score" if in_service else "python ray_jobs/score.py --out FOLDER"
    print(f"score slides with: {score} --manifest NEW.csv --model {name}", flush=True)
