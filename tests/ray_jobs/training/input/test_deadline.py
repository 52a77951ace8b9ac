"""How long a training retries reads and writes."""

from __future__ import annotations

import pytest

from ray_jobs.training.input.deadline import STORE_DEADLINE_S, get_store_deadline_s


def test_the_deadline_allows_an_outage_of_minutes_and_ends_before_a_collective_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MAGNET_STORAGE_DEADLINE_S", raising=False)
    assert 2 * 60 < get_store_deadline_s() == STORE_DEADLINE_S < 1800 / 2
    monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "900")
    assert get_store_deadline_s() == 900
