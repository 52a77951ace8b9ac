"""Compare a scored cohort with a control: the same classifier on random boxes on tissue.

    python -m ray_jobs.random_control --scores OUT --outlines lesions.geojson [--seed S]

The control shows whether choosing regions helps: its boxes have the same number and sizes as those of the MagNet. OUT
is a folder that `score.py` wrote, from slides with labels. The outlines are GeoJSON in level-0 pixels with the property
slide_id. The classifier was trained on regions that the MagNet chose; `benchmarks/learn.py` compares with a classifier
that was trained on random boxes.
"""

from __future__ import annotations

from ray_jobs.command_line import arguments, command, paths
from ray_jobs.scoring.random_control import compare_scores
from service.cohort.outlines import read_outlines


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = arguments.make_parser("random_control.py", __doc__)
    parser.add_argument("--scores", required=True, metavar="OUT", help="folder that score.py wrote, a path or URI")
    parser.add_argument("--outlines", required=True, help="GeoJSON of the lesions, a path or URI")
    arguments.add_shared(parser, "--seed", default=0, help="seed of the boxes' places")
    options = parser.parse_args(argv)
    for line in compare_scores(paths.to_absolute(options.scores), read_outlines(options.outlines), options.seed):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    command.run(main)
