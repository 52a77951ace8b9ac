"""What `learn.py` and `ablate.py` train and how they judge it; see there."""

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
from ray_jobs.training.evaluate import zooms_of
from service.cohort.manifest import Slide, load_manifest
from service.cohort.outlines import HIT, Outlines, covered, read_outlines
from service.settings.train import TrainSettings
from service.slides.reader import RegionReader
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

RATE_STEPS = 6
"""Steps of a throw-away training by which the time of a step is known."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A cohort with outlines."""

    train: tuple[Slide, ...]
    test: tuple[Slide, ...]
    lesions: Outlines
    decoys: Outlines
    reader: RegionReader


@dataclass
class Judged:
    """How an arm does on the held-out slides."""

    labels: list[int] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    """Of positive slides: whether a last box hit the lesion; of negative ones False."""
    on_candidates: list[float] = field(default_factory=list)
    """Share of the last boxes' area on the lesion or decoys."""
    half_sides: list[list[Floats]] = field(default_factory=list)
    """Per slide and layer 1 to L, in root coordinates."""
    patches: float = 0.0
    cpu_s: float = 0.0
    """Of the training."""
    steps: int = 0

    def report(self) -> dict[str, object]:
        """Figures of this seed; strata as `magnet.metrics` names them."""
        found = auroc_by_stratum(self.labels, self.scores, self.strata)
        result: dict[str, object] = {
            "auroc": {name: round(one.auroc, 4) for name, one in found.items()},
            "interval": {name: [round(one.low, 4), round(one.high, 4)] for name, one in found.items()},
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
    """A cohort as the tools write them; without decoys' outlines where a tool writes none."""
    manifest = load_manifest(str(folder / "manifest.csv"), need_labels=True)
    decoys = folder / "decoys.geojson"
    test = manifest.split("test")
    if not test:
        raise SystemExit(f"{folder}: the manifest has no slides of split test to judge on")
    return World(
        train=tuple(manifest.split("train")),
        test=tuple(test),
        lesions=read_outlines(str(folder / "lesions.geojson")),
        decoys=read_outlines(str(decoys)) if decoys.exists() else {},
        reader=reader,
    )


def default_cohort(folder: Path, num_slides: int, side_px: int, jobs: int) -> Path:
    """The generated world with decoys and no hint; made once."""
    settings = CohortSettings(
        num_slides=num_slides, side_px=side_px, seed=11, split={"train": 2 / 3, "val": 0.0, "test": 1 / 3}
    )
    make_cohort(folder, settings, jobs=jobs)
    return folder


def steps_within(minutes: float, settings: TrainSettings, world: World, make: Callable[[], MagNet]) -> int:
    """Steps that one core trains in so many minutes of CPU time, by a short trial."""
    began: list[float] = []
    train_bare(
        make(),
        settings.recipe,
        world.train,
        world.reader,
        2 + RATE_STEPS,
        lambda done, _: began.append(time.process_time()) if done >= 2 else None,
    )
    return max(1, round(minutes * 60 * RATE_STEPS / (began[-1] - began[0])))


def magnet_arm(
    settings: TrainSettings, world: World, steps: int, after_step: Callable[[int, MagNet], None] | None = None
) -> tuple[MagNet, Judged]:
    """Train the MagNet and judge it."""
    model = _seeded(settings, lambda: MagNet(settings.model))
    watch = None if after_step is None else (lambda done, _: after_step(done, model))
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps, watch)
    cpu_s = time.process_time() - began
    judged = judge(model, world)
    judged.cpu_s, judged.steps = cpu_s, steps
    return model, judged


def random_arm(settings: TrainSettings, world: World, magnet: Judged) -> Judged:
    """As many boxes as the MagNet took, of its mean sizes, at random on tissue; trained as long."""
    sizes = np.mean([sides[-1] for sides in magnet.half_sides], axis=0).tolist()
    settings = _without_value(settings)
    make = lambda: RandomTissue(settings.model, sizes)  # noqa: E731
    steps = steps_within(magnet.cpu_s / 60, settings, world, make)
    model = _seeded(settings, make)
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps)
    cpu_s = time.process_time() - began
    judged = judge(model, world, seed=settings.recipe.seed)
    judged.cpu_s, judged.steps = cpu_s, steps
    return judged


def thumbnail_arm(settings: TrainSettings, world: World, steps: int) -> Judged:
    """The encoder on the whole slide alone; as many steps as the MagNet."""
    settings = _without_value(settings)
    model = _seeded(settings, lambda: Thumbnail(settings.model))
    began = time.process_time()
    train_bare(model, settings.recipe, world.train, world.reader, steps)
    cpu_s = time.process_time() - began
    judged = judge(model, world)
    judged.cpu_s, judged.steps = cpu_s, steps
    judged.hits, judged.half_sides = [], []  # it does not point anywhere
    return judged


