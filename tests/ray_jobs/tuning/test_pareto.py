"""The front, on points whose order is known; what is refused before it costs anything."""

from __future__ import annotations

import pytest

from magnet.memory import Memory
from magnet.plan import Cut
from ray_jobs.tuning import search_space
from ray_jobs.tuning.pareto import Outcome, Scored, draw, front, scored, table
from ray_jobs.tuning.search_space import schedules
from service.errors import UsageError
from service.settings.train import TrainSettings, train_settings
from service.settings.tune import SearchSettings


def point(name: str, auroc: float, num_patches: int, megabytes: float) -> Scored:
    return Scored(name, name, num_patches, megabytes * 1e6, auroc)


def test_a_point_is_on_the_front_unless_another_one_is_nowhere_worse_and_somewhere_better() -> None:
    points = [
        point("cheap", 0.7, 2, 1.0),
        point("same score, more bytes", 0.7, 2, 1.1),
        point("more patches, fewer bytes", 0.7, 4, 0.5),
        point("best", 0.9, 18, 3.0),
        point("worse and dearer", 0.8, 20, 4.0),
        point("as the best", 0.9, 18, 3.0),
    ]
    names = [one.trial for one in front(points)]
    assert names == ["cheap", "more patches, fewer bytes", "best", "as the best"]


def test_the_table_holds_all_trials_the_best_first_and_the_figure_those_with_numbers() -> None:
    outcomes = [
        Outcome("a", "4,4", 16, "does not fit", "needs 99 GB"),
        Outcome("b", "2,1", 2, "stopped early", "", 0.6, 1e6, 0.6),
        Outcome("c", "3,2", 6, "complete", "", 0.8, 2e6, 0.8),
    ]
    frame = table(outcomes)
    assert frame["trial"].tolist() == ["c", "b", "a"]
    assert frame["on_front"].tolist() == [True, True, False]
    assert [one.trial for one in scored(outcomes)] == ["b", "c"]
    left, right = draw(outcomes).axes
    assert sorted(left.collections[0].get_offsets().tolist()) == [[2.0, 0.6], [6.0, 0.8]]  # type: ignore[union-attr]
    assert sorted(right.collections[1].get_offsets().tolist()) == [[1.0, 0.6], [2.0, 0.8]]  # type: ignore[union-attr]


def test_schedules_beyond_the_budget_or_the_card_are_refused_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 1 GB, 0.1 GB a node above the last patches, 0.5 GB a patch: measured for three schedules only."""
    measured = []

    def predicted(settings: TrainSettings, cut: Cut) -> Memory:
        zoom = settings.model.zoom
        measured.append(zoom.schedule)
        inner = sum(zoom.num_nodes[:-1])
        return Memory(cut.micro_batch, {"all": 10**9 + inner * 10**8 + zoom.num_patches * 5 * 10**8})

    monkeypatch.setattr(search_space, "predicted", predicted)
    search = SearchSettings(schedules=((2, 2), (3, 3), (4, 4), (2, 2, 4)), max_patches=15)
    allowed, refused = schedules(search, train_settings(None), 5e9)
    # (2, 2): 1 + .3 + 2 = 3.3 GB of 4.5 to use; (3, 3): 1 + .4 + 4.5 = 5.9 GB
    assert allowed == [(2, 2)]
    assert [one.schedule for one in refused] == [(3, 3), (4, 4), (2, 2, 4)]
    assert "schedule 3,3 does not fit: one slide at a time needs 5.9 GB" in refused[0].reason
    assert refused[1].reason == "16 last patches, max_patches is 15"
    assert len(measured) == 3


def test_a_search_with_nothing_left_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no schedule is left to try.*4 last patches, max_patches is 1"):
        schedules(SearchSettings(schedules=((2, 2),), max_patches=1), train_settings(None), None)
