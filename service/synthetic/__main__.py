"""The command ``python -m service.synthetic``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from service.errors import UsageError
from service.synthetic.clinical import ClinicalSettings
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

PLAIN_OPTIONS = ("decoys", "hint")
CLINICAL_OPTIONS = ("mean_candidates", "contrast")
CLINICAL_STRATA = {"macro": 2.0, "micro": 5.0, "itc": 3.0}
"""Weights of the strata in the clinical world, if none are given."""

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
        settings = _to_settings(options)
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


def _to_settings(options: dict[str, Any]) -> CohortSettings:
    """Return the settings that the options of the command line ask for; raise ValueError if they are invalid."""
    is_clinical = options.pop("world") == "clinical"
    given = {name: value for name, value in options.items() if value is not None}
    used, other = (CLINICAL_OPTIONS, PLAIN_OPTIONS) if is_clinical else (PLAIN_OPTIONS, CLINICAL_OPTIONS)
    if wrong := [f"--{name.replace('_', '-')}" for name in other if name in given]:
        raise ValueError(f"{', '.join(wrong)}: of the {'plain' if is_clinical else 'clinical'} world only; see --world")
    if is_clinical:
        given["clinical"] = ClinicalSettings(**{name: given.pop(name) for name in used if name in given})
        given.setdefault("strata", CLINICAL_STRATA)
    return CohortSettings(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.synthetic",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make; it must be new or empty")
    add("--num-slides", type=int, required=True, metavar="N", help="number of slides")
    add(
        "--world",
        choices=["plain", "clinical"],
        default="plain",
        help="plain: all lengths are shares of the side; clinical: lesions of clinical sizes on slides of real size, "
        "which only the chromatin of their nuclei shows, at 1.5 um/px and finer (default plain)",
    )
    add(
        "--side-px",
        type=int,
        metavar="PX",
        help="side of the slides in pixels: 2048 to 120000, in the clinical world 40000 to 120000 "
        "(clinical: drawn between 15 and 30 mm for each slide)",
    )
    add("--seed", type=int, required=True, metavar="S", help="seed; equal arguments give equal bytes")
    add(
        "--decoys",
        type=int,
        metavar="N",
        help="plain world: decoys of a negative slide; a positive one has one less (default 3)",
    )
    add(
        "--hint",
        type=float,
        metavar="H",
        help="plain world: colour difference of lesions at low power, 0 to 1 (default 0)",
    )
    add(
        "--mean-candidates",
        type=float,
        metavar="N",
        help="clinical world: mean number of candidates (lesion and decoys) of a slide, 1 to 40 (default 12)",
    )
    add(
        "--contrast",
        type=float,
        metavar="LEVELS",
        help="clinical world: grey levels by which candidates are darker than other tissue, 0 to 60 (default 25)",
    )
    add("--positive", type=float, default=0.5, metavar="SHARE", help="share of slides with a lesion (default 0.5)")
    add(
        "--strata",
        type=_parse_weights,
        metavar="W",
        help="weights of the strata (default macro=1,micro=1,itc=0; clinical macro=2,micro=5,itc=3)",
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
