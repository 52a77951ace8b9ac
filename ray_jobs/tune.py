"""Search for the best schedule of a MagNet, and optionally other settings, by many short trainings.

    ray job submit -- python ray_jobs/tune.py --manifest s3://bucket/cohort.csv --config configs/default.yaml

The search chooses whole schedules (2 to 5 layers, 1 to 4 regions per parent). Schedules that exceed the budget of
patches or do not fit the GPU's memory are refused before the search starts. Each trial is a child run in MLflow. The
parent run holds the table of trials, the Pareto front of AUROC against patches and bytes, and the config of the best
trial. The same command with the same --name continues a search.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command, manifests, paths
from service.settings.train import read_train_settings
from service.settings.tune import read_search_settings


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = arguments.parse(_make_parser(), argv)
    name, storage = arguments.choose_job_name(options.name, "tune"), paths.storage_folder(options.storage)
    search_overrides = [*options.search_set]
    search_overrides += [
        f"{key}={getattr(options, key)}" for key in ("trials", "method", "seed") if getattr(options, key) is not None
    ]
    search = read_search_settings(options.search, search_overrides)
    base = read_train_settings(options.config, arguments.to_overrides(options, "epochs", "gpu_memory"))
    manifest = manifests.load_for_search(options.manifest, base)
    # Importing torch and Ray takes seconds; wrong input is reported before.
    from ray_jobs.tuning.driver import tune_schedules  # noqa: PLC0415

    return tune_schedules(search, base, manifest, name=name, folder=storage)


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("tune.py", __doc__)
    arguments.add_shared(parser, "--manifest", required=True)
    arguments.add_shared(parser, "--config", help="YAML file of the training to vary (default: the evidence preset)")
    parser.add_argument(
        "--search", metavar="FILE", help="YAML file of the search: trials, depths, max_patches, learning_rate, ..."
    )
    parser.add_argument("--trials", type=int, help="number of trainings (default: 20)")
    parser.add_argument("--method", choices=("optuna", "random", "grid"), help="search method (default: optuna)")
    arguments.add_shared(parser, "--epochs", help="number of epochs of a training that is not stopped early")
    arguments.add_shared(parser, "--seed", help="seed of the search")
    arguments.add_shared(
        parser, "--gpu-memory", help="refuse schedules that need more memory (default: that of the GPU)"
    )
    arguments.add_shared(parser, "--name")
    arguments.add_shared(parser, "--storage")
    arguments.add_shared(parser, "--set", help="change any setting of the training; can be repeated")
    parser.add_argument(
        "--search-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any setting of the search, for example max_patches=36, learning_rate=[1e-5,1e-3] or "
        "schedules=[[3,2],[3,2,3]]; can be repeated",
    )
    return parser


if __name__ == "__main__":
    command.run(main)
