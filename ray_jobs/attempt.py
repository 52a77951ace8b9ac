"""One worker's attempt at a training: from the newest checkpoint on, step by step, to the end or to the next fault.

What a step does follows from the seed, the step's number, the weights and the list of lost slides alone, so an attempt
that starts from a checkpoint repeats what the one before would have done. Nothing here knows Ray: micro-batches come
from a callable, and epochs are reported to one.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from magnet.health import Looked, complaints, health, movement
from magnet.plan import smaller
from magnet.windows import Ask, Windows, in_frames
from ray_jobs import checkpoints
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.epoch_sums import Sums, added, epoch_metrics, of_all_workers
from ray_jobs.evaluate import Evaluation, evaluate
from ray_jobs.fit import DoesNotFitError
from ray_jobs.group import gathered
from ray_jobs.learner import IN_FLIGHT, Learner, NotFiniteError, Portion, TooLargeError
from ray_jobs.order import Order
from ray_jobs.progress import Progress, say
from ray_jobs.quarantine import Quarantine, SlideLostError, losses_of, watched
from ray_jobs.stream import MicroBatch
from ray_jobs.tracking import SystemMetrics, Tracker
from ray_jobs.waiting import FetchPool, WaitClock, ahead
from service.errors import MagnetError
from service.manifest import Slide
from service.reading import Batch, Reader
from service.settings import TrainSettings

log = logging.getLogger(__name__)

STEPS_TO_PEAK = 2
"""Steps after which a training has had its fullest moment: the optimizer's state is there from the second on."""


@dataclass(frozen=True, slots=True)
class Task:
    """What each worker is sent."""

    settings: TrainSettings
    train: tuple[Slide, ...]
    val: tuple[Slide, ...]
    tracking_uri: str
    run_id: str
    folder: str
    """Of the job, a path or URI: its checkpoints, and what MLflow has not taken yet."""

    @property
    def order(self) -> Order:
        """The order of this training."""
        recipe = self.settings.recipe
        return Order(
            num_slides=len(self.train),
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            augment=recipe.augment,
        )


@dataclass(slots=True)
class Opened:
    """A micro-batch with its slides open."""

    micro: MicroBatch
    batch: Batch
    whole: MicroBatch
    """As it was streamed."""
    lost: dict[str, str] = field(default_factory=dict)
    """Slides that could not be read any more and are not in it, and why, by URI."""


@dataclass(frozen=True, slots=True)
class News:
    """What the workers tell each other after a step."""

    loss: float
    slides: float
    lost: dict[str, str]
    checkpoint: bool
    """Whether it is time for one; the first worker's clock decides."""


