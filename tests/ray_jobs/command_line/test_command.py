"""Exit statuses and error messages that all commands share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.command_line import command
from service import exit_status
from service.environment import PROGRESS_FILE
from service.errors import MagnetError, SlideError, StoppedError, StorageError, UsageError


def run(main: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    return int(end.value.code or 0)


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_is_what_the_command_returns(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return status

    assert run(main, monkeypatch, "--epochs", "3") == status
    assert calls == [["--epochs", "3"]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("no such column"), 2),
        (MagnetError("it broke"), 1),
        (StoppedError("non-finite loss"), 4),
        (StorageError("unreachable"), 1),
        (SlideError("corrupt", uri="s3://b/x.svs"), 1),
    ],
)
def test_errors_for_the_user_are_printed_in_one_line(
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

    assert run(main, monkeypatch) == status
    assert capsys.readouterr().err == f"error: {error}\n"
    assert json.loads(progress.read_text()) == {"error": str(error)}  # the reason that users of the service see


def test_an_interrupt_prints_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert run(main, monkeypatch) == 130
    assert "the same command with the same --name continues the job" in capsys.readouterr().err


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
    """Errors of files, network and memory are transient: another attempt may succeed."""
    code = f"from ray_jobs.command_line import command\ncommand.run(lambda _: 0 if callable({raised}) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert done.stderr.count("Traceback") == (1 if status else 0)
    assert ("report it" in done.stderr.splitlines()[-1]) if status == 5 else ("report it" not in done.stderr)
    assert (status in exit_status.FINAL) == (status == 5)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "score.py", "pretrain.py"])
def test_commands_without_arguments_print_their_help(script: str) -> None:
    path = Path(command.__file__).parents[1] / script
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == exit_status.USAGE
    assert f"usage: {script}" in done.stdout
    assert "--manifest" in done.stdout
    assert "ray job submit -- python" in done.stdout


def test_workers_get_endpoints_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_REGION", raising=False)
    variables = command.worker_environment()
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert "AWS_REGION" not in variables
    assert "secret" not in variables.values()
