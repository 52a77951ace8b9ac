"""Draw the zooms into a few slides on this machine, without manifest, cluster or table.

    python -m ray_jobs.look SLIDE... --model models:/magnet@champion --out pictures
    python -m ray_jobs.look SLIDE... --config configs/paper-3layer.yaml --out pictures

A slide is a path or URI. With --config the network is untrained: its weights are random. The pictures are those of
`score.py`: per slide a zoom tree, the regions on the thumbnail, and GeoJSON for QuPath.

Exit status: 0 all slides drawn, 3 some slides cannot be read, 2 wrong input.
"""

from __future__ import annotations

import argparse

from ray_jobs.command_line import arguments, command, paths
from ray_jobs.scoring.look import draw_slides, load_trained, make_untrained
from service import exit_status


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = _make_parser().parse_args(argv)
    if options.config:
        model, named = make_untrained(options.config)
    else:
        model, named = load_trained(options.model, paths.storage_folder(options.storage))
    slides = [paths.to_absolute(place) for place in options.slides]
    num_failed = draw_slides(slides, model, named, paths.to_absolute(options.out))
    return exit_status.SLIDES_FAILED if num_failed else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("look.py", __doc__)
    parser.add_argument("slides", nargs="+", metavar="SLIDE", help="path or URI (s3://, gs://, az://, https://)")
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder")
    network.add_argument("--config", help="YAML file of a training, for an untrained network")
    parser.add_argument("--out", required=True, help="folder for the pictures, a path or URI")
    arguments.add_shared(parser, "--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set")
    return parser


if __name__ == "__main__":
    command.run(main)
