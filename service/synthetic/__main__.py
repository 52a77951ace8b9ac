"""The command ``python -m service.synthetic``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.errors import UsageError
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

_DESCRIPTION = """Make a cohort of generated slides: pyramidal TIFFs of H&E-like tissue with planted lesions.
Every slide has dark blobs that look the same at low power. In a positive slide one of them is the lesion, which differs
from the decoys only by its larger nuclei at high power. A score on such slides says nothing about finding cancer."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: command line without the program's name; None for the command line of this process.

    Returns:
        Exit status: 0 the cohort was made or existed already, 2 wrong arguments or a folder that cannot be used.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    out, jobs = options.pop("out"), options.pop("jobs")
    if jobs < 1:
        parser.error(f"jobs {jobs}: must be at least 1")
    try:
        settings = CohortSettings(**options)
    except ValueError as error:
        parser.error(str(error))
    try:
        is_new = make_cohort(out, settings, jobs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{out / 'manifest.csv'}: {settings.num_slides} slides"
        + ("" if is_new else ", made by an earlier run, nothing to do")
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.synthetic",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make; it must be new or empty")
    add("--num-slides", type=int, required=True, metavar="N", help="number of slides")
    add("--side-px", type=int, required=True, metavar="PX", help="side of the slides in pixels, 2048 to 110000")
    add("--seed", type=int, required=True, metavar="S", help="seed; equal arguments give equal bytes")
    add(
        "--decoys",
        type=int,
        default=3,
        metavar="N",
        help="decoys of a negative slide; a positive one has one less (default 3)",
    )
    add(
        "--hint",
        type=float,
        default=0.0,
        metavar="H",
        help="colour difference of lesions at low power, 0 to 1 (default 0)",
    )
    add("--positive", type=float, default=0.5, metavar="SHARE", help="share of slides with a lesion (default 0.5)")
    add(
        "--strata",
        type=_parse_weights,
        default="macro=1,micro=1,itc=0",
        metavar="W",
        help="weights of the strata (default macro=1,micro=1,itc=0)",
    )
    add(
        "--split",
        type=_parse_weights,
        default="train=.6,val=.2,test=.2",
        metavar="W",
        help="shares of the splits (default train=.6,val=.2,test=.2)",
    )
    add("--jobs", type=int, default=1, metavar="J", help="number of slides made at once (default 1)")
    return parser


def _parse_weights(text: str) -> dict[str, float]:
    """Parse a text such as ``macro=2,micro=1``."""
    try:
        return {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=WEIGHT pairs, such as macro=1,micro=1") from error


if __name__ == "__main__":
    sys.exit(main())
