"""The command ``python -m service.synthetic``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.errors import UsageError
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

_DESCRIPTION = """Make a cohort of generated slides: pyramidal TIFFs of H&E-like tissue with planted lesions.
Every slide holds dark blobs that look alike at low power; in a positive slide one of them is the lesion, which only
its larger nuclei at high power tell from the decoys. A score on such slides says nothing about finding cancer."""


def main(arguments: list[str] | None = None) -> int:
    """Make the cohort that the command line asks for.

    Args:
        arguments: the command line without the program's name; that of this process if None.

    Returns:
        Exit status: 0 done or there already, 2 wrong arguments or a folder that cannot be used.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    out, jobs = given.pop("out"), given.pop("jobs")
    if jobs < 1:
        parser.error(f"jobs {jobs}: must be at least 1")
    try:
        settings = CohortSettings(**given)
    except ValueError as error:
        parser.error(str(error))
    try:
        is_new = make_cohort(out, settings, jobs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out / 'manifest.csv'}: {settings.num_slides} slides" + ("" if is_new else ", there already, nothing done"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.synthetic",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make")
    add("--num-slides", type=int, required=True, metavar="N")
    add("--side-px", type=int, required=True, metavar="PX", help="side of the slides, 2048 to 110000")
    add("--seed", type=int, required=True, metavar="S", help="same arguments, same bytes")
    add("--decoys", type=int, default=3, metavar="N", help="decoys in a negative slide, one less in a positive one (3)")
    add("--hint", type=float, default=0.0, metavar="H", help="lesions' own colour at low power, 0 to 1 (0)")
    add("--positive", type=float, default=0.5, metavar="SHARE", help="share of slides with a lesion (0.5)")
    add("--strata", type=_weights, default="macro=1,micro=1,itc=0", metavar="W", help="weights (macro=1,micro=1,itc=0)")
    add("--split", type=_weights, default="train=.6,val=.2,test=.2", metavar="W", help="(train=.6,val=.2,test=.2)")
    add("--jobs", type=int, default=1, metavar="J", help="slides made at once (1)")
    return parser


def _weights(text: str) -> dict[str, float]:
    """``a=2,b=1`` as a dictionary."""
    try:
        return {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: want weights as in macro=1,micro=1") from error


if __name__ == "__main__":
    sys.exit(main())
