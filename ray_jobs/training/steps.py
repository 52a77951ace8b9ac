"""One worker's part of each step: slides opened ahead, left out once lost, cut smaller when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch

from magnet.plan import smaller
from magnet.windows import WindowRequest, Windows, in_frames
from ray_jobs.tracking.mlflow_run import Tracker
from ray_jobs.training.epoch_sums import Sums, added, read_sums
from ray_jobs.training.fit import DoesNotFitError
from ray_jobs.training.learner import Learner, NotFiniteError, Portion, TooLargeError
from ray_jobs.training.progress import say
from ray_jobs.training.quarantine import Quarantine, SlideLostError, losses_of, watched
from ray_jobs.training.stream import MicroBatch
from ray_jobs.training.task import Task
from service.slides.reader_protocol import Batch, Reader


@dataclass(slots=True)
class Opened:
    """A micro-batch with its slides open."""

    micro: MicroBatch
    batch: Batch
    whole: MicroBatch
    """As it was streamed."""
    lost: dict[str, str] = field(default_factory=dict)
    """Slides that could not be read any more and are not in it, and why, by URI."""


class Steps:
    """Takes steps, one at a time.

    Args:
        task: the training.
        learner: takes them.
        reader: of regions.
        quarantine: slides that are lost; only read here.
        tracker: the first worker's.
    """

    def __init__(
        self, task: Task, learner: Learner, reader: Reader, quarantine: Quarantine, tracker: Tracker | None
    ) -> None:
        self.task, self.learner, self.reader = task, learner, reader
        self.quarantine, self.tracker = quarantine, tracker
        self.uris = task.uris
        self.micro_batch = task.settings.recipe.micro_batch
        """Slides that are computed at once: fewer than are streamed together once these ran out of memory."""

    def opened(self, batches: Iterator[MicroBatch], first: int) -> Iterator[list[Opened]]:
        """This worker's micro-batches, step by step. Steps are counted: each has its turn, also one without any."""
        coming = next(batches, None)
        for step in range(first, self.task.order.num_steps):
            mine: list[Opened] = []
            while coming is not None and coming.step == step:
                mine.extend(self._open(piece) for piece in coming.pieces(self.micro_batch))
                coming = next(batches, None)
            yield mine

    def take(self, step: int, work: list[Opened], pool: Executor) -> tuple[Sums, dict[str, str]]:
        """One step, in as small micro-batches as it takes; this worker's sums, and the slides that it lost."""
        while True:
            work = [small for one in work for small in self._cut(one)]
            try:
                return self._try(step, work, pool)
            except TooLargeError as error:
                self._make_smaller(error)

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

    def _try(self, step: int, work: list[Opened], pool: Executor) -> tuple[Sums, dict[str, str]]:
        """The step as it is cut now."""
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
            sums = self.learner.step(step, portions, pool, mend)
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}. {self._advice(step)}") from error
        return added(sums, read_sums(batches), {"steps": 1}), lost

    def _portion(self, one: Opened) -> Portion | None:
        """What the learner wants to know of a micro-batch. The first answer is at hand, the others are read."""
        micro, batch = one.micro, one.batch
        if not len(micro.slides):
            return None

        def fetch(ask: WindowRequest) -> Windows:
            return micro.roots if ask.layer == 0 else batch.fetch(ask)

        label_B = torch.tensor([float(self.task.train[i].label or 0) for i in micro.slides])
        lossy = watched(fetch, [self.uris[i] for i in micro.slides])
        return micro.index, batch.side_px, in_frames(lossy, micro.frames), label_B

    def _advice(self, step: int) -> str:
        """Which slides the step has, whoever computes them, and what to do about a loss that is no number."""
        order = self.task.order
        all_positions = [order.micro_batch_of(step, i) for i in range(order.micro_batches_per_step)]
        seen = [self.task.train[i].slide_id for positions in all_positions for i in order.slides(positions)]
        return (
            f"The step's slides: {', '.join(seen)}. Lower recipe.learning_rate, set recipe.clip_norm, or use "
            f"precision fp32"
        )
