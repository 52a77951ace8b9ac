"""The mechanism that learns where to look, end to end on generated slides: a training of a minute.

Scores alone prove nothing here: a classifier of random boxes has them too. What is tested is where the model looks.
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
from ray_jobs.training.bare_loop import train
from ray_jobs.training.evaluate import zooms_of
from ray_jobs.training.learner import Learner
from service.cohort.manifest import Slide, load_manifest
from service.cohort.outlines import HIT, Outlines, covered, read_outlines
from service.settings.train import TrainSettings, train_settings
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
class Learnt:
    settings: TrainSettings
    learner: Learner
    reader: RegionReader
    test: tuple[Slide, ...]
    lesions: Outlines
    decoys: Outlines


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A model after a minute of training, from slide labels alone."""
    folder = tmp_path_factory.mktemp("learning") / "cohort"
    make_cohort(folder, COHORT, jobs=2)
    manifest, settings = load_manifest(str(folder / "manifest.csv"), need_labels=True), train_settings(None, SETTINGS)
    torch.manual_seed(settings.recipe.seed)
    reader = RegionReader(num_threads=2)
    model = MagNet(settings.model)
    learner = train(model, settings.recipe, manifest.split("train"), reader, NUM_STEPS)
    lesions, decoys = (read_outlines(str(folder / f"{kind}.geojson")) for kind in ("lesions", "decoys"))
    return Learnt(settings, learner, reader, tuple(manifest.split("test")), lesions, decoys)


def last_boxes(model: MagNet, learnt: Learnt, **options: object) -> dict[str, NDArray[np.float64]]:
    """Boxes of the last patches on the held-out positive slides, in level-0 pixels."""
    positive = [slide for slide in learnt.test if slide.label]
    return {
        slide.slide_id: to_level0(zoomed.trace.regions[-1][0], batch.info[0].size_px)
        for slide, batch, zoomed in zooms_of(model, positive, learnt.reader, "fp32", **options)
    }


def found(boxes: dict[str, NDArray[np.float64]], learnt: Learnt) -> float:
    """Share of slides with a box on the lesion."""
    return float(np.mean([(covered(box, learnt.lesions[name]) >= HIT).any() for name, box in boxes.items()]))


def test_lesions_are_found_far_more_often_than_by_random_boxes_of_the_same_sizes(learnt: Learnt) -> None:
    magnet = last_boxes(learnt.learner.model, learnt)
    sizes = np.mean([box[:, 2] for box in magnet.values()], axis=0) / COHORT.side_px
    random = RandomTissue(learnt.settings.model, sizes.tolist())
    by_chance = [
        found(last_boxes(random, learnt, generator=torch.Generator().manual_seed(seed)), learnt) for seed in range(5)
    ]
    assert found(magnet, learnt) >= 1.5 * np.mean(by_chance)
    assert found(magnet, learnt) >= 0.75


def test_patches_on_lesions_count_as_evidence_and_those_on_decoys_and_elsewhere_do_not(learnt: Learnt) -> None:
    """Else the maps would learn to avoid what they should look at."""
    share = {kind: np.mean(_evidence(learnt, kind)) for kind in ("lesion", "decoy", "tissue")}
    assert share["lesion"] > 0.5
    assert share["decoy"] < share["lesion"] / 3
    assert share["tissue"] < share["lesion"] / 3


def _evidence(learnt: Learnt, kind: str) -> list[bool]:
    """Whether each patch at places of a kind would count as evidence on a positive slide."""
    rng, result = np.random.default_rng(0), []
    model, threshold = learnt.learner.model.eval(), float(learnt.learner.negatives.value)
    px = learnt.settings.model.zoom.patch_px
    for slide in learnt.test:
        centres = _places(learnt, slide, kind, rng)
        if not len(centres):
            continue
        batch = learnt.reader.batch([slide.uri])
        boxes = np.concatenate([centres - px, np.full((len(centres), 1), 2.0 * px)], axis=1)
        region = from_level0(boxes, batch.info[0].size_px)
        windows = batch.fetch(WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, px, 2))
        pixels = torch.from_numpy(windows.pixels).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            view = sample(pixels, torch.from_numpy(windows.place), torch.from_numpy(region), px, method="bilinear")
            logit = model.head(model.encoder(view)[None]).patch_BN[0]
        result += (logit > threshold).tolist()
    return result


def _places(learnt: Learnt, slide: Slide, kind: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Four points (x, y) deep inside the lesion or the decoys of a slide, or in its other tissue."""
    lesion, decoy = learnt.lesions.get(slide.slide_id), learnt.decoys.get(slide.slide_id)
    points = rng.uniform(0, COHORT.side_px, (20_000, 2))
    box = np.concatenate([points - 64, np.full((len(points), 1), 128.0)], axis=1)
    on_lesion, on_decoy = covered(box, lesion) > 0.99, covered(box, decoy) > 0.99
    if kind == "tissue":
        image = learnt.reader.thumbnail(slide.uri, 256).astype(int)
        colour = image[tuple((points * 256 / COHORT.side_px).astype(int).T[::-1])]
        stained = (colour.max(axis=1) - colour.min(axis=1)) > 40
        chosen = stained & (covered(box, lesion) == 0) & (covered(box, decoy) == 0)
    else:
        chosen = on_lesion if kind == "lesion" else on_decoy
    return points[chosen][:4]
