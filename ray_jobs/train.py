"""Train a MagNet on the slides of a manifest.

    ray job submit -- python ray_jobs/train.py --manifest s3://bucket/cohort.csv --config configs/demo.yaml

Without a cluster, `python ray_jobs/train.py ...` starts a small one for itself. The manifest lists slide_id, uri and
label (0 or 1), and if there are any patient_id, center, stratum and split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_jobs import checkpoints, cluster, command, loop, registry, tracking
from service.manifest import Manifest, ManifestError, Problem, check_slides, load_manifest, with_splits
from service.reader import RegionReader
from service.settings import TrainSettings, changed, flat, to_dict, train_settings

SELECTION = "val/selection"
"""The metric that models are chosen by: AUROC, or minus the loss where there is none."""


SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Of the splits, where the manifest has none."""


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return command.EXIT_USAGE
    options = parser.parse_args(arguments)
    overrides = [*options.set]
    for flag, key in (("epochs", "recipe.epochs"), ("seed", "recipe.seed"), ("num_workers", "compute.num_workers")):
        if getattr(options, flag) is not None:
            overrides.append(f"{key}={getattr(options, flag)}")
    if options.schedule:
        overrides.append(f"model.zoom.schedule=[{options.schedule}]")
    settings = train_settings(options.config, overrides)
    manifest = _checked_manifest(options.manifest, settings)
    return _train(settings, manifest, options.name or command.new_name("train"), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", required=True, help="CSV or Parquet, a path or URI (s3://, gs://, az://, https://)")
    add("--config", help="YAML file with preset, model, recipe, compute; default: the evidence preset")
    add("--name", help="name of this job; the same name again goes on where it stopped. Default: a new one")
    add("--storage", help="folder for checkpoints, a path or s3:// (default: MAGNET_STORAGE or ~/magnet-runs)")
    add("--schedule", metavar="P1,P2,...", help="regions per parent, layer by layer, for example 3,2,3")
    add("--epochs", type=int, help="passes over the training slides")
    add("--seed", type=int, help="of everything random")
    add("--num-workers", type=int, help="training processes")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. recipe.learning_rate=1e-4")
    return parser


def _checked_manifest(uri: str, settings: TrainSettings) -> Manifest:
    """The manifest with splits, its slides opened once. Raises `ManifestError` naming all that is wrong."""
    manifest = with_splits(load_manifest(uri, need_labels=True), settings.recipe.seed, SHARES)
    if not manifest.split("val"):
        raise ManifestError([Problem(None, "split", "no slide has split val, by which the best epoch is chosen")], uri)
    print(f"{uri}: {len(manifest.slides)} slides, checking that each one opens", flush=True)
    with RegionReader(num_threads=settings.compute.reader_threads) as reader:
        if problems := check_slides(manifest, reader):
            raise ManifestError(problems, uri)
    for name in ("train", "val", "test"):
        slides = manifest.split(name)
        positive = sum(slide.label or 0 for slide in slides)
        print(f"  {name}: {len(slides)} slides, {positive} positive", flush=True)
    return manifest


def _train(settings: TrainSettings, manifest: Manifest, name: str, options: argparse.Namespace) -> int:
    storage = command.storage_folder(options.storage)
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
    status = "FAILED"
    try:
        _record(tracker, settings, manifest, storage)
        task = loop.Task(settings, manifest.split("train"), manifest.split("val"), uri, run_id)
        best, metrics = _fit(task, name, storage)
        version = registry.register(uri, run_id, best, name=settings.registered_model, alias=settings.alias)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)
    _tell(settings, metrics, version)
    return 0


def _record(tracker: tracking.Tracker, settings: TrainSettings, manifest: Manifest, storage: str) -> None:
    """Settings, manifest and config file into the run."""
    tracker.params(flat(to_dict(settings)) | {"manifest": manifest.uri, "manifest_sha256": manifest.sha256})
    overrides = json.dumps(changed(settings), sort_keys=True)
    tracker.tags({"preset": settings.preset, "preset_overrides": overrides[:5000], "storage": storage})
    frame = manifest.to_frame()
    for context in ("train", "val"):
        name = f"{Path(manifest.uri).stem}-{context}"
        tracker.dataset(frame[frame["split"] == context], source=manifest.uri, name=name, context=context)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False))
        tracker.file(config)


def _fit(task: loop.Task, name: str, storage: str) -> tuple[Path, dict[str, Any]]:
    """Train on the cluster; the best checkpoint, copied to this machine, and its metrics."""
    compute = task.settings.compute
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
                num_to_keep=2, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
            ),
        ),
    )
    result = trainer.fit()
    best = result.get_best_checkpoint(SELECTION, "max")
    assert best is not None  # every epoch reports one
    folder = Path(tempfile.mkdtemp(prefix="magnet-best-"))
    best.to_directory(folder)
    return folder, checkpoints.describe(folder).metrics


def _tell(settings: TrainSettings, metrics: dict[str, Any], version: str) -> None:
    name = f"models:/{settings.registered_model}@{settings.alias}"
    if "val/auroc" in metrics:
        low, high = metrics["val/auroc_low"], metrics["val/auroc_high"]
        print(f"best epoch: validation AUROC {metrics['val/auroc']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    print(f"registered as {name} (version {version})")
    print(f"score slides with: python ray_jobs/score.py --manifest NEW.csv --model {name} --out FOLDER", flush=True)


if __name__ == "__main__":
    command.run(main)
