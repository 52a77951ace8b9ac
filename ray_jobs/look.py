"""Draw zooms into a few slides, on this machine, without manifest, cluster or table.

    python -m ray_jobs.look SLIDE... --model models:/magnet@champion --out pictures
    python -m ray_jobs.look SLIDE... --config configs/paper-3layer.yaml --out pictures

A slide is a path or URI. With --config the network is one that has learnt nothing, as a training begins it but for the
published weights. Draws what `score.py` draws: per slide a zoom tree, the regions on the thumbnail, and GeoJSON for
QuPath. Exit status: 0 all slides drawn, 3 some cannot be read, 2 wrong input.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from magnet.zoom import MagNet
from ray_jobs.command_line import command
from ray_jobs.models import checkpoints, registry
from ray_jobs.models.checkpoints import NamedModel
from ray_jobs.scoring.rows import score_slides
from ray_jobs.scoring.scorer import completed
from ray_jobs.tracking import mlflow_run
from service import exit_status
from service.cohort.manifest import Slide
from service.settings.score import ZoomSettings
from service.settings.train import train_settings
from service.slides.reader import RegionReader


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    options = _parser().parse_args(arguments)
    out, slides = command.absolute(options.out), [_slide(n, place) for n, place in enumerate(options.slides)]
    model, named = _untrained(options.config) if options.config else _trained(options.model, options.storage)
    num_failed = 0
    with RegionReader() as reader:
        for scored in score_slides(model, slides, reader, ZoomSettings(gate=None), keep_views=True):
            row = completed(scored, named, reader, out, pictures=True)
            num_failed += row["status"] != "scored"
            print(f"{row['slide_id']}: {_told(row)}")
    return exit_status.SLIDES_FAILED if num_failed else 0


def _told(row: Mapping[str, Any]) -> str:
    if row["status"] != "scored":
        return f"{row['status']}: {row['reason']}"
    return f"{row['num_regions']} regions, {row['bytes_read'] / 1e6:.2f} MB read: {row['picture']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", metavar="SLIDE", help="path or URI (s3://, gs://, az://, https://)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder")
    which.add_argument("--config", help="YAML file of a training: an untrained network")
    parser.add_argument("--out", required=True, help="folder for the pictures, a path or URI")
    parser.add_argument("--storage", help="folder of the runs, if MLFLOW_TRACKING_URI is not set")
    return parser


def _slide(number: int, place: str) -> Slide:
    name = PurePosixPath(urlsplit(place).path).stem
    return Slide(row=number, slide_id=name, uri=command.absolute(place), patient_id=name)


def _untrained(config: str) -> tuple[MagNet, NamedModel]:
    """A network with random weights throughout: published ones do not move a region before training."""
    settings = train_settings(config)
    torch.manual_seed(settings.recipe.seed)
    model = MagNet(settings.model, to_be_loaded=True).eval()
    return model, NamedModel("", f"untrained network of {Path(config).name}", "", "", 0.5)


def _trained(name: str, storage_option: str | None) -> tuple[MagNet, NamedModel]:
    uri = mlflow_run.tracking_uri(command.storage_folder(storage_option))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, version = registry.resolve(name, uri, Path(folder))
        model, threshold = checkpoints.load_model(checkpoint), checkpoints.describe(checkpoint).threshold
        digest = hashlib.sha256((checkpoint / checkpoints.MODEL_FILE).read_bytes()).hexdigest()
    return model, NamedModel("", name, version, digest, threshold)


if __name__ == "__main__":
    command.run(main)
