"""A training that is cut short anywhere goes on as if nothing had happened; what fails under it is told, not hidden.

In one process, on slides that are formulas, without Ray; tests/flows/test_faults.py kills real processes.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.presets import PRESETS
from magnet.windows import Ask, Windows
from magnet.zoom import MagNet
from ray_jobs import checkpoints
from ray_jobs.attempt import Attempt
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.learner import Learner, NotFiniteError
from ray_jobs.quarantine import QuarantineError
from ray_jobs.stream import MicroBatch, read_roots
from ray_jobs.task import Task
from service.counters import ReadCounters
from service.errors import SlideError, StorageError
from service.manifest import Slide
from service.settings import ComputeSettings, TrainSettings

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

    def fetch(self, ask: Ask) -> Windows:
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

    made.learner.step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        made.run(stream)
    return tracker


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine's load: MLflow's own, with threads."""
    monkeypatch.setattr("ray_jobs.attempt.SystemMetrics.renew", lambda self: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeTracker, dict[str, torch.Tensor]]:
    """The training without a fault: what it logs, and its weights at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.attempt.SystemMetrics.renew", lambda self: None)
        tracker, made = train(task(tmp_path_factory.mktemp("whole")))
    return tracker, made.learner.model.state_dict()


SLOW = pytest.mark.slow  # together, they train some twenty networks


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [(1,), pytest.param((2,), marks=SLOW), pytest.param((1, 1, 2), marks=SLOW)], ids=str)
def test_after_any_death_each_step_and_epoch_is_as_without_one(
    whole: Any, tmp_path: Path, deaths: Sequence[int]
) -> None:
    """Step by step, bit for bit: losses, epoch's means, validation, weights. Step 1 is in the midst of an epoch."""
    it = task(tmp_path)
    losses: dict[int, float] = {}
    epochs: dict[int, dict[str, float]] = {}
    for step in deaths:
        cut = train_until(it, step)
        losses, epochs = losses | cut.losses(), epochs | cut.epochs()
    rest, made = train(it)
    assert min(rest.losses()) == max(deaths) + 1  # a checkpoint followed each step: nothing was done twice
    assert losses | rest.losses() == whole[0].losses()
    assert epochs | rest.epochs() == whole[0].epochs()
    assert all(torch.equal(value, whole[1][name]) for name, value in made.learner.model.state_dict().items())


@SLOW
def test_steps_since_the_last_checkpoint_are_repeated_alike(whole: Any, tmp_path: Path) -> None:
    it = task(tmp_path, minutes=1e9)  # none but at the ends of epochs
    cut = train_until(it, 1)
    rest, _ = train(it)
    assert cut.losses().items() <= rest.losses().items()
    assert rest.losses() == whole[0].losses()
    assert rest.epochs() == whole[0].epochs()


@SLOW
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = task(tmp_path)
    train_until(it, 2)
    newest = CheckpointStore(str(tmp_path)).published()[-1]
    torn = Path(newest.folder) / checkpoints.TRAINING_FILE
    torn.write_bytes(torn.read_bytes()[:-1])
    rest, _ = train(it)
    assert "is damaged, its content is not what was published; going back" in caplog.text
    assert min(rest.losses()) == 2
    assert rest.losses().items() <= whole[0].losses().items()
    assert rest.epochs() == whole[0].epochs()


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, room = os.fsync, iter([True] * 4 + [False] + [True] * 100)  # a checkpoint has four files within an epoch

    def fsync(descriptor: int) -> None:
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tracker, _ = train(task(tmp_path))
    assert tracker.losses() == whole[0].losses()
    said = capsys.readouterr().out
    assert "warning: no checkpoint after step 2, training goes on and tries again later" in said
    assert "No space left on device" in said
    assert CheckpointStore(str(tmp_path)).published()[-1].step == 3


@SLOW
def test_the_last_checkpoint_is_not_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        train(task(tmp_path))


def test_a_loss_that_is_no_number_stops_before_the_step_and_names_its_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = task(tmp_path)
    train_until(it, 1)
    tracker = FakeTracker()
    made, stream = attempt(it, FakeReader(), tracker)
    made._restore()
    before = {name: p.detach().clone() for name, p in made.learner.model.named_parameters()}
    monkeypatch.setattr(made.learner, "_backward", lambda zoomed, label_B, sums: sums.update(loss=float("nan")))
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan.*The step's slides: id\d, id\d, id\d, id\d\. Lower"):
        made.run(stream)
    assert all(torch.equal(p, before[name]) for name, p in made.learner.model.named_parameters())
    assert tracker.losses() == {}


# ---------------------------------------------------------------------------------------------------------- lost slides


@pytest.mark.parametrize("layer", [1, *(pytest.param(layer, marks=SLOW) for layer in (-1, 0, 2))])
def test_a_slide_that_turns_unreadable_is_left_out_and_named(whole: Any, tmp_path: Path, layer: int) -> None:
    """When it is opened, when its root is read, and when regions below are: from step 1 on."""
    victim = "s0"
    it = task(tmp_path, epochs=4)
    reader = FakeReader()
    tracker = FakeTracker()
    made, stream = attempt(it, reader, tracker)
    step = made.learner.step

    def breaking(number: int, *args: Any) -> dict[str, float]:
        reader.fails = lambda uri, at: uri == victim and at == layer
        return step(number, *args)

    made.learner.step = breaking  # type: ignore[method-assign]
    made.run(stream)
    assert list(made.quarantine.lost) == [victim]
    assert tracker.tags["quarantined"] == "id0"
    [row] = list(csv.DictReader(io.StringIO(tracker.texts["quarantine.csv"])))
    assert (row["slide_id"], row["uri"]) == ("id0", victim)
    assert ("header is gone" if layer == -1 else f"layer {layer} is torn") in row["reason"]
    assert tracker.epochs()[4]["train/quarantined"] == 1
    assert len(tracker.losses()) == it.order.num_steps  # no step was left out


