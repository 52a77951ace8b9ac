"""A training in one process, without Ray, on slides that are formulas: shared by the tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ray_jobs.training.input.roots import stream_locally
from ray_jobs.training.learner import Learner
from ray_jobs.training.protocols import Stream
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
    """Reads slides s0, s1, ... that are formulas; `fails` decides which of them are unreadable at which layer."""

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

    def fetch(self, request: WindowRequest) -> Windows:
        for uri in self.uris:
            if self.reader.fails(uri, request.layer):
                raise SlideError(f"a tile of layer {request.layer} is torn", uri=uri)
        rngs = [np.random.default_rng(int(uri[1:])) for uri in self.uris]
        colours = [waves(rng.uniform(-2, 2, (3, 2)).tolist(), rng.uniform(0, 6, 3).tolist()) for rng in rngs]
        return formula_fetch(colours, self.side_px.tolist())(request)


@dataclass
class FakeTracker:
    """Keeps the record that it receives."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        self.points.append((step, dict(values)))

    def add_tags(self, values: dict[str, str]) -> None:
        self.tags |= values

    def add_text(self, text: str, path: str) -> None:
        self.texts[path] = text

    def send_in_background(self) -> None: ...

    def save_outbox(self) -> None: ...

    def consume_recovery(self) -> bool:
        return False

    def losses(self) -> dict[int, float]:
        """Return the loss of each step."""
        points = [(step, values["train/step_loss"]) for step, values in self.points if "train/step_loss" in values]
        assert len({step for step, _ in points}) == len(points)
        return dict(points)

    def epochs(self) -> dict[int, dict[str, float]]:
        """Return the metrics of each epoch that follow from the slides and the seed, and not from a clock."""
        clocked = ("train/slides_per_s", "train/wait_share", "train/read_s_per_slide", "train/decode_s_per_slide")
        return {
            step: {name: value for name, value in values.items() if name not in clocked}
            for step, values in self.points
            if "step" in values
        }


def make_slide(number: int) -> Slide:
    return Slide(row=number, slide_id=f"id{number}", uri=f"s{number}", patient_id=f"p{number}", label=number % 2)


def make_task(folder: Path, *, minutes: float = EVERY_STEP, share: float = 0.0, epochs: int = 2, **recipe: Any) -> Task:
    """Return a task with steps of 4 slides in 2 micro-batches: epochs of 6 slides end within the steps 2, 3, 5, ..."""
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
    slides = [make_slide(n) for n in range(NUM_TRAIN + NUM_VAL)]
    return Task(settings, tuple(slides[:NUM_TRAIN]), tuple(slides[NUM_TRAIN:]), "", "", str(folder))


def make_attempt(task: Task, reader: FakeReader, tracker: FakeTracker) -> tuple[Attempt, Stream]:
    """Return an attempt, as in a process that just started, and its stream."""
    torch.manual_seed(task.settings.recipe.seed)
    learner = Learner(MagNet(task.settings.model, to_be_loaded=True), task.settings.recipe, task.order.num_steps)
    attempt = Attempt(task, learner, reader, tracker=tracker)  # type: ignore[arg-type]  # fakes

    def stream(first_step: int) -> Any:
        zoom = task.settings.model.zoom
        return stream_locally(reader, task.uris, task.order, zoom, first_step=first_step)  # type: ignore[arg-type]

    return attempt, stream


def train(task: Task, reader: FakeReader | None = None) -> tuple[FakeTracker, Attempt]:
    """Train to the last step in one attempt."""
    tracker = FakeTracker()
    attempt, stream = make_attempt(task, reader or FakeReader(), tracker)
    attempt.run(stream)
    return tracker, attempt


class Killed(BaseException):
    """The process is gone: no code catches this."""


def train_until(task: Task, step: int) -> FakeTracker:
    """Run an attempt that is killed in the middle of a step."""
    tracker = FakeTracker()
    attempt, stream = make_attempt(task, FakeReader(), tracker)
    take_step = attempt.learner.step

    def step_or_die(number: int, *args: Any) -> dict[str, float]:
        if number == step:
            raise Killed
        return take_step(number, *args)

    attempt.learner.step = step_or_die  # type: ignore[method-assign]  # a fake in its place
    with pytest.raises(Killed):
        attempt.run(stream)
    return tracker


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeTracker, dict[str, torch.Tensor]]:
    """The record and the final weights of a training without a fault."""
    tracker, attempt = train(make_task(tmp_path_factory.mktemp("uninterrupted")))
    return tracker, attempt.learner.model.state_dict()


SLOW = pytest.mark.slow  # together, they train some twenty networks
