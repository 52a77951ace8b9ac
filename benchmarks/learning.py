"""The arms that `learn.py` and `ablate.py` train, and how they are evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from magnet.controls import RandomTissue, Thumbnail
from magnet.metrics import auroc_by_stratum
from magnet.regions import to_level0
from magnet.views import tissue_mask
from magnet.zoom import MagNet
from ray_jobs.training.bare_loop import train_bare
from ray_jobs.training.evaluate import zoom_slides
from service.cohort.manifest import Slide, load_manifest
from service.cohort.outlines import MIN_HIT_COVERAGE, Outlines, measure_coverage, read_outlines
from service.settings.train import TrainSettings
from service.slides.reader import RegionReader
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

RATE_STEPS = 6
"""Steps of a short training that measures the time of a step."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A cohort with outlines of its lesions."""

    train: tuple[Slide, ...]
    test: tuple[Slide, ...]
    lesions: Outlines
    decoys: Outlines
    reader: RegionReader


@dataclass
class ArmResult:
    """The results of an arm on the held-out slides; lists are by slide."""

    labels: list[int] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    """Whether a last box hit the lesion; False for negative slides."""
    on_candidates: list[float] = field(default_factory=list)
    """Share of the area of the last boxes on the lesion or decoys, 0 to 1."""
    half_sides: list[list[Floats]] = field(default_factory=list)
    """Half-sides of the boxes of each layer 1 to L, in root coordinates."""
    patches: float = 0.0
    """Mean number of last patches per slide."""
    cpu_s: float = 0.0
    """CPU time of the training in seconds."""
    steps: int = 0
    """Steps of the training."""

    def report(self) -> dict[str, object]:
        """Return the metrics of this seed; the names of strata are those of `magnet.metrics`."""
        areas = auroc_by_stratum(self.labels, self.scores, self.strata)
        result: dict[str, object] = {
            "auroc": {name: round(area.auroc, 4) for name, area in areas.items()},
            "interval": {name: [round(area.low, 4), round(area.high, 4)] for name, area in areas.items()},
            "patches_per_slide": round(self.patches, 1),
            "cpu_minutes": round(self.cpu_s / 60, 2),
            "steps": self.steps,
        }
        if self.hits:
            strata = np.array([s if y else "negative" for s, y in zip(self.strata, self.labels, strict=True)])
            hits = np.array(self.hits)
            result["hit_rate"] = {
                str(name): round(float(hits[strata == name].mean()), 3)
                for name in np.unique(strata)
                if name != "negative"
            }
            result["on_candidates"] = round(float(np.mean(self.on_candidates)), 3)
        if self.half_sides:
            layers = [np.concatenate(sides) for sides in zip(*self.half_sides, strict=True)]
            result["half_side_by_layer"] = [round(float(sides.mean()), 4) for sides in layers]
        return result


def open_world(folder: Path, reader: RegionReader) -> World:
    """Load a cohort as the cohort tools write it; the outlines of decoys may be missing."""
    manifest = load_manifest(str(folder / "manifest.csv"), need_labels=True)
    decoys = folder / "decoys.geojson"
    test = manifest.split("test")
    if not test:
        raise SystemExit(f"{folder}: the manifest has no slides of split test, which are needed for the evaluation")
    return World(
        train=tuple(manifest.split("train")),
        test=tuple(test),
        lesions=read_outlines(str(folder / "lesions.geojson")),
        decoys=read_outlines(str(decoys)) if decoys.exists() else {},
        reader=reader,
    )


def default_cohort(folder: Path, num_slides: int, side_px: int, jobs: int) -> Path:
    """Generate the cohort with decoys and no hint, unless it exists; return its folder."""
    settings = CohortSettings(
        num_slides=num_slides, side_px=side_px, seed=11, split={"train": 2 / 3, "val": 0.0, "test": 1 / 3}
    )
    make_cohort(folder, settings, jobs=jobs)
    return folder


def steps_within(minutes: float, settings: TrainSettings, world: World, make: Callable[[], MagNet]) -> int:
    """Return the number of steps that take so many minutes of CPU time, from a short training.

    Args:
        minutes: CPU time of the training.
        settings: settings of the training.
        world: the cohort.
        make: makes a model, which is trained for the measurement.
    """
    began: list[float] = []
    train_bare(
        make(),
        settings.recipe,
        world.train,
        world.reader,
        2 + RATE_STEPS,
        # The first two steps are not counted: they open slides and fill caches.
        lambda done, _: began.append(time.process_time()) if done >= 2 else None,
    )
    return max(1, round(minutes * 60 * RATE_STEPS / (began[-1] - began[0])))


def magnet_arm(
    settings: TrainSettings, world: World, steps: int, after_step: Callable[[int, MagNet], None] | None = None
) -> tuple[MagNet, ArmResult]:
    """Train the MagNet and evaluate it."""
    model = _make_seeded(settings, lambda: MagNet(settings.model))
    watch = None if after_step is None else (lambda done, _: after_step(done, model))
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps, watch)
    cpu_s = time.process_time() - began
    result = evaluate_model(model, world)
    result.cpu_s, result.steps = cpu_s, steps
    return model, result


def random_arm(settings: TrainSettings, world: World, magnet: ArmResult) -> ArmResult:
    """Train and evaluate random boxes on tissue: as many as the MagNet's, with their mean sizes, for the same time."""
    sizes = np.mean([sides[-1] for sides in magnet.half_sides], axis=0).tolist()
    settings = _without_value_loss(settings)
    make = lambda: RandomTissue(settings.model, sizes)  # noqa: E731
    steps = steps_within(magnet.cpu_s / 60, settings, world, make)
    model = _make_seeded(settings, make)
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps)
    cpu_s = time.process_time() - began
    result = evaluate_model(model, world, seed=settings.recipe.seed)
    result.cpu_s, result.steps = cpu_s, steps
    return result


