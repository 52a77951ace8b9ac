"""Search schedules, and whatever else is named, for a MagNet: many short trainings, the best one's config at the end.

    ray job submit -- python ray_jobs/tune.py --manifest s3://bucket/cohort.csv --config configs/default.yaml

Whole schedules are chosen (2 to 5 layers, 1 to 4 regions per parent); those that break the budget of patches, or do not
fit the card, are refused beforehand. Each trial is a child run in MLflow; the parent has the table, the front of AUROC
against patches and bytes, and the best trial's config. The same command with the same --name goes on.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import command
from ray_jobs.train import checked_manifest
from service import exit_status
from service.cohort.manifest import Manifest
from service.errors import UsageError
from service.settings.train import train_settings
from service.settings.tune import search_settings


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    storage = command.storage_folder(options.storage)
    name = command.job_name(options.name) if options.name else command.new_name("tune")
    words = [*options.search_set]
    words += [
        f"{key}={getattr(options, key)}" for key in ("trials", "method", "seed") if getattr(options, key) is not None
    ]
    search = search_settings(options.search, words)
    overrides = [*options.set]
    if options.epochs is not None:
        overrides.append(f"recipe.epochs={options.epochs}")
    if options.gpu_memory:
        overrides.append(f"compute.gpu_memory_gb={command.gigabytes(options.gpu_memory)}")
    base = train_settings(options.config, overrides)
    manifest = checked_manifest(options.manifest, base)
    _require_both_classes(manifest)
    from ray_jobs.tuning.driver import tune_schedules  # noqa: PLC0415  (takes seconds; wrong input is told before)

    return tune_schedules(search, base, manifest, name=name, folder=storage)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tune.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", required=True, help="CSV or Parquet, a path or URI, as for train.py")
    add("--config", help="the training's YAML file, which the search varies; default: the evidence preset")
    add("--search", metavar="FILE", help="YAML file of the search: trials, depths, max_patches, learning_rate, ...")
    add("--trials", type=int, help="how many trainings (default 20)")
    add("--method", choices=("optuna", "random", "grid"), help="who chooses (default optuna)")
    add("--epochs", type=int, help="of each training that is not stopped early")
    add("--seed", type=int, help="of the search")
    add("--gpu-memory", metavar="24GB", help="refuse what does not fit it (default: the GPU's own memory)")
    add("--name", help="name of this job; the same name again goes on where it stopped. Default: a new one")
    add("--storage", help="folder for trials and checkpoints, a path or s3:// (default: as for train.py)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the training")
    add(
        "--search-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the search, e.g. max_patches=36, learning_rate=[1e-5,1e-3], schedules=[[3,2],[3,2,3]]",
    )
    return parser


def _require_both_classes(manifest: Manifest) -> None:
    """A search without a validation AUROC has nothing to go by. Raises `UsageError`."""
    labels = {slide.label for slide in manifest.split("val")}
    if labels != {0, 1}:
        raise UsageError(
            f"{manifest.uri}: the val split needs slides of both labels, it has {sorted(map(str, labels))}"
        )


if __name__ == "__main__":
    command.run(main)
