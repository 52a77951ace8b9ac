"""What a training attempt prints and tracks; the first worker does it for all.

Only this module formats messages and names tracked values, so that the loop reads as a loop.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ray_jobs.training.protocols import Monitor, NoMonitor, ProgressSink, Tracker
from ray_jobs.training.record.epoch_end import format_epoch
from ray_jobs.training.record.epoch_sums import Sums
from ray_jobs.training.record.progress import ProgressReporter, print_line
from ray_jobs.training.task import Task
from service.results.spreadsheet import escape_cell

MAX_TAG_LENGTH = 5000
"""Characters of a tag's value, within what MLflow accepts."""


class Recorder:
    """Prints and tracks a training attempt; does nothing on workers that have no tracker.

    Args:
        task: the training.
        tracker: takes the record; None on all workers but the first.
        monitor: logs the load of this machine; None: nothing does.
        record_progress: takes the progress of the job; None: nobody reads it.
    """

    def __init__(
        self,
        task: Task,
        tracker: Tracker | None = None,
        monitor: Monitor | None = None,
        record_progress: ProgressSink | None = None,
    ) -> None:
        self._task, self._tracker = task, tracker
        self.monitor = monitor or NoMonitor()
        self._record_progress = record_progress
        self._progress: ProgressReporter | None = None

    @property
    def active(self) -> bool:
        """Whether this worker is the one that prints and tracks."""
        return self._tracker is not None

    def start(self, first_step: int) -> None:
        """Start to measure progress, at the step that the attempt starts at."""
        self._progress = ProgressReporter(first_step, self._task.order.num_steps, self._record_progress)

    def log_loss(self, step: int, mean_loss: float | None) -> None:
        """Track the loss of a step.

        Args:
            step: number of steps done.
            mean_loss: mean over the slides of all workers; None if the step had none.
        """
        if self._tracker is not None and mean_loss is not None:
            self._tracker.log_metrics({"train/step_loss": mean_loss}, step=step)
            self._tracker.send_in_background()

    def log_progress(self, step: int, sums: Sums) -> None:
        """Print the progress now and then.

        Args:
            step: number of steps done.
            sums: sums over this worker's part of the epoch so far.
        """
        if self._tracker is not None and self._progress is not None:
            self._progress.report(step, sums)

    def log_lost_slides(self, new: Sequence[str], lost: Mapping[str, str]) -> None:
        """Print the slides that are newly lost, and track all lost ones.

        Args:
            new: URIs of the slides that are newly lost; without any, nothing is done.
            lost: reason by URI of all lost slides.
        """
        if self._tracker is None or not new:
            return
        for uri in new:
            print_line(f"warning: {uri} is left out from now on: {lost[uri]}")
        ids = {slide.uri: slide.slide_id for slide in (*self._task.train, *self._task.val)}
        rows = [(ids[uri], uri, reason) for uri, reason in lost.items()]
        self._tracker.add_text(_quarantine_csv(rows), "quarantine.csv")
        self._tracker.add_tags({"quarantined": ", ".join(ids[uri] for uri in lost)[:MAX_TAG_LENGTH]})
        self._tracker.save_outbox()  # a training that loses slides may end soon, and must not take the reasons with it

    def log_smaller_micro_batch(self, reason: str, before: int, after: int) -> None:
        """Print and track that the micro-batch became smaller.

        Args:
            reason: message of the error that led to it.
            before: slides of a micro-batch so far.
            after: slides of a micro-batch from now on.
        """
        if self._tracker is not None:
            print_line(f"warning: {reason}: micro-batches of {after} slides from now on instead of {before}")
            self._tracker.add_tags({"memory.micro_batch": f"{after}, out of memory with {before}"})

    def log_memory(self, micro_batch: int, predicted_bytes: int, peak_bytes: int) -> None:
        """Print and track the peak memory of the first steps, and what was predicted for it.

        Args:
            micro_batch: slides of the micro-batch that the prediction is for.
            predicted_bytes: predicted peak.
            peak_bytes: measured peak.
        """
        if self._tracker is None:
            return
        print_line(
            f"memory: {peak_bytes / 1e9:.2f} GB at most in the first steps, {predicted_bytes / 1e9:.2f} GB predicted "
            f"for micro-batches of {micro_batch}"
        )
        gigabytes = {"predicted": predicted_bytes / 1e9, "measured": peak_bytes / 1e9}
        self._tracker.add_tags({f"memory.{name}_gb": f"{value:.3f}" for name, value in gigabytes.items()})

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float], warnings: Sequence[str]) -> None:
        """Print and track the end of an epoch.

        Args:
            epoch: number of epochs done.
            step: number of steps done.
            metrics: metrics of the epoch.
            warnings: sentences to print.
        """
        if self._tracker is None:
            return
        for sentence in warnings:
            print_line(f"warning: {sentence}")
        print_line(f"epoch {epoch}/{self._task.settings.recipe.epochs}  {format_epoch(metrics)}")
        # The x axis of these metrics is the epoch; the step is one of the metrics.
        self._tracker.log_metrics({**metrics, "step": step}, step=epoch)

    def keep(self) -> None:
        """Make sure that the record so far outlives this process."""
        if self._tracker is not None:
            self._tracker.save_outbox()

    def renew_monitor(self) -> None:
        """Restart the monitor after the server was unavailable."""
        if self._tracker is not None and self._tracker.consume_recovery():
            self.monitor.renew()


def _quarantine_csv(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a table with slide_id, uri and reason; a spreadsheet takes no cell of it for a formula."""
    table = io.StringIO()
    csv.writer(table).writerows([("slide_id", "uri", "reason"), *(map(escape_cell, row) for row in rows)])
    return table.getvalue()
