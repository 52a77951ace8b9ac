"""Make a registered model the champion: the one that watched slides and `models:/NAME@champion` are scored with.

    python -m ray_jobs.promote models:/magnet@challenger [--alias champion] [--storage FOLDER]

A training registers its best epoch as the challenger; nothing makes it the champion but this command.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import command
from ray_jobs.models import registry
from ray_jobs.tracking import mlflow_run
from service import exit_status


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--alias", default="champion", help="that stands for it from now on (default: champion)")
    parser.add_argument("--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set")
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    if not options.model.startswith("models:/"):
        parser.error(f"{options.model} is no registered model; name one as models:/NAME@ALIAS or models:/NAME/VERSION")
    uri = mlflow_run.tracking_uri(command.storage_folder(options.storage))
    name, version, earlier = registry.promote(options.model, options.alias, uri)
    was = "nothing before" if earlier is None else f"version {earlier} before"
    print(f"models:/{name}@{options.alias} is version {version} now ({was})")
    return 0


if __name__ == "__main__":
    command.run(main)