@SLOW
def test_its_place_stays_empty_whoever_computes_it(tmp_path: Path) -> None:
    """Gradients of a step with a lost slide are the others' alone, divided by the whole batch."""

    def gradients(fails: Callable[[str, int], bool]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        it = task(tmp_path / str(len(list(tmp_path.iterdir()))), epochs=1)
        made, stream = attempt(it, FakeReader(fails), FakeTracker())
        found: dict[str, torch.Tensor] = {}
        named = dict(made.learner.model.named_parameters())
        made.learner.optimizer.register_step_pre_hook(
            lambda *_: found.update({name: p.grad.clone() for name, p in named.items() if name not in found})
        )
        sums = []
        share = made.learner.step
        made.learner.step = lambda *args: sums.append(share(*args)) or sums[-1]  # type: ignore[method-assign, func-returns-value]
        made.run(stream)
        return found, sums[0]

    first = task(tmp_path).order.slides(np.arange(4))
    victim = f"s{first[0]}"
    early = gradients(lambda uri, at: uri == victim and at == -1)
    late = gradients(lambda uri, at: uri == victim and at == 2)
    assert early[1]["slides"] == late[1]["slides"] == 3
    assert early[1]["loss"] == pytest.approx(late[1]["loss"], rel=1e-5)
    for name, gradient in early[0].items():
        torch.testing.assert_close(late[0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@SLOW
def test_lost_slides_stay_lost_after_a_death(tmp_path: Path) -> None:
    it = task(tmp_path)
    torch.manual_seed(0)
    broken = FakeReader(lambda uri, at: uri == "s1" and at == 1)
    made, stream = attempt(it, broken, FakeTracker())
    made.report = lambda metrics: (_ for _ in ()).throw(Killed)  # after the first epoch
    with pytest.raises(Killed):
        made.run(stream)
    tracker, again = train(it)  # the slide can be read again
    assert list(again.quarantine.lost) == ["s1"]
    assert tracker.epochs()[2]["train/quarantined"] == 1


@SLOW
def test_a_lost_validation_slide_has_no_score(tmp_path: Path) -> None:
    _, made = train(task(tmp_path), FakeReader(lambda uri, at: uri == f"s{NUM_TRAIN}" and at >= 1))
    assert list(made.quarantine.lost) == [f"s{NUM_TRAIN}"]
    best = CheckpointStore(str(tmp_path)).best()
    assert best is not None
    scores = json.loads((Path(best.folder) / checkpoints.VALIDATION_FILE).read_text())
    assert scores["slide_id"] == ["id7"]
    assert len(scores["probability"]) == len(scores["label"]) == 1


def test_more_losses_than_the_budget_end_the_training_and_all_are_named(tmp_path: Path) -> None:
    it = task(tmp_path, share=0.25)  # 2 of 8
    tracker = FakeTracker()
    made, stream = attempt(it, FakeReader(lambda uri, at: uri in ("s1", "s3", "s7") and at == 1), tracker)
    with pytest.raises(QuarantineError) as caught:
        made.run(stream)
    assert "3 slides turned unreadable during the training, compute.quarantine_share allows 2" in str(caught.value)
    assert all(f"\n  {uri}: step " in str(caught.value) for uri in ("s1", "s3", "s7"))
    assert tracker.tags["quarantined"].split(", ") == [f"id{uri[1:]}" for uri in made.quarantine.lost]


def test_a_store_that_fails_is_no_fault_of_a_slide(tmp_path: Path) -> None:
    class Away(FakeReader):
        def batch(self, uris: Sequence[str]) -> FakeBatch:
            raise StorageError("the store failed", uri=uris[0])

    made, stream = attempt(task(tmp_path), FakeReader(), FakeTracker())
    made.reader = Away()  # type: ignore[assignment]
    with pytest.raises(StorageError):
        made.run(stream)
    assert made.quarantine.lost == {}


@SLOW
def test_other_slides_of_the_next_step_are_opened_during_this_one(tmp_path: Path) -> None:
    it = task(tmp_path, minutes=1e9)
    reader = FakeReader()
    made, stream = attempt(it, reader, FakeTracker())
    whole, seen = made.learner.step, []

    def step(number: int, *args: Any) -> dict[str, float]:
        done = whole(number, *args)
        seen.append(len(reader.opened))
        return done

    made.learner.step = step  # type: ignore[method-assign]
    made.run(stream)
    per_step = 2 * it.settings.recipe.batch  # once for the roots, once for the training
    assert seen[0] >= 2 * per_step


@SLOW
def test_the_share_of_waiting_is_logged(tmp_path: Path) -> None:
    tracker, _ = train(replace(task(tmp_path)))
    shares = [values["train/wait_share"] for _, values in tracker.points if "train/wait_share" in values]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
