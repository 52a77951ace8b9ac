"""What commands share: exit statuses, absolute places, names."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.command_line import command
from service import exit_status
from service.environment import PROGRESS_FILE
from service.errors import MagnetError, SlideError, StoppedError, StorageError, UsageError


def status_of(main: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    return int(end.value.code or 0)


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_is_what_the_command_returns(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        heard.append(arguments)
        return status

    assert status_of(main, monkeypatch, "--epochs", "3") == status
    assert heard == [["--epochs", "3"]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("no such column"), 2),
        (MagnetError("it broke"), 1),
        (StoppedError("the loss is no number"), 4),
        (StorageError("away"), 1),
        (SlideError("torn", uri="s3://b/x.svs"), 1),
    ],
)
def test_errors_for_the_user_are_told_in_one_line(
    error: MagnetError,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = tmp_path / "progress.jsonl"
    progress.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(progress))

    def main(arguments: list[str]) -> int:
        raise error

    assert status_of(main, monkeypatch) == status
    assert capsys.readouterr().err == f"error: {error}\n"
    assert json.loads(progress.read_text()) == {"error": str(error)}  # the reason that users of the service see


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert status_of(main, monkeypatch) == 130
    assert "the same command with the same --name goes on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "status"),
    [
        ("1 // 0", 5),
        ("{}['x']", 5),
        ("b'\\xe9'.decode()", 5),
        ("open('/no/such/file')", 1),
        ("__import__('os').kill", 0),
    ],
)
def test_an_error_of_the_program_is_reported_once_with_its_traceback_and_never_repeated(
    raised: str, status: int
) -> None:
    """Of files, network and memory another attempt may end better."""
    code = f"from ray_jobs import command\ncommand.run(lambda _: 0 if callable({raised}) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert done.stderr.count("Traceback") == (1 if status else 0)
    assert ("report it" in done.stderr.splitlines()[-1]) if status == 5 else ("report it" not in done.stderr)
    assert (status in exit_status.FINAL) == (status == 5)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "score.py", "pretrain.py"])
def test_commands_without_arguments_explain_themselves(script: str) -> None:
    path = Path(command.__file__).parents[1] / script
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == exit_status.USAGE
    assert f"usage: {script}" in done.stdout
    assert "--manifest" in done.stdout
    assert "ray job submit -- python" in done.stdout


def test_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command.absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert command.absolute("~/runs") == str(tmp_path / "home" / "runs")
    assert command.absolute("/runs") == "/runs"
    assert command.absolute("s3://bucket/runs") == "s3://bucket/runs"


def test_the_option_wins_over_the_environment_and_that_over_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAGNET_STORAGE", "s3://bucket/runs")
    assert command.storage_folder("/mine") == "/mine"
    assert command.storage_folder(None) == "s3://bucket/runs"
    monkeypatch.delenv("MAGNET_STORAGE")
    assert command.storage_folder(None) == str(tmp_path / "magnet-runs")


def test_names_are_unique_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({command.new_name("train") for _ in range(50)}) == 50
    real = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form: real(form, time.gmtime(0)))
    early = command.new_name("train")
    monkeypatch.setattr(time, "strftime", lambda form: real(form, time.gmtime(10**9)))
    assert early < command.new_name("train")
    assert early.startswith("train-19700101-000000-")


def test_workers_get_places_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_REGION", raising=False)
    told = command.worker_environment()
    assert told["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert "AWS_REGION" not in told
    assert "secret" not in told.values()


@pytest.mark.parametrize("name", ["cohort-7", "a", "2026.11_x"])
def test_names_of_jobs_pass(name: str) -> None:
    assert command.job_name(name) == name


@pytest.mark.parametrize("name", ["", "it's", "a/b", "-x", "a b", "x" * 101, "é"])
def test_names_that_folders_or_filters_would_choke_on_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        command.job_name(name)