def judge(model: MagNet, world: World, seed: int | None = None) -> Judged:
    """Score the held-out slides, and see where the last boxes lie."""
    result, patches = Judged(), []
    places = None if seed is None else torch.Generator().manual_seed(seed)
    for slide, batch, zoomed in zooms_of(model, world.test, world.reader, "fp32", generator=places):
        regions = [layer[0] for layer in zoomed.trace.regions]
        boxes = to_level0(regions[-1], batch.info[0].size_px)
        lesion, decoy = world.lesions.get(slide.slide_id), world.decoys.get(slide.slide_id)
        either = [shape for shape in (lesion, decoy) if shape is not None]
        result.labels.append(int(slide.label or 0))
        result.strata.append(slide.stratum or "")
        result.scores.append(float(zoomed.logit_B[0]))
        result.hits.append(bool((covered(boxes, lesion) >= HIT).any()))
        result.on_candidates.append(_share(boxes, shapely.union_all(either) if either else None))
        result.half_sides.append([region[:, 0] for region in regions[1:]])
        patches.append(len(regions[-1]))
    result.patches = float(np.mean(patches))
    return result


def chance_on_candidates(world: World) -> float:
    """Share of the held-out slides' tissue that is lesion or decoy; mean over slides, by random points."""
    rng, shares = np.random.default_rng(0), []
    for slide in world.test:
        either = [o for o in (world.lesions.get(slide.slide_id), world.decoys.get(slide.slide_id)) if o is not None]
        thumbnail = torch.from_numpy(world.reader.thumbnail(slide.uri, 256).copy()).permute(2, 0, 1)[None] / 255
        tissue = tissue_mask(thumbnail)[0].numpy()
        size = world.reader.info(slide.uri).size_px
        y, x = np.nonzero(tissue)
        at = (np.stack([x, y], 1) + rng.random((len(x), 2))) * np.array(size) / np.array(tissue.shape[::-1])
        inside = shapely.contains_xy(shapely.union_all(either), at[:, 0], at[:, 1]) if either else np.zeros(len(at))
        shares.append(float(np.mean(inside)))
    return float(np.mean(shares))


def difference(ours: Sequence[Judged], others: Sequence[Judged], draws: int = 2000) -> dict[str, dict[str, float]]:
    """AUROC, ours less another arm's, mean over seeds, with a 95 % interval over slides.

    By group: all slides, and the positive slides of each stratum against all negative ones. The slides are drawn anew
    within each class, the same ones for both arms and all seeds.
    """
    label, stratum = np.array(ours[0].labels), np.array(ours[0].strata)
    groups = {"all": label == 1} | {str(name): stratum == name for name in np.unique(stratum[label == 1])}
    scores = (np.array([one.scores for one in ours]), np.array([one.scores for one in others]))
    negative = np.flatnonzero(label == 0)
    return {name: _difference(scores, np.flatnonzero(chosen), negative, draws) for name, chosen in groups.items()}


def _difference(
    scores: tuple[Floats, Floats], positive: NDArray[np.intp], negative: NDArray[np.intp], draws: int
) -> dict[str, float]:
    """Of some positive slides and the negative ones; scores (S, slides) of two arms."""
    wins = [_wins(arm[:, positive], arm[:, negative]) for arm in scores]
    gap = (wins[0].mean(0) - wins[1].mean(0)).astype(np.float64)  # P, Q
    rng = np.random.default_rng(0)
    drawn = [
        gap[np.ix_(rng.choice(len(positive), len(positive)), rng.choice(len(negative), len(negative)))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": round(float(gap.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _wins(positive: Floats, negative: Floats) -> Floats:
    """For each seed whether a positive scores above a negative, a tie half; (S, P, Q)."""
    first, second = positive[:, :, None], negative[:, None, :]
    return np.asarray((first > second) + 0.5 * (first == second))


def _seeded(settings: TrainSettings, make: Callable[[], MagNet]) -> MagNet:
    torch.manual_seed(settings.recipe.seed)
    return make()


def _without_value(settings: TrainSettings) -> TrainSettings:
    return replace(settings, recipe=replace(settings.recipe, value_weight=0.0, auxiliary_weight=0.0))


def _share(boxes: Floats, outline: shapely.Geometry | None) -> float:
    area = boxes[:, 2] ** 2
    return float((covered(boxes, outline) * area).sum() / area.sum())