class Attempt:
    """One worker's part.

    Args:
        task: the training.
        learner: its model as configured; it is brought to the newest checkpoint.
        reader: of regions.
        rank: of this worker; the first writes checkpoints and MLflow's record.
        num_workers: of the group.
        tracker: the first worker's.
        report: is told each epoch's metrics, on every worker.
        predicted_bytes: peak memory of a step, by the planner; compared with what the first steps take.
    """

    def __init__(
        self,
        task: Task,
        learner: Learner,
        reader: Reader,
        *,
        rank: int = 0,
        num_workers: int = 1,
        tracker: Tracker | None = None,
        report: Callable[[dict[str, float]], None] | None = None,
        predicted_bytes: int | None = None,
    ) -> None:
        self.task, self.learner, self.reader, self.order = task, learner, reader, task.order
        self.rank, self.num_workers = rank, num_workers
        self.tracker, self.report, self.predicted_bytes = tracker, report, predicted_bytes
        self.micro_batch = task.settings.recipe.micro_batch
        """Slides that are computed at once: fewer than are streamed together once these ran out of memory."""
        self.store = CheckpointStore(task.folder)
        self.uris = [slide.uri for slide in task.train]
        self.step = 0
        self.sums: Sums = {}
        self.looked: Mapping[str, Looked] = {}
        self.quarantine = Quarantine(len(task.train) + len(task.val), task.settings.compute.quarantine_share)
        self._clock = WaitClock()
        self._lap_s = self._saved_s = time.perf_counter()

    def run(self, stream: Callable[[int], Iterator[MicroBatch]]) -> None:
        """Train to the end.

        Args:
            stream: this worker's micro-batches from a step on.

        Raises:
            NotFiniteError, QuarantineError, DoesNotFitError: on all workers alike; trying again would end alike.
        """
        self._restore()
        first, progress = self.step, Progress(self.step, self.order.num_steps)
        with FetchPool(IN_FLIGHT, self._clock) as pool, SystemMetrics(self.tracker) as load:
            for work in ahead(self._open_steps(stream(first), first), self._clock):
                if self.step == first:  # until now the stream came up: no share of a step
                    self._begin_lap()
                done, lost = self._train(work, pool)
                self.step += 1
                self.sums = added(self.sums, done, self._lap())
                news = self._tell(done, lost)
                if self.tracker is not None:
                    progress.tell(self.step, self.sums)
                    if self.step == first + STEPS_TO_PEAK:
                        self._compare_memory(self.tracker)
                if self.order.epochs_done(self.step) > self.order.epochs_done(self.step - 1):
                    self._end_epoch()
                elif news.checkpoint:
                    self.learner.share_statistics()
                    self._save({}, None)
                else:
                    continue
                if self.tracker is not None and self.tracker.recovered():
                    load.renew()
                self._begin_lap()

    # ------------------------------------------------------------------------------------------------------------ steps

    def _open_steps(self, batches: Iterator[MicroBatch], first: int) -> Iterator[list[Opened]]:
        """This worker's micro-batches, step by step. Steps are counted: each has its turn, also one without any."""
        coming = next(batches, None)
        for step in range(first, self.order.num_steps):
            mine: list[Opened] = []
            while coming is not None and coming.step == step:
                mine.extend(self._open(piece) for piece in coming.pieces(self.micro_batch))
                coming = next(batches, None)
            yield mine

    def _open(self, micro: MicroBatch) -> Opened:
        """Open the slides of a micro-batch, but for those that are lost or turn out to be."""
        whole = micro
        lost = {self.uris[i]: reason for i, reason in micro.lost.items()}
        while True:
            gone = lost.keys() | self.quarantine.lost.keys()
            micro = micro.without({i for i in micro.slides.tolist() if self.uris[i] in gone})
            uris = [self.uris[i] for i in micro.slides]
            try:
                with losses_of(uris):
                    return Opened(micro, self.reader.batch(uris), whole, lost)
            except SlideLostError as error:
                lost[error.uri] = error.reason

    def _train(self, work: list[Opened], pool: FetchPool) -> tuple[Sums, dict[str, str]]:
        """One step, in as small micro-batches as it takes; this worker's sums, and the slides that it lost."""
        while True:
            work = [small for one in work for small in self._cut(one)]
            try:
                return self._take_step(work, pool)
            except TooLargeError as error:
                self._make_smaller(error)

    def _cut(self, one: Opened) -> list[Opened]:
        """A micro-batch that was opened ahead, in pieces that fit, without the slides that were lost since."""
        if len(one.whole.slides) > self.micro_batch:
            return [self._open(piece) for piece in one.whole.pieces(self.micro_batch)]
        if any(self.uris[i] in self.quarantine.lost for i in one.micro.slides):
            return [self._open(one.micro)]
        return [one]

    def _make_smaller(self, error: TooLargeError) -> None:
        """Halve the micro-batch, for good. Batch, learning rate and order of the slides stay as they are."""
        size = smaller(self.micro_batch)
        if size is None:
            raise DoesNotFitError(
                f"{error}, although it has one slide. Take fewer regions per parent (model.zoom.schedule), a smaller "
                f"encoder, model.classifier.checkpointing=true or recipe.precision=bf16"
            ) from error
        if self.tracker is not None:
            say(f"warning: {error}: micro-batches of {size} slides from now on instead of {self.micro_batch}")
            self.tracker.note_tags({"memory.micro_batch": f"{size}, out of memory with {self.micro_batch}"})
        self.micro_batch = size

    def _take_step(self, work: list[Opened], pool: FetchPool) -> tuple[Sums, dict[str, str]]:
        """One step of the learner; this worker's sums, and the slides that it lost."""
        opened = {one.micro.index: one for one in work}
        batches = [one.batch for one in opened.values()]
        lost = {uri: reason for one in work for uri, reason in one.lost.items()}

        def mend(index: int, error: SlideLostError) -> Portion | None:
            lost[error.uri] = error.reason
            rest = {i for i in opened[index].micro.slides.tolist() if self.uris[i] == error.uri}
            opened[index] = self._open(opened[index].micro.without(rest))
            lost.update(opened[index].lost)
            batches.append(opened[index].batch)
            return self._portion(opened[index])

        portions = [portion for one in opened.values() if (portion := self._portion(one)) is not None]
        try:
            sums = self.learner.step(self.step, portions, pool, mend)
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}. {self._advice()}") from error
        return added(sums, _costs(batches), {"steps": 1}), lost

    def _portion(self, one: Opened) -> Portion | None:
        """What the learner wants to know of a micro-batch. The first answer is at hand, the others are read."""
        micro, batch = one.micro, one.batch
        if not len(micro.slides):
            return None

        def fetch(ask: Ask) -> Windows:
            return micro.roots if ask.layer == 0 else batch.fetch(ask)

        label_B = torch.tensor([float(self.task.train[i].label or 0) for i in micro.slides])
        lossy = watched(fetch, [self.uris[i] for i in micro.slides])
        return micro.index, batch.side_px, in_frames(lossy, micro.frames), label_B

    def _tell(self, done: Sums, lost: dict[str, str]) -> News:
        """Tell the others of a step, and MLflow; the first worker's news, with the losses of all."""
        minutes = (time.perf_counter() - self._saved_s) / 60
        due = minutes >= self.task.settings.compute.checkpoint_minutes
        everyone = gathered(News(done.get("loss", 0.0), done["slides"], lost, due), self.num_workers)
        slides = sum(news.slides for news in everyone)
        if self.tracker is not None and slides:
            self.tracker.metrics({"train/step_loss": sum(news.loss for news in everyone) / slides}, step=self.step)
            self.tracker.send()
        self._admit({uri: reason for news in everyone for uri, reason in news.lost.items()})
        return everyone[0]

    def _admit(self, lost: dict[str, str]) -> None:
        """Leave lost slides out from now on, and name them in MLflow."""
        new = self.quarantine.admit(lost, self.step)
        if new and self.tracker is not None:
            for uri in new:
                say(f"warning: {uri} is left out from now on: {self.quarantine.lost[uri]}")
            ids = {slide.uri: slide.slide_id for slide in (*self.task.train, *self.task.val)}
            table = io.StringIO()
            rows = [(ids[uri], uri, reason) for uri, reason in self.quarantine.lost.items()]
            csv.writer(table).writerows([("slide_id", "uri", "reason"), *rows])
            self.tracker.note_text(table.getvalue(), "quarantine.csv")
            self.tracker.note_tags({"quarantined": ", ".join(ids[uri] for uri in self.quarantine.lost)[:5000]})
            self.tracker.keep()
        self.quarantine.check()

    def _advice(self) -> str:
        """Which slides the step has, whoever computes them, and what to do about a loss that is no number."""
        all_positions = [self.order.micro_batch_of(self.step, i) for i in range(self.order.micro_batches_per_step)]
        seen = [self.task.train[i].slide_id for positions in all_positions for i in self.order.slides(positions)]
        return (
            f"The step's slides: {', '.join(seen)}. Lower recipe.learning_rate, set recipe.clip_norm, or use "
            f"precision fp32"
        )

    def _begin_lap(self) -> None:
        self._lap_s = time.perf_counter()
        self._clock.take()

    def _lap(self) -> Sums:
        """Seconds since the last lap, and those of them that passed without pixels."""
        now_s = time.perf_counter()
        lap = {"step_s": now_s - self._lap_s, "wait_s": self._clock.take()}
        self._lap_s = now_s
        return lap

    # ------------------------------------------------------------------------------------------- epochs and checkpoints

    def _end_epoch(self) -> None:
        """Evaluate, log and publish a checkpoint."""
        task, epoch = self.task, self.order.epochs_done(self.step)
        self.learner.share_statistics()
        mine = [slide for slide in task.val[self.rank :: self.num_workers] if slide.uri not in self.quarantine.lost]
        precision = task.settings.recipe.precision
        validation = evaluate(self.learner.model, mine, self.reader, precision, self.num_workers)
        self._admit(dict(validation.lost))
        total = of_all_workers(self.sums, self.num_workers)
        metrics = epoch_metrics(total, self.num_workers) | {"train/quarantined": float(len(self.quarantine.lost))}
        metrics |= validation.metrics("val") | self._roi_health(validation.looked) | self._peak_memory()
        self.sums, self.looked = {}, validation.looked
        if self.tracker is not None:
            say(f"epoch {epoch}/{task.settings.recipe.epochs}  {_line(metrics)}")
            self.tracker.metrics(metrics | {"step": self.step}, step=epoch)
        self._save(metrics, validation)
        if self.report is not None:
            self.report(metrics)

    def _roi_health(self, looked: Mapping[str, Looked]) -> dict[str, float]:
        """Where the model looks on the validation slides, as ``roi/...``; says so when a layer has collapsed."""
        if not looked:
            return {}
        model = self.task.settings.model
        figures = health(list(looked.values()), model.zoom.schedule, model.locator.scale_min)
        figures |= movement(self.looked, looked)
        if self.tracker is not None:
            for sentence in complaints(figures, model.zoom.schedule):
                say(f"warning: {sentence}; see roi/ in MLflow")
        return {f"roi/{name}": value for name, value in figures.items()}

    def _compare_memory(self, tracker: Tracker) -> None:
        """Say what the planner predicted and what the card's fullest moment was."""
        if self.predicted_bytes is None:
            return
        taken = torch.cuda.max_memory_allocated(self.learner.model.device)
        say(
            f"memory: {taken / 1e9:.2f} GB at most in the first steps, {self.predicted_bytes / 1e9:.2f} GB predicted "
            f"for micro-batches of {self.task.settings.recipe.micro_batch}"
        )
        gigabytes = {"predicted": self.predicted_bytes / 1e9, "measured": taken / 1e9}
        tracker.note_tags({f"memory.{name}_gb": f"{value:.3f}" for name, value in gigabytes.items()})

    def _peak_memory(self) -> dict[str, float]:
        """Of the fullest GPU, since the training began."""
        if self.learner.model.device.type != "cuda":
            return {}
        mine = torch.cuda.max_memory_allocated(self.learner.model.device) / 1e9
        return {"train/peak_memory_gb": max(gathered(mine, self.num_workers))}

    def _save(self, metrics: dict[str, float], validation: Evaluation | None) -> None:
        """Publish a checkpoint. A store that fails or is full costs this one, unless it is the last."""
        total = of_all_workers(self.sums, self.num_workers)
        self._saved_s = time.perf_counter()
        if self.rank > 0:
            return
        if self.tracker is not None:
            self.tracker.keep()
        threshold = 0.5 if validation is None else validation.threshold
        saved = checkpoints.Saved(self.task.settings.model, self.step, metrics, threshold)
        training = self.learner.state_dict() | {"sums": total, "lost": self.quarantine.lost}
        files = checkpoints.packed(self.learner.model, saved, training | {"looked": _as_tensors(self.looked)})
        if validation is not None:
            files[checkpoints.VALIDATION_FILE] = json.dumps(validation.to_dict()).encode()
        try:
            self.store.publish(files, self.step, metrics.get("val/selection"))
        except MagnetError as error:
            if self.step == self.order.num_steps:
                raise
            say(f"warning: no checkpoint after step {self.step}, training goes on and tries again later: {error}")

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint of this job, if there is any; the first worker chooses it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            newest = self.store.fetch_newest(folder) if self.rank == 0 else None
            newest = gathered(newest, self.num_workers)[0]
            if newest is None:
                return
            if self.rank > 0:
                self.store.fetch(newest, folder)
            checkpoints.load_weights(folder, self.learner.model)
            training = checkpoints.load_training(folder)
        self.learner.load_state_dict(training)
        self.step = newest.step
        self.sums = training["sums"] if self.rank == 0 else {}
        self.looked = _as_looked(training["looked"])
        self.quarantine.lost = dict(training["lost"])
        if self.rank == 0:
            say(f"going on from the checkpoint after step {self.step}")


