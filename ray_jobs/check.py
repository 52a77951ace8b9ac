"""Check a manifest and open each of its slides, before a job is started.

    ray job submit -- python ray_jobs/check.py --manifest s3://bucket/cohort.csv --need-labels

Prints the number of slides per split, label and stratum, or all problems. Exit status: 0 all slides open, 2 the
manifest or a slide has a problem.
"""

from __future__ import annotations

from ray_jobs.command_line import arguments, command, manifests


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = arguments.make_parser("check.py", __doc__)
    arguments.add_shared(
        parser, "--manifest", required=True, help="CSV or Parquet file, or a folder of slides; a path or URI"
    )
    parser.add_argument("--need-labels", action="store_true", help="require a label for each slide, as a training does")
    options = parser.parse_args(argv)
    manifests.check_manifest(options.manifest, need_labels=options.need_labels)
    return 0


if __name__ == "__main__":
    command.run(main)
