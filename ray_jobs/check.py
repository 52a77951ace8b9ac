"""Check a manifest and open each of its slides, before anything is paid for.

    ray job submit -- python ray_jobs/check.py --manifest s3://bucket/cohort.csv --need-labels

Prints what is there; every problem is named. Exit status: 0 all slides open, 2 something is to be put right.
"""

from __future__ import annotations

import argparse
from collections import Counter

from ray_jobs.command_line import command
from service.cohort.folder import is_folder, slides_under
from service.cohort.manifest import Manifest, ManifestError, check_slides, load_manifest
from service.slides.reader import RegionReader


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, help="CSV or Parquet, or a folder of slides; a path or URI")
    parser.add_argument("--need-labels", action="store_true", help="want a label per slide, as a training does")
    options = parser.parse_args(arguments)
    manifest = _manifest(options.manifest, options.need_labels)
    print(f"{manifest.uri}: {len(manifest.slides)} slides, checking that each one opens", flush=True)
    with RegionReader(num_threads=16) as reader:
        if problems := check_slides(manifest, reader):
            raise ManifestError(problems, manifest.uri)
    for name in ("split", "label", "stratum"):
        count = Counter(str(getattr(slide, name)) for slide in manifest.slides)
        print(f"  {name}: {', '.join(f'{value} {n}' for value, n in sorted(count.items()))}")
    print(f"all {len(manifest.slides)} slides open", flush=True)
    return 0


def _manifest(place: str, need_labels: bool) -> Manifest:
    if not is_folder(place):
        return load_manifest(place, need_labels=need_labels)
    manifest, other = slides_under(place)
    print(f"{place}: {other.told()}", flush=True)
    return manifest


if __name__ == "__main__":
    command.run(main)
