"""Records of progress: how a later one changes an earlier one, and what the jobs table gets."""

from __future__ import annotations

from service.progress.record import Progress

RUN = "0123456789abcdef0123456789abcdef"


def test_a_count_ends_with_its_activity() -> None:
    """A training that has checked its slides does not show 12/12 while its workers start."""
    checked = Progress(done=12, total=12, eta_s=0.0, activity="checking slides")
    started = checked.apply(Progress(activity="starting workers", mlflow_run=RUN))
    assert started == Progress(activity="starting workers", mlflow_run=RUN)


def test_a_run_stays_when_later_records_do_not_name_it() -> None:
    started = Progress(activity="starting workers", mlflow_run=RUN)
    step = Progress(done=5, total=20, eta_s=12.0, activity="training")
    assert started.apply(step) == Progress(done=5, total=20, eta_s=12.0, activity="training", mlflow_run=RUN)


def test_a_record_without_an_activity_changes_nothing() -> None:
    step = Progress(done=5, total=20, activity="training", mlflow_run=RUN)
    assert step.apply(Progress()) == step


def test_the_estimated_time_alone_is_no_advance() -> None:
    step = Progress(done=5, total=20, eta_s=12.0, activity="training")
    assert not Progress(done=5, total=20, eta_s=40.0, activity="training").differs_from(step)
    assert Progress(done=6, total=20, eta_s=12.0, activity="training").differs_from(step)


def test_the_columns_of_an_activity_are_written_together_and_a_run_is_never_deleted() -> None:
    assert Progress(activity="starting").to_columns() == {
        "done": None,
        "total": None,
        "eta_s": None,
        "activity": "starting",
    }
    assert Progress(mlflow_run=RUN).to_columns() == {"mlflow_run": RUN}
    assert Progress().to_columns() == {}
