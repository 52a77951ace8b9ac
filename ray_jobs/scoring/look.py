"""Drawing the zooms into a few slides, by a trained or an untrained network."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from magnet.zoom import MagNet
from ray_jobs.models import checkpoints, registry
from ray_jobs.models.checkpoints import NamedModel
from ray_jobs.scoring.rows import score_slides
from ray_jobs.scoring.scorer import complete_row
from ray_jobs.tracking import mlflow_run
from service.cohort.manifest import Slide
from service.settings.score import ZoomSettings
from service.settings.train import read_train_settings
from service.slides.reader import RegionReader


def draw_slides(uris: Sequence[str], model: MagNet, named: NamedModel, out: str) -> int:
    """Draw the zoom into each slide and print one line per slide.

    Args:
        uris: absolute paths or URIs of the slides.
        model: network in evaluation mode.
        named: what the pictures call the network.
        out: folder for the pictures, a path or URI.

    Returns:
        The number of slides that could not be read.
    """
    slides = [_make_slide(number, uri) for number, uri in enumerate(uris)]
    num_failed = 0
    with RegionReader() as reader:
        for scored in score_slides(model, slides, reader, ZoomSettings(gate=None), keep_views=True):
            row = complete_row(scored, named, reader, out, pictures=True)
            num_failed += row["status"] != "scored"
            print(f"{row['slide_id']}: {_summarize(row)}")
    return num_failed


def make_untrained(config: str) -> tuple[MagNet, NamedModel]:
    """Create the network of a training's config file with random weights.

    Published weights are not loaded: they would not change which regions an untrained network takes.
    """
    # The seed of the settings, so that the same command draws the same pictures.
    settings = read_train_settings(config)
    torch.manual_seed(settings.recipe.seed)
    model = MagNet(settings.model, to_be_loaded=True).eval()
    return model, NamedModel("", f"untrained network of {Path(config).name}", "", "", 0.5)


def load_trained(name: str, storage: str) -> tuple[MagNet, NamedModel]:
    """Load a trained network.

    Args:
        name: a name that `registry.resolve` takes.
        storage: folder of the runs.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, version = registry.resolve(name, mlflow_run.tracking_uri(storage), Path(folder))
        model, threshold = checkpoints.load_model(checkpoint), checkpoints.read_info(checkpoint).threshold
        digest = hashlib.sha256((checkpoint / checkpoints.MODEL_FILE).read_bytes()).hexdigest()
    return model, NamedModel("", name, version, digest, threshold)


def _make_slide(number: int, uri: str) -> Slide:
    name = PurePosixPath(urlsplit(uri).path).stem
    return Slide(row=number, slide_id=name, uri=uri, patient_id=name)


def _summarize(row: Mapping[str, Any]) -> str:
    if row["status"] != "scored":
        return f"{row['status']}: {row['reason']}"
    return f"{row['num_regions']} regions, {row['bytes_read'] / 1e6:.2f} MB read: {row['picture']}"
