"""Score the slides of a manifest with a trained MagNet.

    ray job submit -- python ray_jobs/score.py --manifest s3://bucket/new.csv --model models:/magnet@challenger \\
        --out s3://bucket/scores/run1

The manifest lists slide_id and uri. It can also be a folder or prefix (s3://bucket/new/): then all slides in it are
scored. Labels are optional; with labels the AUROC is reported. The folder --out receives report.html, scores.parquet,
scores.csv, patients.csv, and a zoom tree, an overlay and a GeoJSON file per slide. The same command again scores only
the slides that are missing.

Exit status: 0 no slide failed (some may have been refused), 3 some slides failed (the table says why), 2 wrong input,
1 the job failed.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command, manifests, paths
from service.cohort.outlines import read_outlines
from service.settings.score import read_score_settings


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = arguments.parse(_make_parser(), argv)
    settings = read_score_settings(options.config, _to_overrides(options))
    slides = manifests.load_for_scoring(options.manifest, options.split)
    outlines = read_outlines(options.outlines) if options.outlines else None
    # Importing torch and Ray takes seconds; wrong input is reported before.
    from ray_jobs.scoring.driver import score  # noqa: PLC0415

    runs, out = paths.storage_folder(options.storage), paths.to_absolute(options.out)
    return score(slides, options.model, settings, runs=runs, out=out, outlines=outlines)


def _to_overrides(options: argparse.Namespace) -> list[str]:
    """Return --set and other options as overrides ``key=value`` of the scoring settings."""
    values = {
        "compute.num_workers": options.num_workers,
        "compute.cpus_per_worker": options.cpus_per_worker,
        "compute.gpus_per_worker": options.gpus_per_worker,
        "stop_when_settled": options.stop_when_settled,
        "max_bytes_per_slide": options.max_bytes_per_slide,
        "gate": "null" if options.no_gate else None,
        "pictures": "false" if options.no_pictures else None,
    }
    return [*options.set, *(f"{name}={value}" for name, value in values.items() if value is not None)]


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("score.py", __doc__)
    arguments.add_shared(
        parser,
        "--manifest",
        required=True,
        help="CSV or Parquet file that lists the slides, or a folder of slides; a path or URI (s3://, gs://, ...)",
    )
    add = parser.add_argument
    add("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder")
    add("--out", required=True, help="folder for tables and pictures, a path or s3:// URI; one folder per scoring")
    arguments.add_shared(parser, "--config", help="YAML file with settings of the scoring: gate, frames, compute, ...")
    arguments.add_shared(parser, "--set", help="change any setting, for example gate.max_pen=0.5; can be repeated")
    add("--no-gate", action="store_true", help="score every readable slide, regardless of its quality")
    add("--split", choices=("train", "val", "test"), help="score only the slides of this split")
    add("--outlines", help="outlines of lesions, to report how many were found: GeoJSON, or a folder of ASAP XML files")
    add(
        "--stop-when-settled",
        type=float,
        metavar="EPS",
        help="stop a slide when its probability changes by no more than EPS",
    )
    add("--max-bytes-per-slide", type=int, metavar="N", help="read no more patches of a slide after N bytes")
    arguments.add_shared(
        parser, "--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set (default: ~/magnet-runs)"
    )
    arguments.add_shared(parser, "--num-workers", help="number of scoring processes (default: 1)")
    add("--cpus-per-worker", type=int, help="CPU cores per process (default: 1)")
    add("--gpus-per-worker", type=float, help="GPUs per process (default: 1 if the cluster has GPUs)")
    add("--no-pictures", action="store_true", help="write only tables and report")
    return parser


if __name__ == "__main__":
    command.run(main)
