"""The progress bar: its records say what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.environment import PROGRESS_FILE
from service.progress import bar
from service.progress.bar import ProgressBar


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty progress file, named by the environment."""
    path = tmp_path / "progress.jsonl"
    path.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    return path


def records(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_first_record_has_no_estimate_and_the_last_one_all_items(file: Path) -> None:
    assert list(ProgressBar(range(11), total=11, desc="checking slides", unit="slide")) == list(range(11))
    first, *_, last = records(file)
    assert first == {"done": 0, "total": 11, "activity": "checking slides"}
    assert last == {"done": 11, "total": 11, "eta_s": 0.0, "activity": "checking slides"}


def test_the_estimate_is_the_rest_at_the_mean_rate(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    with ProgressBar(total=10, desc="scoring", mininterval=0, smoothing=0) as progress:
        monkeypatch.setattr(progress, "_time", lambda: now_s[0])
        progress.start_t = progress.last_print_t = 100.0
        monkeypatch.setattr(bar, "RECORD_EVERY_S", 0.0)
        now_s[0] += 6
        progress.update(4)  # 1.5 s each: the other six take 9 s
    assert records(file)[-1] == {"done": 4, "total": 10, "eta_s": 9.0, "activity": "scoring"}


def test_a_bar_that_is_drawn_often_is_recorded_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now_s[0])
    with ProgressBar(total=100, mininterval=0) as progress:
        for _ in range(50):
            now_s[0] += 0.125
            progress.update()
    assert len(records(file)) == 1 + int(50 * 0.125)