def thumbnail_arm(settings: TrainSettings, world: World, steps: int) -> ArmResult:
    """Train and evaluate the encoder on the thumbnail alone, for as many steps as the MagNet."""
    settings = _without_value_loss(settings)
    model = _make_seeded(settings, lambda: Thumbnail(settings.model))
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps)
    cpu_s = time.process_time() - began
    result = evaluate_model(model, world)
    result.cpu_s, result.steps = cpu_s, steps
    result.hits, result.half_sides = [], []  # it looks at the whole slide
    return result


def evaluate_model(model: MagNet, world: World, seed: int | None = None) -> ArmResult:
    """Score the held-out slides, and compare the last boxes with the outlines.

    Args:
        model: trained model.
        world: the cohort.
        seed: seed of random boxes; None: the model has none.
    """
    result, patches = ArmResult(), []
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for slide, batch, zoomed in zoom_slides(model, world.test, world.reader, "fp32", generator=generator):
        regions = [layer[0] for layer in zoomed.trace.regions]
        boxes = to_level0(regions[-1], batch.info[0].size_px)
        lesion, decoy = world.lesions.get(slide.slide_id), world.decoys.get(slide.slide_id)
        candidates = [shape for shape in (lesion, decoy) if shape is not None]
        result.labels.append(int(slide.label or 0))
        result.strata.append(slide.stratum or "")
        result.scores.append(float(zoomed.logit_B[0]))
        result.hits.append(bool((measure_coverage(boxes, lesion) >= MIN_HIT_COVERAGE).any()))
        result.on_candidates.append(_share(boxes, shapely.union_all(candidates) if candidates else None))
        result.half_sides.append([region[:, 0] for region in regions[1:]])
        patches.append(len(regions[-1]))
    result.patches = float(np.mean(patches))
    return result


def chance_on_candidates(world: World) -> float:
    """Return the share of the held-out slides' tissue that is lesion or decoy, mean over slides, from random points."""
    rng, shares = np.random.default_rng(0), []
    for slide in world.test:
        outlines = (world.lesions.get(slide.slide_id), world.decoys.get(slide.slide_id))
        candidates = [outline for outline in outlines if outline is not None]
        thumbnail = torch.from_numpy(world.reader.thumbnail(slide.uri, 256).copy()).permute(2, 0, 1)[None] / 255
        tissue = tissue_mask(thumbnail)[0].numpy()
        size = world.reader.info(slide.uri).size_px
        y, x = np.nonzero(tissue)
        at = (np.stack([x, y], 1) + rng.random((len(x), 2))) * np.array(size) / np.array(tissue.shape[::-1])
        union = shapely.union_all(candidates)  # empty without candidates
        shares.append(float(np.mean(shapely.contains_xy(union, at[:, 0], at[:, 1]))))
    return float(np.mean(shares))


def difference(
    ours: Sequence[ArmResult], others: Sequence[ArmResult], draws: int = 2000
) -> dict[str, dict[str, float]]:
    """Return the difference of AUROC of two arms, mean over seeds, with a 95 % interval over slides.

    By group: all slides, and the positive slides of each stratum against all negative ones. The interval comes from a
    bootstrap within each class, with the same slides for both arms and all seeds.

    Args:
        ours: results of the first arm, by seed.
        others: results of the second arm, by seed.
        draws: number of bootstrap samples.
    """
    label, stratum = np.array(ours[0].labels), np.array(ours[0].strata)
    groups = {"all": label == 1} | {str(name): stratum == name for name in np.unique(stratum[label == 1])}
    scores = (np.array([result.scores for result in ours]), np.array([result.scores for result in others]))
    negative = np.flatnonzero(label == 0)
    return {name: _difference(scores, np.flatnonzero(group), negative, draws) for name, group in groups.items()}


def _difference(
    scores: tuple[Floats, Floats], positive: NDArray[np.intp], negative: NDArray[np.intp], draws: int
) -> dict[str, float]:
    """Return the difference for some positive slides and the negative ones; scores are (S seeds, slides) by arm."""
    wins = [_wins(arm[:, positive], arm[:, negative]) for arm in scores]
    gap = (wins[0].mean(0) - wins[1].mean(0)).astype(np.float64)  # P, Q
    rng = np.random.default_rng(0)
    samples = [
        gap[np.ix_(rng.choice(len(positive), len(positive)), rng.choice(len(negative), len(negative)))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"value": round(float(gap.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _wins(positive: Floats, negative: Floats) -> Floats:
    """Return whether a positive slide scores above a negative one, 1/2 for a tie; (S, P positive, Q negative)."""
    first, second = positive[:, :, None], negative[:, None, :]
    return np.asarray((first > second) + 0.5 * (first == second))


def _make_seeded(settings: TrainSettings, make: Callable[[], MagNet]) -> MagNet:
    """Return a model whose initial weights follow from the seed."""
    torch.manual_seed(settings.recipe.seed)
    return make()


def _without_value_loss(settings: TrainSettings) -> TrainSettings:
    """Return the settings without the losses of locators, which the controls do not have."""
    return replace(settings, recipe=replace(settings.recipe, value_weight=0.0, auxiliary_weight=0.0))


def _share(boxes: Floats, outline: shapely.Geometry | None) -> float:
    """Return the share of the area of boxes that an outline covers, 0 to 1."""
    area = boxes[:, 2] ** 2
    return float((measure_coverage(boxes, outline) * area).sum() / area.sum())
