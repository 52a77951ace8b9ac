"""Train a MagNet on the slides of a manifest.

    ray job submit -- python ray_jobs/train.py --manifest s3://bucket/cohort.csv --config configs/default.yaml
    ray job submit -- python ray_jobs/train.py --rerun RUN_ID

Without a cluster, `python ray_jobs/train.py ...` starts a small one for itself. The manifest lists slide_id, uri and
label (0 or 1), and optionally patient_id, center, stratum and split.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command, manifests, paths
from service.errors import UsageError
from service.settings.train import read_train_settings


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = _make_parser()
    options = arguments.parse(parser, argv)
    overrides = arguments.to_overrides(options, "epochs", "seed", "num_workers", "schedule", "gpu_memory")
    name, storage = arguments.choose_job_name(options.name, "train"), paths.storage_folder(options.storage)
    if options.rerun:
        return _rerun(options, overrides, name, storage)
    if not options.manifest:
        parser.error("--manifest is required, unless --rerun repeats a run")
    settings = read_train_settings(options.config, overrides)
    manifest = manifests.load_for_training(options.manifest, settings)
    # Importing torch and Ray takes seconds; wrong input is reported before.
    from ray_jobs.training.driver import run_training  # noqa: PLC0415

    return run_training(settings, manifest, name=name, storage=storage)


def _rerun(options: argparse.Namespace, overrides: list[str], name: str, storage: str) -> int:
    """Repeat a run with the settings and the manifest that MLflow holds."""
    from ray_jobs.tracking import mlflow_run, rerun  # noqa: PLC0415  (as above)
    from ray_jobs.training.driver import run_training  # noqa: PLC0415  (as above)

    if options.config:
        raise UsageError("--rerun takes the settings of the run; leave out --config")
    run = rerun.read_run(mlflow_run.tracking_uri(storage), options.rerun, overrides)
    manifest = manifests.load_for_training(options.manifest or run.manifest, run.settings)
    run.require_same_manifest(manifest.uri, manifest.sha256)
    return run_training(run.settings, manifest, name=name, storage=storage, tags={"rerun_of": options.rerun})


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("train.py", __doc__)
    arguments.add_shared(parser, "--manifest")
    arguments.add_shared(parser, "--config")
    arguments.add_shared(parser, "--name")
    parser.add_argument(
        "--rerun", metavar="RUN_ID", help="repeat this MLflow run as a new job, with its settings, manifest and seed"
    )
    for option in ("--storage", "--schedule", "--epochs", "--seed", "--num-workers", "--gpu-memory", "--set"):
        arguments.add_shared(parser, option)
    return parser


if __name__ == "__main__":
    command.run(main)
