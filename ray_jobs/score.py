"""Score the slides of a manifest with a trained MagNet.

    ray job submit -- python ray_jobs/score.py --manifest s3://bucket/new.csv --model models:/magnet@challenger \\
        --out s3://bucket/scores/run1

The manifest lists slide_id and uri; labels are not needed, with them the AUROC is printed. Writes scores.parquet,
scores.csv and a picture per slide under --out. The same command again scores only what is missing. Exit status: 0 all
slides scored, 3 some failed (the table says why), 2 wrong input, 1 the job failed.
"""

from __future__ import annotations

import argparse

from ray_jobs import command
from service.manifest import load_manifest
from service.settings import ComputeSettings


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return command.EXIT_USAGE
    options = parser.parse_args(arguments)
    manifest = load_manifest(options.manifest, need_labels=False)
    slides = [s for s in manifest.slides if options.split in (None, s.split)]
    if not slides:
        parser.error(f"{options.manifest} has no slides with split {options.split!r}")
    compute = ComputeSettings(
        num_workers=options.num_workers,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
    )
    from ray_jobs.scoring import score  # noqa: PLC0415  (takes seconds; wrong input is told before)

    runs, out = command.storage_folder(options.storage), command.absolute(options.out)
    return score(slides, options.model, compute, runs=runs, out=out, pictures=not options.no_pictures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", required=True, help="CSV or Parquet, a path or URI (s3://, gs://, az://, https://)")
    add(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder",
    )
    add("--out", required=True, help="folder for the table and pictures, a path or s3://; one for each scoring")
    add("--split", choices=("train", "val", "test"), help="only the slides of this split")
    add("--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set (default: ~/magnet-runs)")
    add("--num-workers", type=int, default=1, help="scoring processes (default 1)")
    add("--cpus-per-worker", type=int, default=1, help="CPU cores of each (default 1)")
    add("--gpus-per-worker", type=float, help="GPUs of each (default: 1 where the cluster has any)")
    add("--no-pictures", action="store_true", help="only the table")
    return parser


if __name__ == "__main__":
    command.run(main)
