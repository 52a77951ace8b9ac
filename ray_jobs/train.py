"""Train a MagNet on the slides of a manifest.

    ray job submit -- python ray_jobs/train.py --manifest s3://bucket/cohort.csv --config configs/default.yaml
    ray job submit -- python ray_jobs/train.py --rerun RUN_ID

Without a cluster, `python ray_jobs/train.py ...` starts a small one for itself. The manifest lists slide_id, uri and
label (0 or 1), and if there are any patient_id, center, stratum and split.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import command
from service import exit_status
from service.cohort.label_policy import slide_counts, training_slides
from service.cohort.manifest import Manifest, ManifestError, check_slides, load_manifest, with_splits
from service.errors import UsageError
from service.settings.train import TrainSettings, train_settings
from service.slides.reader import RegionReader

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Of the splits, where the manifest has none."""


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    overrides = [*options.set]
    for flag, key in (("epochs", "recipe.epochs"), ("seed", "recipe.seed"), ("num_workers", "compute.num_workers")):
        if getattr(options, flag) is not None:
            overrides.append(f"{key}={getattr(options, flag)}")
    if options.schedule:
        overrides.append(f"model.zoom.schedule=[{options.schedule}]")
    if options.gpu_memory:
        overrides.append(f"compute.gpu_memory_gb={command.gigabytes(options.gpu_memory)}")
    storage = command.storage_folder(options.storage)
    name = command.job_name(options.name) if options.name else command.new_name("train")
    if options.rerun:
        return _rerun(options, overrides, name, storage)
    if not options.manifest:
        parser.error("--manifest is required, unless a run is repeated with --rerun")
    settings = train_settings(options.config, overrides)
    manifest = checked_manifest(options.manifest, settings)
    from ray_jobs.training.driver import run_training  # noqa: PLC0415  (takes seconds; wrong input is told before)

    return run_training(settings, manifest, name=name, storage=storage)


def _rerun(options: argparse.Namespace, overrides: list[str], name: str, storage: str) -> int:
    """Repeat a run from what MLflow holds of it."""
    from ray_jobs.tracking import mlflow_run, rerun  # noqa: PLC0415  (as above)
    from ray_jobs.training.driver import run_training  # noqa: PLC0415  (as above)

    if options.config:
        raise UsageError("--rerun takes the run's own settings; leave out --config")
    run = rerun.recorded(mlflow_run.tracking_uri(storage), options.rerun, overrides)
    manifest = checked_manifest(options.manifest or run.manifest, run.settings)
    run.require_same_manifest(manifest.uri, manifest.sha256)
    return run_training(run.settings, manifest, name=name, storage=storage, tags={"rerun_of": options.rerun})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", help="CSV or Parquet, a path or URI (s3://, gs://, az://, https://)")
    add("--config", help="YAML file with preset, model, recipe, compute; default: the evidence preset")
    add("--name", help="name of this job; the same name again goes on where it stopped. Default: a new one")
    add("--rerun", metavar="RUN_ID", help="repeat this run of MLflow: its settings, manifest and seed, as a new job")
    add("--storage", help="folder for checkpoints, a path or s3:// (default: MAGNET_STORAGE or ~/magnet-runs)")
    add("--schedule", metavar="P1,P2,...", help="regions per parent, layer by layer, for example 3,2,3")
    add("--epochs", type=int, help="passes over the training slides")
    add("--seed", type=int, help="of everything random")
    add("--num-workers", type=int, help="training processes")
    add("--gpu-memory", metavar="24GB", help="choose the micro-batch for it (default: the GPU's own memory)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. recipe.learning_rate=1e-4")
    return parser


def checked_manifest(uri: str, settings: TrainSettings) -> Manifest:
    """The slides to train with, by split, each opened once. Raises `ManifestError` naming all that is wrong."""
    manifest = with_splits(load_manifest(uri, need_labels=True), settings.recipe.seed, SHARES)
    manifest = training_slides(manifest, without_strata=settings.train_without_strata, fit_on=settings.fit_on)
    print(f"{uri}: {len(manifest.slides)} slides, checking that each one opens", flush=True)
    with RegionReader(num_threads=settings.compute.reader_threads) as reader:
        if problems := check_slides(manifest, reader):
            raise ManifestError(problems, uri)
    for name, count in slide_counts(manifest).items():
        print(f"  {name}: {count}", flush=True)
    return manifest


if __name__ == "__main__":
    command.run(main)
