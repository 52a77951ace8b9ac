"""A model learns where to look, from slide labels alone, in a training of a minute on generated slides.

Scores alone prove nothing here: a classifier of random boxes has good ones too. The tests check where the model looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magnet.controls import RandomTissue
from magnet.regions import from_level0, to_level0
from magnet.sampler import sample
from magnet.windows import WindowRequest
from magnet.zoom import MagNet
from ray_jobs.training.bare_loop import train_bare
from ray_jobs.training.evaluate import zoom_slides
from ray_jobs.training.learner import Learner
from service.cohort.manifest import Slide, load_manifest
from service.cohort.outlines import MIN_HIT_COVERAGE, Outlines, measure_coverage, read_outlines
from service.settings.train import TrainSettings, read_train_settings
from service.slides.reader import RegionReader
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SETTINGS = (
    "model.zoom.schedule=[3,2]",
    "model.zoom.patch_px=64",
    "model.classifier.encoder=test_resnet",
    "recipe.batch=16",
    "recipe.micro_batch=8",
    "recipe.seed=1",
)
NUM_STEPS = 90
COHORT = CohortSettings(
    num_slides=80, side_px=4096, seed=3, hint=0.5, strata={"macro": 1.0}, split={"train": 0.7, "test": 0.3}
)


@dataclass(frozen=True)
class TrainedWorld:
    """A trained model and the slides to test it on."""

    settings: TrainSettings
    learner: Learner
    reader: RegionReader
    test: tuple[Slide, ...]
    lesions: Outlines
    decoys: Outlines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainedWorld:
    """Train a model for a minute, from slide labels alone."""
    folder = tmp_path_factory.mktemp("learning") / "cohort"
    make_cohort(folder, COHORT, jobs=2)
    manifest, settings = (
        load_manifest(str(folder / "manifest.csv"), need_labels=True),
        read_train_settings(None, SETTINGS),
    )
    torch.manual_seed(settings.recipe.seed)
    reader = RegionReader(num_threads=2)
    model = MagNet(settings.model)
    learner = train_bare(model, settings.recipe, manifest.split("train"), reader, NUM_STEPS)
    lesions, decoys = (read_outlines(str(folder / f"{kind}.geojson")) for kind in ("lesions", "decoys"))
    return TrainedWorld(settings, learner, reader, tuple(manifest.split("test")), lesions, decoys)


def last_boxes(model: MagNet, world: TrainedWorld, **options: object) -> dict[str, NDArray[np.float64]]:
    """Return the boxes of the last patches on the held-out positive slides, in level-0 pixels."""
    positive = [slide for slide in world.test if slide.label]
    return {
        slide.slide_id: to_level0(zoomed.trace.regions[-1][0], batch.info[0].size_px)
        for slide, batch, zoomed in zoom_slides(model, positive, world.reader, "fp32", **options)
    }


def hit_rate(boxes: dict[str, NDArray[np.float64]], world: TrainedWorld) -> float:
    """Return the share of slides with a box on the lesion, 0 to 1."""
    return float(
        np.mean([(measure_coverage(box, world.lesions[name]) >= MIN_HIT_COVERAGE).any() for name, box in boxes.items()])
    )


def test_lesions_are_hit_far_more_often_than_by_random_boxes_of_the_same_sizes(world: TrainedWorld) -> None:
    magnet = last_boxes(world.learner.model, world)
    sizes = np.mean([box[:, 2] for box in magnet.values()], axis=0) / COHORT.side_px
    random = RandomTissue(world.settings.model, sizes.tolist())
    by_chance = [
        hit_rate(last_boxes(random, world, generator=torch.Generator().manual_seed(seed)), world) for seed in range(5)
    ]
    assert hit_rate(magnet, world) >= 1.5 * np.mean(by_chance)
    assert hit_rate(magnet, world) >= 0.75


def test_patches_on_lesions_count_as_evidence_and_others_do_not(world: TrainedWorld) -> None:
    """Otherwise the maps would learn to avoid lesions."""
    share = {kind: np.mean(_evidence(world, kind)) for kind in ("lesion", "decoy", "tissue")}
    assert share["lesion"] > 0.5
    assert share["decoy"] < share["lesion"] / 3
    assert share["tissue"] < share["lesion"] / 3


def _evidence(world: TrainedWorld, kind: str) -> list[bool]:
    """Return whether each patch at points of a kind would count as evidence on a positive slide."""
    rng, result = np.random.default_rng(0), []
    model, threshold = world.learner.model.eval(), float(world.learner.negatives.value)
    px = world.settings.model.zoom.patch_px
    for slide in world.test:
        centres = _points(world, slide, kind, rng)
        if not len(centres):
            continue
        batch = world.reader.batch([slide.uri])
        boxes = np.concatenate([centres - px, np.full((len(centres), 1), 2.0 * px)], axis=1)
        region = from_level0(boxes, batch.info[0].size_px)
        windows = batch.fetch(WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, px, 2))
        pixels = torch.from_numpy(windows.pixels).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            view = sample(pixels, torch.from_numpy(windows.place), torch.from_numpy(region), px, method="bilinear")
            logit = model.head(model.encoder(view)[None]).patch_BN[0]
        result += (logit > threshold).tolist()
    return result


def _points(world: TrainedWorld, slide: Slide, kind: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return four points (x, y) inside the lesion or the decoys of a slide, or in its other tissue, level-0 pixels."""
    lesion, decoy = world.lesions.get(slide.slide_id), world.decoys.get(slide.slide_id)
    points = rng.uniform(0, COHORT.side_px, (20_000, 2))
    box = np.concatenate([points - 64, np.full((len(points), 1), 128.0)], axis=1)
    on_lesion, on_decoy = measure_coverage(box, lesion) > 0.99, measure_coverage(box, decoy) > 0.99
    if kind == "tissue":
        image = world.reader.thumbnail(slide.uri, 256).astype(int)
        colour = image[tuple((points * 256 / COHORT.side_px).astype(int).T[::-1])]
        stained = (colour.max(axis=1) - colour.min(axis=1)) > 40
        of_kind = stained & (measure_coverage(box, lesion) == 0) & (measure_coverage(box, decoy) == 0)
    else:
        of_kind = on_lesion if kind == "lesion" else on_decoy
    return points[of_kind][:4]
