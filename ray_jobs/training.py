"""A training job from its checked settings to the registered model."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_jobs import checkpoints, cluster, command, loop, registry, tracking
from service.manifest import Manifest
from service.policy import slide_counts
from service.settings import TrainSettings, changed, flat, to_dict

SELECTION = "val/selection"
"""The metric that models are chosen by: AUROC, or minus the loss where there is none."""


def train(settings: TrainSettings, manifest: Manifest, *, name: str, storage: str) -> int:
    """Train on the cluster, record it, register the best model; an exit status.

    Args:
        settings: of the training.
        manifest: checked, with splits.
        name: of the job; one that was begun before goes on.
        storage: folder of the runs, a path or URI.
    """
    uri = tracking.tracking_uri(storage)
    cluster.connect(command.worker_environment())
    why = f"{settings.compute.num_workers} training worker(s), and one CPU that reads slides ahead of them"
    settings = replace(settings, compute=cluster.fitted(settings.compute, extra_cpus=1, why=why))
    cluster.require_shared(storage=storage, MLFLOW_TRACKING_URI=uri)
    run_id, finished = tracking.start_run(uri, experiment=settings.experiment, name=name, storage=storage)
    tracker = tracking.Tracker(uri, run_id)
    print(f"job {name}, MLflow run {run_id}; runs: {registry.ui_command(uri)}", flush=True)
    if finished:
        print("this job is finished already; give a new job a --name of its own")
        return 0
    tracker.params(flat(to_dict(settings)) | {"manifest": manifest.uri, "manifest_sha256": manifest.sha256})
    tracker.begin()
    status = "FAILED"
    try:
        _record(tracker, settings, manifest, storage)
        task = loop.Task(settings, manifest.split("train"), manifest.split("val"), uri, run_id)
        with tempfile.TemporaryDirectory(prefix="magnet-best-") as folder:
            metrics = _fit(task, name, storage, Path(folder))
            version = registry.register(uri, run_id, Path(folder), name=settings.registered_model, alias=settings.alias)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray makes a SystemExit of Ctrl-C while it trains, and of SIGTERM
        status = "KILLED"
        raise KeyboardInterrupt from stop
    finally:
        tracker.end(status)
    _tell(settings, metrics, version)
    return 0


def _record(tracker: tracking.Tracker, settings: TrainSettings, manifest: Manifest, storage: str) -> None:
    """Preset, manifest and config file into the run."""
    overrides = json.dumps(changed(settings), sort_keys=True)
    tracker.tags({"preset": settings.preset, "preset_overrides": overrides[:5000], "storage": storage})
    tracker.tags({f"slides.{name.replace(' ', '_')}": count for name, count in slide_counts(manifest).items()})
    frame = manifest.to_frame()
    for context in ("train", "val") if manifest.split("val") else ("train",):
        name = f"{Path(manifest.uri).stem}-{context}"
        tracker.dataset(frame[frame["split"] == context], source=manifest.uri, name=name, context=context)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False))
        tracker.file(config)


def _fit(task: loop.Task, name: str, storage: str, folder: Path) -> dict[str, Any]:
    """Train on the cluster; copies the best checkpoint into a folder of this machine, and returns its metrics.

    Without validation slides (`fit_on: train+val`) the last epoch's counts as the best.
    """
    compute = task.settings.compute
    selection = SELECTION if task.val else None
    trainer = TorchTrainer(
        loop.train,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=bool(compute.gpus_per_worker),
            resources_per_worker={"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker or 0},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # its annotations are still those of Ray Train V1
            name=name,
            storage_path=storage,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=selection, checkpoint_score_order="max"
            ),
        ),
    )
    result = trainer.fit()
    best = result.get_best_checkpoint(selection, "max") if selection else result.checkpoint
    assert best is not None  # every epoch reports one
    best.to_directory(folder)
    return checkpoints.describe(folder).metrics


def _tell(settings: TrainSettings, metrics: dict[str, Any], version: str) -> None:
    name = f"models:/{settings.registered_model}@{settings.alias}"
    if "val/auroc" in metrics:
        low, high = metrics["val/auroc_low"], metrics["val/auroc_high"]
        print(f"best epoch: validation AUROC {metrics['val/auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if settings.fit_on == "train+val":
        print("trained on train and val: the last epoch is taken, and no score is known before the test split's")
    print(f"registered as {name} (version {version})")
    print(f"score slides with: python ray_jobs/score.py --manifest NEW.csv --model {name} --out FOLDER", flush=True)