def _costs(batches: list[Batch]) -> Sums:
    counters = [c for batch in batches for c in batch.counters]
    return {
        "read_s_per_slide": sum(c.wait_s for c in counters),
        "bytes_per_slide": sum(c.bytes for c in counters),
        "requests_per_slide": sum(c.requests for c in counters),
        "decode_s_per_slide": sum(c.decode_s for c in counters),
        "tiles_per_slide": sum(c.tiles for c in counters),
        "cache_hits_per_slide": sum(c.cache_hits for c in counters),
        "disk_hits_per_slide": sum(c.disk_hits for c in counters),
    }


def _line(metrics: Mapping[str, float]) -> str:
    auroc = "no validation AUROC (one class only)" if "val/loss" in metrics else "no validation"
    if "val/auroc" in metrics:
        auroc = "val AUROC {:.3f} [{:.3f}, {:.3f}]".format(
            *(metrics[f"val/auroc{end}"] for end in ("", "_low", "_high"))
        )
    return (
        f"train loss {metrics['train/loss']:.4f}  {auroc}  {metrics['train/slides_per_s']:.1f} slides/s"
        f"  waiting {metrics['train/wait_share']:.0%}"
    )


def _as_tensors(looked: Mapping[str, Looked]) -> dict[str, list[list[torch.Tensor]]]:
    """As a checkpoint holds it."""
    return {
        name: [[torch.from_numpy(layer) for layer in part] for part in (one.regions, one.tissue)]
        for name, one in looked.items()
    }


def _as_looked(tensors: Mapping[str, Any]) -> dict[str, Looked]:
    return {
        name: Looked(*(tuple(layer.numpy() for layer in part) for part in parts)) for name, parts in tensors.items()
    }
