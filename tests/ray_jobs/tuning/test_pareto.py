"""The Pareto front of points whose order is known; schedules that are refused before the search."""

from __future__ import annotations

import pytest

from magnet.memory import StepMemory
from magnet.plan import BatchSplit
from ray_jobs.tuning import search_space
from ray_jobs.tuning.pareto import Outcome, Point, draw_front, make_points, make_table, pareto_front
from ray_jobs.tuning.search_space import select_schedules
from service.errors import UsageError
from service.settings.train import TrainSettings, read_train_settings
from service.settings.tune import SearchSettings


def make_point(name: str, auroc: float, num_patches: int, megabytes: float) -> Point:
    return Point(name, name, num_patches, megabytes * 1e6, auroc)


def test_a_point_is_on_the_front_unless_another_one_dominates_it() -> None:
    points = [
        make_point("cheap", 0.7, 2, 1.0),
        make_point("same score, more bytes", 0.7, 2, 1.1),
        make_point("more patches, fewer bytes", 0.7, 4, 0.5),
        make_point("best", 0.9, 18, 3.0),
        make_point("worse and more expensive", 0.8, 20, 4.0),
        make_point("as the best", 0.9, 18, 3.0),
    ]
    names = [point.trial for point in pareto_front(points)]
    assert names == ["cheap", "more patches, fewer bytes", "best", "as the best"]


def test_the_table_has_all_trials_and_the_figure_those_with_scores() -> None:
    outcomes = [
        Outcome("a", "4,4", 16, "does not fit", "needs 99 GB"),
        Outcome("b", "2,1", 2, "stopped early", "", 0.6, 1e6, 0.6),
        Outcome("c", "3,2", 6, "complete", "", 0.8, 2e6, 0.8),
    ]
    frame = make_table(outcomes)
    assert frame["trial"].tolist() == ["c", "b", "a"]
    assert frame["on_front"].tolist() == [True, True, False]
    assert [point.trial for point in make_points(outcomes)] == ["b", "c"]
    left, right = draw_front(outcomes).axes
    assert sorted(left.collections[0].get_offsets().tolist()) == [[2.0, 0.6], [6.0, 0.8]]  # type: ignore[union-attr]
    assert sorted(right.collections[1].get_offsets().tolist()) == [[1.0, 0.6], [2.0, 0.8]]  # type: ignore[union-attr]


def test_schedules_beyond_the_budget_or_the_gpu_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes 1 GB, a node above the last patches 0.1 GB, a patch 0.5 GB; only three schedules are measured."""
    measured = []

    def predict_memory(settings: TrainSettings, cut: BatchSplit) -> StepMemory:
        zoom = settings.model.zoom
        measured.append(zoom.schedule)
        inner = sum(zoom.num_nodes[:-1])
        return StepMemory(cut.micro_batch, {"all": 10**9 + inner * 10**8 + zoom.num_patches * 5 * 10**8})

    monkeypatch.setattr(search_space, "predict_memory", predict_memory)
    search = SearchSettings(schedules=((2, 2), (3, 3), (4, 4), (2, 2, 4)), max_patches=15)
    allowed, refused = select_schedules(search, read_train_settings(None), 5e9)
    # (2, 2): 1 + .3 + 2 = 3.3 GB of 4.5 to use; (3, 3): 1 + .4 + 4.5 = 5.9 GB
    assert allowed == [(2, 2)]
    assert [refusal.schedule for refusal in refused] == [(3, 3), (4, 4), (2, 2, 4)]
    assert "schedule 3,3 does not fit: one slide at a time needs 5.9 GB" in refused[0].reason
    assert refused[1].reason == "16 last patches, max_patches is 15"
    assert len(measured) == 3


def test_a_search_without_any_allowed_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no schedule is left to try.*4 last patches, max_patches is 1"):
        select_schedules(SearchSettings(schedules=((2, 2),), max_patches=1), read_train_settings(None), None)
