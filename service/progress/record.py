"""The progress of a job as one record: written by the job, sent in heartbeats, kept in the jobs table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
"""Text without control characters: it is shown in terminals and tables."""
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A count that fits the integer columns of Postgres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a job is, as the job reports it; a field that the job does not know is None."""

    done: Count | None = None
    """Number of steps, slides or trials that are finished."""
    total: Count | None = None
    """Number of steps, slides or trials in all."""
    eta_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Estimated time to the end of the activity in seconds."""
    activity: Annotated[str, Field(max_length=500, pattern=ONE_LINE)] | None = None
    """What the job does now, such as "training"."""
    mlflow_run: Annotated[str, Field(max_length=64, pattern=ONE_LINE)] | None = None
    """Id of the job's MLflow run."""

    def differs_from(self, earlier: Progress) -> bool:
        """Return whether the job has advanced; the estimated time does not count, since it changes by itself."""
        return replace(self, eta_s=None) != replace(earlier, eta_s=None)

    def apply(self, later: Progress) -> Progress:
        """Return this progress with a later record applied.

        A count belongs to its activity: a later record with an activity replaces all of them. A run id stays.
        """
        run = later.mlflow_run or self.mlflow_run
        return replace(self if later.activity is None else later, mlflow_run=run)

    def to_columns(self) -> dict[str, Any]:
        """Return the columns of the jobs table to write.

        All four columns of the activity are written together, so that no count of an earlier activity remains. A record
        without an activity changes none of them, and one without a run does not delete the run.
        """
        activity = {name: getattr(self, name) for name in ("done", "total", "eta_s", "activity")}
        run = {"mlflow_run": self.mlflow_run} if self.mlflow_run is not None else {}
        return (activity if any(value is not None for value in activity.values()) else {}) | run
