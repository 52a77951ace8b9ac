"""A training in one process, without Ray, on slides that are formulas: what tests of the training loop share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.presets import PRESETS
from magnet.windows import WindowRequest, Windows
from magnet.zoom import MagNet
from ray_jobs.training.attempt import Attempt
from ray_jobs.training.learner import Learner
from ray_jobs.training.stream import MicroBatch, read_roots
from ray_jobs.training.task import Task
from service.cohort.manifest import Slide
from service.errors import SlideError
from service.settings.train import ComputeSettings, TrainSettings
from service.storage.counters import ReadCounters

SIDE_PX = 4096.0
NUM_TRAIN, NUM_VAL = 6, 2
EVERY_STEP = 1e-9
"""Minutes between checkpoints, for one after each step."""


@dataclass
class FakeReader:
    """Slides s0, s1, ... that are formulas, and become unreadable when asked to."""

    fails: Callable[[str, int], bool] = lambda uri, layer: False
    opened: list[str] = field(default_factory=list)

    def batch(self, uris: Sequence[str]) -> FakeBatch:
        for uri in uris:
            self.opened.append(uri)
            if self.fails(uri, -1):
                raise SlideError("the header is gone", uri=uri)
        return FakeBatch(self, list(uris))


class FakeBatch:
    def __init__(self, reader: FakeReader, uris: list[str]) -> None:
        self.reader, self.uris = reader, uris
        self.side_px = np.full(len(uris), SIDE_PX)
        self.counters = [ReadCounters() for _ in uris]

    def fetch(self, ask: WindowRequest) -> Windows:
        for uri in self.uris:
            if self.reader.fails(uri, ask.layer):
                raise SlideError(f"a tile of layer {ask.layer} is torn", uri=uri)
        rngs = [np.random.default_rng(int(uri[1:])) for uri in self.uris]
        colours = [waves(rng.uniform(-2, 2, (3, 2)).tolist(), rng.uniform(0, 6, 3).tolist()) for rng in rngs]
        return formula_fetch(colours, self.side_px.tolist())(ask)


@dataclass
class FakeTracker:
    """Keeps what it is told."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    uri = run_id = ""

    def metrics(self, values: dict[str, float], *, step: int) -> None:
        self.points.append((step, dict(values)))

    def note_tags(self, values: dict[str, str]) -> None:
        self.tags |= values

    def note_text(self, text: str, path: str) -> None:
        self.texts[path] = text

    def send(self) -> None: ...

    def keep(self) -> None: ...

    def recovered(self) -> bool:
        return False

    def losses(self) -> dict[int, float]:
        """Of each step."""
        found = [(step, values["train/step_loss"]) for step, values in self.points if "train/step_loss" in values]
        assert len({step for step, _ in found}) == len(found)
        return dict(found)

    def epochs(self) -> dict[int, dict[str, float]]:
        """All that follows from the slides and the seed, for each epoch."""
        clocked = ("train/slides_per_s", "train/wait_share", "train/read_s_per_slide", "train/decode_s_per_slide")
        return {
            step: {name: value for name, value in values.items() if name not in clocked}
            for step, values in self.points
            if "step" in values
        }


def slide(number: int) -> Slide:
    return Slide(row=number, slide_id=f"id{number}", uri=f"s{number}", patient_id=f"p{number}", label=number % 2)


def task(folder: Path, *, minutes: float = EVERY_STEP, share: float = 0.0, epochs: int = 2, **recipe: Any) -> Task:
    """Steps of 4 slides in 2 micro-batches: epochs of 6 slides end within the steps 2, 3 and 5, ..."""
    tiny = {"encoder": "test_resnet"}
    model = ModelConfig(
        zoom=ZoomConfig(schedule=(2, 1), map_px=8, view_px=16, patch_px=32, grey_tolerance=None),
        locator=LocatorConfig(**PRESETS["evidence"]["model"].get("locator", {}) | {"channels": 2}),
        classifier=ClassifierConfig(**PRESETS["evidence"]["model"].get("classifier", {}) | tiny | {"hidden": 8}),
        auxiliary=AuxiliaryConfig(encoder=None),
    )
    sizes = {"epochs": epochs, "batch": 4, "micro_batch": 2, "learning_rate": 1e-3, "seed": 3}
    settings = TrainSettings(
        model=model,
        recipe=RecipeConfig(**PRESETS["evidence"]["recipe"] | sizes | recipe),
        compute=ComputeSettings(checkpoint_minutes=minutes, quarantine_share=share),
    )
    slides = [slide(n) for n in range(NUM_TRAIN + NUM_VAL)]
    return Task(settings, tuple(slides[:NUM_TRAIN]), tuple(slides[NUM_TRAIN:]), "", "", str(folder))


Stream = Callable[[int], Iterator[MicroBatch]]


def attempt(it: Task, reader: FakeReader, tracker: FakeTracker) -> tuple[Attempt, Stream]:
    """An attempt in a process that just started, and its stream."""
    torch.manual_seed(it.settings.recipe.seed)
    learner = Learner(MagNet(it.settings.model, to_be_loaded=True), it.settings.recipe, it.order.num_steps)
    made = Attempt(it, learner, reader, tracker=tracker)  # type: ignore[arg-type]  # fakes

    def stream(first: int) -> Iterator[MicroBatch]:
        for step, index in it.order.share(first, 0, 1):
            positions = it.order.micro_batch_of(step, index)
            slides = it.order.slides(positions)
            roots, reasons = read_roots(reader, [it.uris[i] for i in slides], it.settings.model.zoom)  # type: ignore[arg-type]  # fake
            lost = {int(i): reason for i, reason in zip(slides, reasons, strict=True) if reason}
            yield MicroBatch(step, index, slides, it.order.frames(positions), roots, lost)

    return made, stream


def train(it: Task, reader: FakeReader | None = None) -> tuple[FakeTracker, Attempt]:
    """To its end, in one attempt."""
    tracker = FakeTracker()
    made, stream = attempt(it, reader or FakeReader(), tracker)
    made.run(stream)
    return tracker, made


class Killed(BaseException):
    """What no code catches: the process is gone."""


def train_until(it: Task, step: int) -> FakeTracker:
    """An attempt that dies in the midst of a step."""
    tracker = FakeTracker()
    made, stream = attempt(it, FakeReader(), tracker)
    whole = made.learner.step

    def dying(number: int, *args: Any) -> dict[str, float]:
        if number == step:
            raise Killed
        return whole(number, *args)

    made.learner.step = dying  # type: ignore[method-assign]  # a fake in its place
    with pytest.raises(Killed):
        made.run(stream)
    return tracker


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine's load: MLflow's own, with threads."""
    monkeypatch.setattr("ray_jobs.training.attempt.SystemMetrics.renew", lambda self: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeTracker, dict[str, torch.Tensor]]:
    """The training without a fault: what it logs, and its weights at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.training.attempt.SystemMetrics.renew", lambda self: None)
        tracker, made = train(task(tmp_path_factory.mktemp("whole")))
    return tracker, made.learner.model.state_dict()


SLOW = pytest.mark.slow  # together, they train some twenty networks
