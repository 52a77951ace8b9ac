"""The progress file, as a job writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.environment import PROGRESS_FILE
from service.progress.file import LONGEST_RECORD_BYTES, append_error, append_progress
from service.progress.record import Progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty progress file, named by the environment."""
    path = tmp_path / "progress.jsonl"
    path.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    return path


def test_each_record_is_a_line_of_json_with_the_known_fields_only(file: Path) -> None:
    append_progress(Progress(done=1, total=3, activity="scoring"))
    append_error("no such slide: é")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == [{"done": 1, "total": 3, "activity": "scoring"}, {"error": "no such slide: é"}]


def test_a_command_that_no_supervisor_watches_writes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_FILE)
    append_progress(Progress(done=1, total=3))
    append_error("no such slide")
    assert file.read_bytes() == b""


def test_another_file_can_be_named(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.touch()
    append_progress(Progress(done=1), str(other))
    assert (file.read_bytes(), other.read_bytes()) == (b"", b'{"done": 1}\n')


def test_a_file_that_cannot_be_written_stops_no_job_and_is_not_made(file: Path) -> None:
    file.unlink()
    append_progress(Progress(done=1))
    assert not file.exists()


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\x00", '"', "\udc80"])
def test_a_long_text_is_cut_so_that_the_reader_takes_its_line(file: Path, character: str) -> None:
    append_error(character * 100_000)
    append_progress(Progress(activity=character * 100_000))
    error, activity = file.read_bytes().splitlines()
    assert len(error) <= LONGEST_RECORD_BYTES
    assert len(json.loads(error)["error"]) == 2000
    assert len(json.loads(activity)["activity"]) == 300
