"""The training loop: one worker's attempt, from the newest checkpoint to the last step or to an error.

What a step does follows from the seed, the number of the step, the weights and the list of lost slides alone. So an
attempt that starts from a checkpoint repeats what the one before would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext

from magnet.health import ViewedRegions
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.training import resume
from ray_jobs.training.agreement import GroupStatus, WorkerStatus
from ray_jobs.training.evaluate import Evaluation, evaluate
from ray_jobs.training.group import gather
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.prefetch import FetchPool, prefetch
from ray_jobs.training.learner import Learner
from ray_jobs.training.memory.peaks import measure_peak_bytes, measure_peak_memory
from ray_jobs.training.preemption import PreemptedError, PreemptionNotice
from ray_jobs.training.protocols import Monitor, ProgressSink, ReaderOpener, Reporter, Stream, Tracker
from ray_jobs.training.quarantine import Quarantine
from ray_jobs.training.record.epoch_end import advise_on_waiting, measure_region_health
from ray_jobs.training.record.epoch_sums import Sums, add, add_workers, compute_epoch_metrics
from ray_jobs.training.record.progress import print_line
from ray_jobs.training.record.recorder import Recorder
from ray_jobs.training.steps import StepResult, Steps
from ray_jobs.training.task import Task
from ray_jobs.training.timer import StepTimer
from service.errors import MagnetError
from service.slides.reader_protocol import Reader

STEPS_TO_PEAK = 2
"""Steps after which the memory has been at its peak: the optimizer has its state from the second step on."""


class Attempt:
    """One worker's attempt at a training.

    Args:
        task: the training.
        learner: model and optimizer; they are set to the newest checkpoint.
        reader: reads regions.
        rank: rank of this worker; the first writes checkpoints and the record.
        num_workers: number of workers in the group.
        tracker: takes the record; None on all workers but the first.
        monitor: logs the load of this machine; None: nothing does.
        report: receives the metrics of each epoch, on every worker.
        predicted_bytes: predicted peak memory of a step, to be compared with the first steps; None: not predicted.
        notice: notice that a worker's machine is about to be taken away; None: there is never any.
        cold_reader: opens a reader without cached bytes for each validation, so that the bytes of a slide count as if
            it had never been read; None: validation uses `reader`.
        record_progress: takes the progress of the job from the first worker; None: nobody reads it.
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
        monitor: Monitor | None = None,
        report: Reporter | None = None,
        predicted_bytes: int | None = None,
        notice: PreemptionNotice | None = None,
        cold_reader: ReaderOpener | None = None,
        record_progress: ProgressSink | None = None,
    ) -> None:
        self.task, self.learner, self.order = task, learner, task.order
        self.rank, self.num_workers = rank, num_workers
        self.report, self.predicted_bytes, self.notice = report, predicted_bytes, notice
        self.cold_reader = cold_reader or (lambda: nullcontext(reader))
        self.store = CheckpointStore(task.folder, get_store_deadline_s())
        self.recorder = Recorder(task, tracker, monitor, record_progress)
        self.quarantine = Quarantine(len(task.train) + len(task.val), task.settings.compute.quarantine_share)
        self.steps = Steps(task, learner, reader, self.quarantine, self.recorder)
        self.step = 0
        """Number of steps done."""
        self.sums: Sums = {}
        """Sums over this worker's part of the epoch so far."""
        self.viewed: Mapping[str, ViewedRegions] = {}
        """Regions viewed on the validation slides at the end of the last epoch, by slide_id."""
        self._timer = StepTimer()
        self._saved_s = time.perf_counter()

    def run(self, stream: Stream) -> None:
        """Train to the last step.

        Args:
            stream: yields this worker's micro-batches from a step on.

        Raises:
            NotFiniteError, QuarantineError, DoesNotFitError: on all workers; a retry would end in the same way.
            PreemptedError: on all workers, after a checkpoint from which the next attempt continues.
        """
        self._restore()
        first_step, recorder = self.step, self.recorder
        recorder.start(first_step)
        num_threads = self.task.settings.model.zoom.num_in_flight
        with FetchPool(num_threads, self._timer.wait) as pool, recorder.monitor:
            for inputs in prefetch(self.steps.open_ahead(stream(first_step), first_step), self._timer.wait):
                if self.step == first_step:  # until now the stream started up, which is no part of a step
                    self._timer.start()

                # Forward pass, backward pass and optimizer; a slide that is lost meanwhile leaves its place empty.
                result = self.steps.take(self.step, inputs, pool)
                self.step += 1
                self.sums = add(self.sums, result.sums, self._timer.lap())

                # From here on all workers know the same: each branch below has collectives, for all workers or none.
                group = GroupStatus.exchange(self._status(result), self.num_workers)
                recorder.log_loss(self.step, group.mean_loss)
                self._quarantine(group.lost)  # after the loss, since it may end the training
                preempted = self._poll_cluster(group) or group.preempted
                recorder.log_progress(self.step, self.sums)
                if self.step == first_step + STEPS_TO_PEAK:
                    self._compare_memory()

                if self.order.epochs_done(self.step) > self.order.epochs_done(self.step - 1):
                    self._end_epoch()
                elif group.checkpoint_due or preempted:
                    self._save({}, None)
                else:
                    continue
                if preempted and self.step < self.order.num_steps:
                    self._leave()
                recorder.renew_monitor()
                self._timer.start()  # evaluation and checkpoint are no part of a step

    def _restore(self) -> None:
        """Load the newest undamaged checkpoint of the job, if there is one."""
        state = resume.restore(self.store, self.learner, self.rank, self.num_workers)
        if state is None:
            return
        self.step, self.viewed = state.step, state.viewed
        self.sums = state.sums if self.rank == 0 else {}  # they are sums over all workers: only one may count them
        self.quarantine.lost = dict(state.lost)
        if self.rank == 0:
            print_line(f"continuing from the checkpoint after step {self.step}")

    def _status(self, result: StepResult) -> WorkerStatus:
        """Return what this worker reports to the others after a step."""
        minutes = (time.perf_counter() - self._saved_s) / 60
        return WorkerStatus(
            loss=result.sums.get("loss", 0.0),
            num_slides=result.sums["slides"],
            lost=result.lost,
            checkpoint_due=minutes >= self.task.settings.compute.checkpoint_minutes,
            poll_due=self.notice is not None and self.notice.poll_due(),
            preempted=self.notice is not None and self.notice.signalled(),
        )

    def _quarantine(self, lost: Mapping[str, str]) -> None:
        """Leave out lost slides from now on; raises `QuarantineError` if they are too many."""
        new = self.quarantine.admit(lost, self.step)
        self.recorder.log_lost_slides(new, self.quarantine.lost)
        self.quarantine.check()

    def _poll_cluster(self, group: GroupStatus) -> bool:
        """Ask the cluster for an announced preemption, if it is time to; all workers do it together."""
        return self.notice is not None and group.poll_due and self.notice.poll()

    def _compare_memory(self) -> None:
        """Compare the peak memory of the first steps with the prediction, if there is one."""
        if self.predicted_bytes is not None and self.recorder.active:
            micro_batch = self.task.settings.recipe.micro_batch
            self.recorder.log_memory(micro_batch, self.predicted_bytes, measure_peak_bytes(self.learner.model.device))

    def _end_epoch(self) -> None:
        """Evaluate, log, save and report."""
        epoch, validation = self.order.epochs_done(self.step), self._evaluate()
        self._quarantine(validation.lost)
        roi, collapsed = measure_region_health(validation.viewed, self.viewed, self.task.settings.model)
        metrics = compute_epoch_metrics(add_workers(self.sums, self.num_workers), self.num_workers)
        metrics |= {"train/quarantined": float(len(self.quarantine.lost))} | validation.metrics("val") | roi
        metrics |= measure_peak_memory(self.learner.model.device, self.num_workers)
        self.sums, self.viewed = {}, validation.viewed
        warnings = [f"{sentence}; see roi/ in MLflow" for sentence in collapsed] + self._wait_warnings(metrics)
        self.recorder.log_epoch(epoch, self.step, metrics, warnings)
        self._save(metrics, validation)
        # Ray Tune may stop the process in its report: the checkpoint must exist by then.
        if self.report is not None:
            self.report(metrics)

    def _evaluate(self) -> Evaluation:
        """Score the validation slides, shared among the workers."""
        share = self.task.val[self.rank :: self.num_workers]
        slides = [slide for slide in share if slide.uri not in self.quarantine.lost]
        precision = self.task.settings.recipe.precision
        with self.cold_reader() as reader:
            return evaluate(self.learner.model, slides, reader, precision, self.num_workers)

    def _wait_warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Return what to do about an epoch that waited for pixels."""
        micro_batch = self.steps.micro_batch  # by now it may be smaller than that of the settings
        per_worker = math.ceil(self.order.batch // micro_batch / self.num_workers)
        return advise_on_waiting(metrics, self.task.settings.model.zoom.num_in_flight, micro_batch, per_worker)

    def _save(self, metrics: dict[str, float], validation: Evaluation | None) -> None:
        """Publish a checkpoint. A store that fails or is full costs this checkpoint, unless it is the last one."""
        sums = add_workers(self.sums, self.num_workers)  # a collective: before the other workers return
        state = resume.AttemptState(self.step, sums, self.viewed, self.quarantine.lost)
        # Set even if the store fails below: the next attempt to save is then an interval away and not one step.
        self._saved_s = time.perf_counter()
        if self.rank > 0:
            return
        self.recorder.keep()
        try:
            resume.publish(self.store, self.learner, self.task.settings.model, state, metrics, validation)
        except MagnetError as error:
            if self.step == self.order.num_steps:
                raise
            print_line(
                f"warning: no checkpoint after step {self.step}, training continues and tries again later: {error}"
            )

    def _leave(self) -> None:
        """End the attempt, once the checkpoint is written: when one worker ends, Ray stops the others."""
        gather(None, self.num_workers)
        raise PreemptedError(f"a worker's machine is about to be taken away; saved after step {self.step}")
