"""One worker's attempt at a training: from the newest checkpoint on, step by step, to the end or to the next fault.

What a step does follows from the seed, the step's number, the weights and the list of lost slides alone, so an attempt
that starts from a checkpoint repeats what the one before would have done. Nothing here knows Ray: micro-batches come
from a callable, and epochs are reported to one.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from magnet.health import Looked
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.tracking.mlflow_run import SystemMetrics, Tracker
from ray_jobs.training import resume
from ray_jobs.training.epoch_end import line, roi_health, waiting
from ray_jobs.training.epoch_sums import Sums, added, epoch_metrics, of_all_workers
from ray_jobs.training.evaluate import Evaluation, evaluate
from ray_jobs.training.group import gathered
from ray_jobs.training.learner import Learner
from ray_jobs.training.memory_use import compare_with_plan, peak_memory
from ray_jobs.training.preemption import Notice, PreemptedError
from ray_jobs.training.prefetch import FetchPool, WaitClock, ahead
from ray_jobs.training.progress import ProgressReporter, say
from ray_jobs.training.quarantine import Quarantine
from ray_jobs.training.steps import Steps
from ray_jobs.training.stream import MicroBatch, store_patience_s
from ray_jobs.training.task import Task
from service.errors import MagnetError
from service.progress.record import Progress
from service.results.spreadsheet import safe_cell
from service.slides.reader_protocol import Reader

STEPS_TO_PEAK = 2
"""Steps after which a training has had its fullest moment: the optimizer's state is there from the second on."""


