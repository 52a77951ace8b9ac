"""The supervisor of a job: what it reports to the store, and when it ends its command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.progress.record import Progress
from service.queue.attempt_folder import PART_BYTES, AttemptFolder, Heartbeat, Stop
from service.supervisor.command_log import CommandLog
from service.supervisor.secrets import Mask

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RECORD = "import os; record = open(os.environ['MAGNET_PROGRESS_FILE'], 'a', buffering=1).write\n"
"""Beginning of a command that writes lines into its progress file."""


def start(folder: Path, program: str, **env: str) -> subprocess.Popen[bytes]:
    """Start a supervisor whose command is a Python program."""
    supervisor = [sys.executable, "-m", "service.supervisor", "--folder", str(folder), "--beat-s", "0.1", "--"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder.parent), **env}
    command = [sys.executable, "-u", "-c", program]
    return subprocess.Popen([*supervisor, *command], env=environment, stdout=subprocess.DEVNULL)


def wait_for_log(folder: AttemptFolder, text: bytes) -> None:
    deadline = time.monotonic() + 30
    while text not in folder.log(0, 1000):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def last_beat(folder: Path) -> Heartbeat:
    beat = AttemptFolder(str(folder)).beat()
    assert beat is not None
    return beat


def test_it_reports_log_progress_and_end_and_masks_secrets(tmp_path: Path) -> None:
    program = RECORD + (
        "import sys\n"
        "secret = os.environ['AWS_SECRET_ACCESS_KEY']\n"
        "print('key', secret)\n"
        "print('runs: open http://u:hunter2@h/')\n"
        'record(\'{"activity": "starting workers", "mlflow_run": "0123456789abcdef0123456789abcdef"}\\n\')\n'
        'record(\'{"done": 2, "total": 5, "eta_s": 63.0, "activity": "scoring with %s"}\\n\' % secret)\n'
        'record(\'{"error": "no such slide at %s"}\\n\' % secret)\n'
        "sys.exit('bye')\n"
    )
    assert start(tmp_path / "attempt", program, AWS_SECRET_ACCESS_KEY="abcdefgh").wait(30) == 1
    beat = last_beat(tmp_path / "attempt")
    assert beat.ending is not None
    assert (beat.ending.exit_code, beat.ending.last) == (1, "no such slide at ***")
    assert beat.progress == Progress(
        done=2, total=5, eta_s=63.0, activity="scoring with ***", mlflow_run="0123456789abcdef0123456789abcdef"
    )
    log = AttemptFolder(str(tmp_path / "attempt")).log(0, 10_000).decode()
    assert "abcdefgh" not in log
    assert "hunter2" not in log
    assert "key ***" in log


def test_the_next_attempt_begins_with_an_empty_progress_file_and_none_is_left(tmp_path: Path) -> None:
    program = RECORD + "print(os.path.getsize(os.environ['MAGNET_PROGRESS_FILE'])); record('{\"done\": 3}\\n')"
    for number in (1, 2):
        assert start(tmp_path / f"attempt-{number}", program).wait(30) == 0
        assert AttemptFolder(str(tmp_path / f"attempt-{number}")).log(0, 100) == b"0\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt-1", "attempt-2"]


def test_a_stop_file_in_its_folder_ends_the_command(tmp_path: Path) -> None:
    process = start(tmp_path / "attempt", "import time; print('started'); time.sleep(60)")
    folder = AttemptFolder(str(tmp_path / "attempt"))
    wait_for_log(folder, b"started")
    folder.request_stop(Stop(reason="stopped"))
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_supervisor_that_is_killed_takes_its_command_along(tmp_path: Path) -> None:
    process = start(tmp_path / "attempt", "import os, time; print(os.getpid(), 'started'); time.sleep(60)")
    folder = AttemptFolder(str(tmp_path / "attempt"))
    wait_for_log(folder, b"started")
    command = psutil.Process(int(folder.log(0, 1000).split()[0]))
    process.kill()
    process.wait()
    command.wait(10)


def test_an_attempt_does_not_start_twice(tmp_path: Path) -> None:
    assert start(tmp_path / "attempt", "print('once')").wait(30) == 0
    assert start(tmp_path / "attempt", "print('twice')").wait(30) != 0
    assert AttemptFolder(str(tmp_path / "attempt")).log(0, 100) == b"once\n"


def read_file(log: CommandLog, path: Path) -> None:
    with open(path, "rb") as stream:
        log.read(stream)


def test_a_log_is_read_from_any_byte_over_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = b"".join(b"%0127d\n" % k for k in range(PART_BYTES // 64))  # two parts
    source, log, folder = tmp_path / "source", CommandLog(Mask({})), AttemptFolder(str(tmp_path / "attempt"))
    source.write_bytes(lines)
    read_file(log, source)
    assert log.write(folder) == len(lines)
    assert folder.log(0, 10**9) == lines
    assert folder.log(PART_BYTES - 3, 10) == lines[PART_BYTES - 3 : PART_BYTES + 7]
    assert folder.log(len(lines), 10) == b""
    capsys.readouterr()


def test_the_log_leaves_out_colours_and_the_chatter_of_ray(tmp_path: Path) -> None:
    program = """if True:
        print("\\x1b[36m(RayTrainWorker pid=463)\\x1b[0m epoch 1/12")
        print("[2026-11-23 04:04:19,726 E 343 376] core_worker.cc:2465: Actor with class name: 'X' and ID: '6b' has "
              "constructor arguments in the object store and max_restarts > 0.")
    """
    assert start(tmp_path / "attempt", program).wait(30) == 0
    assert AttemptFolder(str(tmp_path / "attempt")).log(0, 1000) == b"(RayTrainWorker pid=463) epoch 1/12\n"


KILLED_AFTER_ERROR = RECORD + "record('{\"error\": \"retried\"}\\n'); print('step 3'); os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    ("program", "code", "last"),
    [
        ("print('step 3'); import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", 139, None),
        ("print('step 3'); import os; os.kill(os.getpid(), 9)", 137, "step 3"),
        ("print('step 3'); {}['x']", 1, "KeyError: 'x'"),
        ("print('step 3'); print('(raylet) noise'); raise SystemExit(7)", 7, "step 3"),
        (KILLED_AFTER_ERROR, 137, "step 3"),
    ],
)
def test_the_reason_of_an_end_is_named_and_is_no_frame_of_a_stack(
    tmp_path: Path, program: str, code: int, last: str | None
) -> None:
    assert start(tmp_path / "attempt", program).wait(60) == code
    ending = last_beat(tmp_path / "attempt").ending
    assert ending is not None
    assert ending.exit_code == code
    assert ending.last == (last or ending.last)
    assert not ending.last.startswith(("File", "Current thread", "Extension modules", "<no Python"))


def test_a_bar_that_is_redrawn_is_no_activity_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = CommandLog(Mask({}))
    started_s = log.changed_s
    (tmp_path / "source").write_bytes(b"scoring:  45%|####      | 5/11 [00:10<00:12, 1.2s/slide]\r")
    read_file(log, tmp_path / "source")
    assert log.changed_s == started_s
    (tmp_path / "source").write_bytes(b"a line\n")
    read_file(log, tmp_path / "source")
    assert log.changed_s > started_s
    assert capsys.readouterr().out == "a line\n"


HOSTILE = {
    "junk": "record('\\x00\\xff' * 1000 + '\\n')",
    "a line without an end": "record('x' * 10_000_000)",
    "no file": "os.unlink(os.environ['MAGNET_PROGRESS_FILE'])",
    "a pipe": "path = os.environ['MAGNET_PROGRESS_FILE']; os.unlink(path); os.mkfifo(path)",
    "a directory": "path = os.environ['MAGNET_PROGRESS_FILE']; os.unlink(path); os.mkdir(path)",
    "a hole of a terabyte": "os.truncate(os.environ['MAGNET_PROGRESS_FILE'], 1 << 40)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_progress_file_ends_or_blocks_the_supervisor(tmp_path: Path, name: str) -> None:
    program = RECORD + HOSTILE[name] + "\nimport time; time.sleep(0.5); print('still here')"
    assert start(tmp_path / "attempt", program).wait(30) == 0
    ending = last_beat(tmp_path / "attempt").ending
    assert ending is not None
    assert (ending.exit_code, ending.last) == (0, "still here")
