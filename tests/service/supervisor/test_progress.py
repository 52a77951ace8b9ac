"""Reading the progress file of a job that is not trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.progress.file import LONGEST_RECORD_BYTES
from service.progress.record import Progress
from service.supervisor import progress as module
from service.supervisor.progress import MAX_READ_BYTES, ProgressReader
from service.supervisor.secrets import Mask

STEP = Progress(done=5, total=20, eta_s=12.0, activity="training")
STEP_LINE = b'{"done": 5, "total": 20, "eta_s": 12.0, "activity": "training"}\n'


@pytest.fixture
def reader() -> Iterator[ProgressReader]:
    with ProgressReader(Mask({"MY_TOKEN": "0123456789"})) as reader:
        yield reader


def append(reader: ProgressReader, data: bytes) -> None:
    with open(reader.path, "ab") as file:
        file.write(data)
    reader.read()


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def test_records_are_applied_in_order(reader: ProgressReader) -> None:
    append(reader, line(activity="starting workers", mlflow_run="ab" * 16))
    assert reader.progress == Progress(activity="starting workers", mlflow_run="ab" * 16)
    append(reader, line(done=1, total=20, activity="training") + STEP_LINE)
    assert reader.progress == STEP.apply(Progress(mlflow_run="ab" * 16))


def test_half_a_line_is_read_when_its_end_arrives(reader: ProgressReader) -> None:
    for byte in STEP_LINE[:-1]:
        append(reader, bytes([byte]))
        assert reader.progress == Progress()
    append(reader, b"\n")
    assert reader.progress == STEP


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"step 5/20  train loss 0.6931",
        b"\xff\xfe\x00",
        b"[]",
        b"7",
        b"null",
        b'"done"',
        b'{"done": -1, "activity": "x"}',
        b'{"done": 3000000000, "activity": "x"}',
        b'{"done": ' + b"9" * 5000 + b', "activity": "x"}',
        b'{"done": 1.5, "activity": "x"}',
        b'{"done": {}, "activity": "x"}',
        b'{"eta_s": NaN, "activity": "x"}',
        b'{"eta_s": 1e999, "activity": "x"}',
        b'{"eta_s": -1, "activity": "x"}',
        b'{"activity": "two\\nlines"}',
        b'{"activity": 7}',
        b'{"activity": "' + b"x" * 501 + b'"}',
        b'{"mlflow_run": "' + b"x" * 65 + b'"}',
        b'{"error": 7}',
        b'{"error": ["x"]}',
        b'{"error": ""}',
        b"[" * 10_000,
        b'{"a":' * 3000,
        line(activity="x" * LONGEST_RECORD_BYTES).strip(),
        b'{"activity": "x"}' + b" " * (1 << 20),
    ],
)
def test_a_malformed_record_is_ignored_and_the_next_one_counts(reader: ProgressReader, junk: bytes) -> None:
    append(reader, junk + b"\n")
    assert (reader.progress, reader.error) == (Progress(), "")
    append(reader, STEP_LINE)
    assert (reader.progress, reader.error) == (STEP, "")


def test_unknown_keys_are_ignored(reader: ProgressReader) -> None:
    append(reader, line(loss=0.7, epoch=3, __class__="x", **json.loads(STEP_LINE)))
    assert reader.progress == STEP


def test_of_a_file_that_grew_by_much_the_newest_record_is_read(
    reader: ProgressReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    pread = os.pread
    monkeypatch.setattr(module.os, "pread", lambda *arguments: sizes.append(len(data := pread(*arguments))) or data)
    append(reader, line(done=1, activity="flood") * (10 * MAX_READ_BYTES // 30) + STEP_LINE)
    assert reader.progress == STEP
    assert sizes == [MAX_READ_BYTES]


def test_a_line_that_never_ends_takes_no_memory(reader: ProgressReader) -> None:
    for _ in range(100):
        append(reader, b"x" * MAX_READ_BYTES)
        assert len(reader._incomplete) <= LONGEST_RECORD_BYTES + 1
    append(reader, b"\n" + STEP_LINE)
    assert reader.progress == STEP


def test_after_a_truncation_the_new_records_are_read(reader: ProgressReader) -> None:
    append(reader, line(done=1, total=2, activity="scoring") * 3)
    os.truncate(reader.path, 0)
    append(reader, STEP_LINE)
    assert reader.progress == STEP


def test_secrets_are_masked_in_every_text(reader: ProgressReader) -> None:
    append(reader, line(activity="with 0123456789", mlflow_run="0123456789", error="open http://u:hunter2@h/"))
    assert reader.progress == Progress(activity="with ***", mlflow_run="***")
    assert reader.error == "open http://u:***@h/"


def test_of_several_problems_the_first_one_is_the_reason(reader: ProgressReader) -> None:
    append(reader, line(error="m.csv: 2 problems\n  row 2, column uri: is empty\n  row 3: has 1 cells"))
    assert reader.error == "m.csv: 2 problems: row 2, column uri: is empty"


def test_a_second_line_that_is_not_indented_does_not_belong_to_the_reason(reader: ProgressReader) -> None:
    append(reader, line(error="no such slide\nlook at the log"))
    assert reader.error == "no such slide"


def test_a_reason_is_cut(reader: ProgressReader) -> None:
    append(reader, line(error="x" * 5000))
    assert reader.error == "x" * 500


def test_time_without_progress_is_counted_although_the_estimate_changes(reader: ProgressReader) -> None:
    append(reader, STEP_LINE)
    changed_s = reader.changed_s
    append(reader, line(**json.loads(STEP_LINE) | {"eta_s": 40.0}))
    assert reader.changed_s == changed_s
    assert reader.progress.eta_s == 40.0
    append(reader, line(**json.loads(STEP_LINE) | {"done": 6}))
    assert reader.changed_s > changed_s


def test_the_file_is_private_and_removed_at_the_end() -> None:
    with ProgressReader(Mask({})) as reader:
        path: Path = reader.path
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