@dataclass(frozen=True, slots=True)
class News:
    """What the workers tell each other after a step."""

    loss: float
    slides: float
    lost: dict[str, str]
    checkpoint: bool
    """Whether it is time for one; the first worker's clock decides."""
    ask: bool
    """Whether it is time to ask the cluster if a machine is about to go; the first worker's clock decides."""
    leave: bool
    """Whether this worker's machine is about to go."""


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
        notice: that a machine is about to go; None: nobody gives any.
        cold_reader: opens a reader that has nothing at hand, for each validation, whose bytes then are those of a slide
            never seen; None: validation reads through `reader`.
        record_progress: takes the job's progress from the first worker; None: nobody reads it.
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
        notice: Notice | None = None,
        cold_reader: Callable[[], AbstractContextManager[Reader]] | None = None,
        record_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.task, self.learner, self.reader, self.order = task, learner, reader, task.order
        self.rank, self.num_workers = rank, num_workers
        self.tracker, self.report, self.predicted_bytes = tracker, report, predicted_bytes
        self.notice = notice
        self.record_progress = record_progress
        self.cold_reader = cold_reader or (lambda: nullcontext(reader))
        self.store = CheckpointStore(task.folder, store_patience_s())
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
            PreemptedError: on all workers alike, after a checkpoint; the next attempt goes on from there.
        """
        self._restore()
        first, progress = self.step, ProgressReporter(self.step, self.order.num_steps, self.record_progress)
        steps = Steps(self.task, self.learner, self.reader, self.quarantine, self.tracker)
        num_threads = self.task.settings.model.zoom.num_in_flight
        with FetchPool(num_threads, self._clock) as pool, SystemMetrics(self.tracker) as load:
            for work in ahead(steps.opened(stream(first), first), self._clock):
                if self.step == first:  # until now the stream came up: no share of a step
                    self._begin_lap()
                done, lost = steps.take(self.step, work, pool)
                self.step += 1
                self.sums = added(self.sums, done, self._lap())
                news = self._tell(done, lost)
                if self.tracker is not None:
                    progress.report(self.step, self.sums)
                    if self.step == first + STEPS_TO_PEAK:
                        self._compare_memory(self.tracker)
                if self.order.epochs_done(self.step) > self.order.epochs_done(self.step - 1):
                    self._end_epoch(steps.micro_batch)
                elif news.checkpoint or news.leave:
                    self._save({}, None)
                else:
                    continue
                if news.leave and self.step < self.order.num_steps:
                    self._leave()
                if self.tracker is not None and self.tracker.recovered():
                    load.renew()
                self._begin_lap()

    def _tell(self, done: Sums, lost: dict[str, str]) -> News:
        """Tell the others of a step, and MLflow; the first worker's news, and whether any worker must leave."""
        minutes = (time.perf_counter() - self._saved_s) / 60
        due = minutes >= self.task.settings.compute.checkpoint_minutes
        ask, leave = (False, False) if self.notice is None else (self.notice.due(), self.notice.given())
        mine = News(done.get("loss", 0.0), done["slides"], lost, checkpoint=due, ask=ask, leave=leave)
        everyone = gathered(mine, self.num_workers)
        slides = sum(news.slides for news in everyone)
        if self.tracker is not None and slides:
            self.tracker.metrics({"train/step_loss": sum(news.loss for news in everyone) / slides}, step=self.step)
            self.tracker.send()
        self._admit({uri: reason for news in everyone for uri, reason in news.lost.items()})
        announced = self.notice is not None and everyone[0].ask and self.notice.announced()
        return replace(everyone[0], leave=announced or any(news.leave for news in everyone))

    def _leave(self) -> None:
        """End the attempt, once the checkpoint is written: when one worker ends, Ray stops the others."""
        gathered(None, self.num_workers)
        raise PreemptedError(f"a worker's machine is about to be taken away; saved after step {self.step}")

    def _admit(self, lost: dict[str, str]) -> None:
        """Leave lost slides out from now on, and name them in MLflow."""
        new = self.quarantine.admit(lost, self.step)
        if new and self.tracker is not None:
            for uri in new:
                say(f"warning: {uri} is left out from now on: {self.quarantine.lost[uri]}")
            ids = {slide.uri: slide.slide_id for slide in (*self.task.train, *self.task.val)}
            table = io.StringIO()
            rows = [(ids[uri], uri, reason) for uri, reason in self.quarantine.lost.items()]
            csv.writer(table).writerows([("slide_id", "uri", "reason"), *(map(safe_cell, row) for row in rows)])
            self.tracker.note_text(table.getvalue(), "quarantine.csv")
            self.tracker.note_tags({"quarantined": ", ".join(ids[uri] for uri in self.quarantine.lost)[:5000]})
            self.tracker.keep()
        self.quarantine.check()

    def _begin_lap(self) -> None:
        self._lap_s = time.perf_counter()
        self._clock.take()

    def _lap(self) -> Sums:
        """Seconds since the last lap, and those of them that passed without pixels."""
        now_s = time.perf_counter()
        lap = {"step_s": now_s - self._lap_s, "wait_s": self._clock.take()}
        self._lap_s = now_s
        return lap

    def _compare_memory(self, tracker: Tracker) -> None:
        """Of the first steps, with what was predicted for them."""
        if self.predicted_bytes is not None:
            size = self.task.settings.recipe.micro_batch
            compare_with_plan(tracker, self.learner.model.device, size, self.predicted_bytes)

    def _end_epoch(self, micro_batch: int) -> None:
        """Evaluate, log and publish a checkpoint.

        Args:
            micro_batch: slides that are computed at once by now.
        """
        task, epoch = self.task, self.order.epochs_done(self.step)
        mine = [slide for slide in task.val[self.rank :: self.num_workers] if slide.uri not in self.quarantine.lost]
        precision = task.settings.recipe.precision
        with self.cold_reader() as reader:
            validation = evaluate(self.learner.model, mine, reader, precision, self.num_workers)
        self._admit(dict(validation.lost))
        roi, collapsed = roi_health(validation.looked, self.looked, task.settings.model)
        metrics = epoch_metrics(of_all_workers(self.sums, self.num_workers), self.num_workers)
        metrics |= {"train/quarantined": float(len(self.quarantine.lost))} | validation.metrics("val") | roi
        metrics |= peak_memory(self.learner.model.device, self.num_workers)
        self.sums, self.looked = {}, validation.looked
        if self.tracker is not None:
            for sentence in collapsed:
                say(f"warning: {sentence}; see roi/ in MLflow")
            in_flight = task.settings.model.zoom.num_in_flight
            per_worker = math.ceil(self.order.batch // micro_batch / self.num_workers)
            for sentence in waiting(metrics, in_flight, micro_batch, per_worker):
                say(f"warning: {sentence}")
            say(f"epoch {epoch}/{task.settings.recipe.epochs}  {line(metrics)}")
            self.tracker.metrics(metrics | {"step": self.step}, step=epoch)
        self._save(metrics, validation)
        if self.report is not None:
            self.report(metrics)

    def _save(self, metrics: dict[str, float], validation: Evaluation | None) -> None:
        """Publish a checkpoint. A store that fails or is full costs this one, unless it is the last."""
        state = resume.State(self.step, of_all_workers(self.sums, self.num_workers), self.looked, self.quarantine.lost)
        self._saved_s = time.perf_counter()
        if self.rank > 0:
            return
        if self.tracker is not None:
            self.tracker.keep()
        try:
            resume.publish(self.store, self.learner, self.task.settings.model, state, metrics, validation)
        except MagnetError as error:
            if self.step == self.order.num_steps:
                raise
            say(f"warning: no checkpoint after step {self.step}, training goes on and tries again later: {error}")

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint of this job, if there is any."""
        state = resume.restore(self.store, self.learner, self.rank, self.num_workers)
        if state is None:
            return
        self.step, self.looked = state.step, state.looked
        self.sums = state.sums if self.rank == 0 else {}
        self.quarantine.lost = dict(state.lost)
        if self.rank == 0:
            say(f"going on from the checkpoint after step {self.step}")
