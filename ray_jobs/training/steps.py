"""One worker's part of each step: slides are opened in advance, left out once lost, and computed in parts that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from magnet.plan import next_smaller_micro_batch
from magnet.windows import WindowRequest, Windows, wrap_in_frames
from ray_jobs.training.input.micro_batch import MicroBatch, StepInput
from ray_jobs.training.learner import Learner, NotFiniteError, TooLargeError
from ray_jobs.training.memory.fit import DoesNotFitError
from ray_jobs.training.quarantine import Quarantine, SlideLostError, fetch_or_lose, raise_lost
from ray_jobs.training.record.epoch_sums import Sums, add, sum_reads
from ray_jobs.training.record.recorder import Recorder
from ray_jobs.training.task import Task
from service.slides.reader_protocol import Batch, Reader


@dataclass(frozen=True, slots=True)
class StepResult:
    """This worker's part of a step that was taken."""

    sums: Sums
    """Sums over its slides, gradient norms, and what reading took."""
    lost: dict[str, str]
    """Reason by URI of each slide that it lost."""


class Steps:
    """Takes the steps of a training, one at a time.

    Args:
        task: the training.
        learner: takes the optimizer steps.
        reader: reads regions.
        quarantine: slides that are lost; steps leave them out and do not change it.
        recorder: prints and tracks that micro-batches became smaller.
    """

    def __init__(
        self, task: Task, learner: Learner, reader: Reader, quarantine: Quarantine, recorder: Recorder
    ) -> None:
        self.task, self.learner, self.reader = task, learner, reader
        self.quarantine, self.recorder = quarantine, recorder
        self.uris = task.uris
        self.micro_batch = task.settings.recipe.micro_batch
        """Slides that are computed at once; fewer than are streamed together, once those exceeded the memory."""

    def open_ahead(self, micro_batches: Iterator[MicroBatch], first_step: int) -> Iterator[list[StepInput]]:
        """Open this worker's micro-batches and yield them step by step, with an empty list for a step without any.

        Args:
            micro_batches: stream of this worker, from `first_step` on.
            first_step: step to start at.
        """
        coming = next(micro_batches, None)
        for step in range(first_step, self.task.order.num_steps):
            # Steps are counted and not read off the stream: a worker without a micro-batch takes part in each step too.
            inputs: list[StepInput] = []
            while coming is not None and coming.step == step:
                inputs.extend(self._open(part, {}) for part in coming.split(self.micro_batch))
                coming = next(micro_batches, None)
            yield inputs

    def take(self, step: int, inputs: Sequence[StepInput], pool: Executor) -> StepResult:
        """Take one step, in micro-batches as small as the memory requires.

        Args:
            step: number of the step, from 0.
            inputs: this worker's micro-batches.
            pool: threads that fetch.

        Raises:
            NotFiniteError: the loss is not finite; the message names the slides of the step.
            DoesNotFitError: one slide at a time exceeds the memory.
        """
        while True:
            # Opened ahead: since then slides may have been lost, and the micro-batch may have become smaller.
            inputs = [part for step_input in inputs for part in self._renew(step_input)]
            try:
                return self._take(step, inputs, pool)
            except TooLargeError as error:
                self._halve(error)

    def _open(self, micro_batch: MicroBatch, lost_since: Mapping[str, str]) -> StepInput:
        """Open the slides of a micro-batch, except those that are lost or cannot be opened.

        Args:
            micro_batch: as it was streamed.
            lost_since: reason by URI of slides, also of others, that were lost since.
        """
        uris = {self.uris[slide] for slide in micro_batch.slides}
        lost = {self.uris[slide]: reason for slide, reason in micro_batch.lost.items()}
        lost |= {uri: reason for uri, reason in lost_since.items() if uri in uris}
        while True:
            gone = lost.keys() | self.quarantine.lost.keys()
            readable = micro_batch.without({slide for slide in micro_batch.slides.tolist() if self.uris[slide] in gone})
            # A reader opens a batch as a whole: after a loss all other slides are opened again.
            try:
                with raise_lost([self.uris[slide] for slide in readable.slides]):
                    batch = self.reader.batch([self.uris[slide] for slide in readable.slides])
            except SlideLostError as error:
                lost[error.uri] = error.reason
                continue
            return self._step_input(micro_batch, readable, batch, lost)

    def _step_input(
        self, streamed: MicroBatch, readable: MicroBatch, batch: Batch, lost: Mapping[str, str]
    ) -> StepInput:
        """Describe an open micro-batch to the learner."""
        uris = [self.uris[slide] for slide in readable.slides]

        def fetch(request: WindowRequest) -> Windows:
            # The root views came with the stream; all other regions are read now.
            return readable.roots if request.layer == 0 else batch.fetch(request)

        return StepInput(
            index=readable.index,
            side_px_B=batch.side_px,
            fetch=wrap_in_frames(fetch_or_lose(fetch, uris), readable.frames),
            label_B=torch.tensor([float(self.task.train[slide].label or 0) for slide in readable.slides]),
            uris=uris,
            counters=batch.counters,
            lost=lost,
            streamed=streamed,
        )

    def _renew(self, step_input: StepInput) -> list[StepInput]:
        """Open a micro-batch again, in parts that fit and without slides lost since, if that changes anything."""
        streamed = step_input.streamed
        assert streamed is not None, "every input of this class was streamed"
        if len(streamed.slides) > self.micro_batch:
            return [self._open(part, step_input.lost) for part in streamed.split(self.micro_batch)]
        if any(uri in self.quarantine.lost for uri in step_input.uris):
            return [self._open(streamed, step_input.lost)]
        return [step_input]

    def _halve(self, error: TooLargeError) -> None:
        """Make micro-batches smaller from now on. Batch, learning rate and order of the slides stay the same."""
        size = next_smaller_micro_batch(self.micro_batch)
        if size is None:
            raise DoesNotFitError(
                f"{error}, although it has one slide. Take fewer regions per parent (model.zoom.schedule), a smaller "
                f"encoder, model.classifier.checkpointing=true or recipe.precision=bf16"
            ) from error
        self.recorder.log_smaller_micro_batch(str(error), self.micro_batch, size)
        self.micro_batch = size

    def _take(self, step: int, inputs: Sequence[StepInput], pool: Executor) -> StepResult:
        """Take a step with the micro-batches as they are."""
        counters = [count for step_input in inputs for count in step_input.counters]
        lost = {uri: reason for step_input in inputs for uri, reason in step_input.lost.items()}

        def retry(failed: StepInput, error: SlideLostError) -> StepInput | None:
            assert failed.streamed is not None, "every input of this class was streamed"
            rest = self._open(failed.streamed, {**failed.lost, error.uri: error.reason})
            lost.update(rest.lost)
            counters.extend(rest.counters)  # in addition to those of the first opening, whose reads took time too
            return rest if rest.uris else None

        try:
            sums = self.learner.step(step, [step_input for step_input in inputs if step_input.uris], pool, retry)
        except NotFiniteError as error:  # the learner does not know which slides it has
            raise NotFiniteError(f"{error}. {self._advice(step)}") from error
        return StepResult(add(sums, sum_reads(counters), {"steps": 1}), lost)

    def _advice(self, step: int) -> str:
        """Return the slides of the step, of all workers, and what to do about a loss that is not finite."""
        order = self.task.order
        positions = [order.micro_batch_of(step, index) for index in range(order.micro_batches_per_step)]
        ids = [self.task.train[slide].slide_id for part in positions for slide in order.slides(part)]
        return (
            f"The step's slides: {', '.join(ids)}. Lower recipe.learning_rate, set recipe.clip_norm, or use "
            f"precision fp32"
        )
