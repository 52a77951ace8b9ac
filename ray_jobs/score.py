"""Score the slides of a manifest with a trained MagNet.

    ray job submit -- python ray_jobs/score.py --manifest s3://bucket/new.csv --model models:/magnet@challenger \\
        --out s3://bucket/scores/run1

The manifest lists slide_id and uri, or it is a folder or prefix (s3://bucket/new/), whose slides are taken. Labels are
not needed; with them the AUROC is reported. Writes report.html, scores.parquet, scores.csv, patients.csv, and a zoom
tree, an overlay and GeoJSON per slide under --out. The same command again scores only what is missing. Exit status: 0
no slide failed (some may have been refused), 3 some failed (the table says why), 2 wrong input, 1 the job failed.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import command
from service import exit_status
from service.cohort.folder import is_folder, slides_under
from service.cohort.manifest import load_manifest
from service.cohort.outlines import read_outlines
from service.settings.score import score_settings


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = _parser()
    if not arguments:
        parser.print_help()
        return exit_status.USAGE
    options = parser.parse_args(arguments)
    settings = score_settings(options.config, _overrides(options))
    if is_folder(options.manifest):
        manifest, other = slides_under(options.manifest)
        print(f"{options.manifest}: {len(manifest.slides)} slides, {other.told()}", flush=True)
    else:
        manifest = load_manifest(options.manifest, need_labels=False)
    slides = [s for s in manifest.slides if options.split in (None, s.split)]
    if not slides:
        parser.error(f"{options.manifest} has no slides with split {options.split!r}")
    outlines = read_outlines(options.outlines) if options.outlines else None
    from ray_jobs.scoring.driver import score  # noqa: PLC0415  (takes seconds; wrong input is told before)

    runs, out = command.storage_folder(options.storage), command.absolute(options.out)
    return score(slides, options.model, settings, runs=runs, out=out, outlines=outlines)


def _overrides(options: argparse.Namespace) -> list[str]:
    """Options as settings."""
    named = {
        "compute.num_workers": options.num_workers,
        "compute.cpus_per_worker": options.cpus_per_worker,
        "compute.gpus_per_worker": options.gpus_per_worker,
        "stop_when_settled": options.stop_when_settled,
        "max_bytes_per_slide": options.max_bytes_per_slide,
        "gate": "null" if options.no_gate else None,
        "pictures": "false" if options.no_pictures else None,
    }
    return [*options.set, *(f"{name}={value}" for name, value in named.items() if value is not None)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--manifest", required=True, help="CSV or Parquet, or a folder of slides; a path or URI (s3://, gs://, ...)")
    add(
        "--model",
        required=True,
        help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder",
    )
    add("--out", required=True, help="folder for the table and pictures, a path or s3://; one for each scoring")
    add("--config", help="YAML file of settings: gate, frames, compute, ...")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. gate.max_pen=0.5")
    add("--no-gate", action="store_true", help="score every slide that can be read")
    add("--split", choices=("train", "val", "test"), help="only the slides of this split")
    add("--outlines", help="lesions: GeoJSON with slide_id, or a folder of ASAP XML; how well they are found is told")
    add(
        "--stop-when-settled", type=float, metavar="EPS", help="end a slide when its probability moves no more than EPS"
    )
    add("--max-bytes-per-slide", type=int, metavar="N", help="read no more patches of a slide once N bytes were read")
    add("--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set (default: ~/magnet-runs)")
    add("--num-workers", type=int, help="scoring processes (default 1)")
    add("--cpus-per-worker", type=int, help="CPU cores of each (default 1)")
    add("--gpus-per-worker", type=float, help="GPUs of each (default: 1 where the cluster has any)")
    add("--no-pictures", action="store_true", help="only table and report")
    return parser


if __name__ == "__main__":
    command.run(main)
