"""Make a registered model the champion: the model for recurring scorings and for `models:/NAME@champion`.

    python -m ray_jobs.promote models:/magnet@challenger [--alias champion] [--storage FOLDER]

A training registers its best epoch as the challenger. Only this command makes a model the champion.
"""

from __future__ import annotations

from ray_jobs.command_line import arguments, command, paths
from ray_jobs.models import registry
from ray_jobs.tracking import mlflow_run


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = arguments.make_parser("promote.py", __doc__)
    parser.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--alias", default="champion", help="alias to set (default: champion)")
    arguments.add_shared(parser, "--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set")
    options = arguments.parse(parser, argv)
    if not options.model.startswith("models:/"):
        parser.error(f"{options.model}: must be a registered model, models:/NAME@ALIAS or models:/NAME/VERSION")
    uri = mlflow_run.tracking_uri(paths.storage_folder(options.storage))
    name, version, earlier = registry.promote(options.model, options.alias, uri)
    was = "the alias is new" if earlier is None else f"it was version {earlier}"
    print(f"models:/{name}@{options.alias} is now version {version} ({was})")
    return 0


if __name__ == "__main__":
    command.run(main)
