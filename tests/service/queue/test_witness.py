"""The witness beside a job: what it tells the store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.progress import _clock
from service.queue.attempt_folder import PART_BYTES, AttemptFolder
from service.queue.job import Progress
from service.queue.progress import progress_in
from service.queue.secrets import Mask
from service.queue.witness import Log


def start(folder: Path, program: str, **env: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "service.queue.witness", "--folder", str(folder), "--beat-s", "0.1", "--"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3]), **env}
    return subprocess.Popen([*words, sys.executable, "-u", "-c", program], env=environment, stdout=subprocess.DEVNULL)


def wait_for_log(folder: AttemptFolder, text: bytes) -> None:
    deadline = time.monotonic() + 30
    while text not in folder.log(0, 1000):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_tells_log_progress_and_end_and_masks_secrets(tmp_path: Path) -> None:
    program = """if True:
        import os, sys
        print("key", os.environ["AWS_SECRET_ACCESS_KEY"])
        print("job x, MLflow run 0123456789abcdef0123456789abcdef; runs: open http://u:hunter2@h/")
        sys.stderr.write("\\rscoring:  20%|##   | 1/5 [00:01<00:04]\\rscoring:  40%|####   | 2/5 [00:02<01:03]\\r")
        sys.exit("error: no such slide")
    """
    process = start(tmp_path, program, AWS_SECRET_ACCESS_KEY="abcdefgh")
    assert process.wait(30) == 1
    folder = AttemptFolder(str(tmp_path))
    beat = folder.beat()
    assert beat is not None
    assert beat.ending is not None
    assert (beat.ending.exit_code, beat.ending.last) == (1, "error: no such slide")
    assert beat.progress == Progress(
        done=2, total=5, eta_s=63.0, activity="scoring", mlflow_run="0123456789abcdef0123456789abcdef"
    )
    log = folder.log(0, 10_000).decode()
    assert "abcdefgh" not in log
    assert "hunter2" not in log
    assert "key ***" in log


def test_told_through_its_folder_it_stops_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, "import time; print('begun'); time.sleep(60)")
    folder = AttemptFolder(str(tmp_path))
    wait_for_log(folder, b"begun")
    folder.stop()
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_killed_witness_takes_its_command_along(tmp_path: Path) -> None:
    process = start(tmp_path, "import os, time; print(os.getpid(), 'begun'); time.sleep(60)")
    folder = AttemptFolder(str(tmp_path))
    wait_for_log(folder, b"begun")
    command = psutil.Process(int(folder.log(0, 1000).split()[0]))
    process.kill()
    process.wait()
    command.wait(10)


def test_an_attempt_is_not_begun_twice(tmp_path: Path) -> None:
    assert start(tmp_path, "print('once')").wait(30) == 0
    assert start(tmp_path, "print('twice')").wait(30) != 0
    assert AttemptFolder(str(tmp_path)).log(0, 100) == b"once\n"


def test_a_log_is_read_from_any_byte_over_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = b"".join(b"%0127d\n" % k for k in range(PART_BYTES // 64))  # two parts
    source, log, folder = tmp_path / "source", Log(Mask({})), AttemptFolder(str(tmp_path / "attempt"))
    source.write_bytes(lines)
    with open(source, "rb") as stream:
        log.read(stream)
    assert log.write(folder) == len(lines)
    assert folder.log(0, 10**9) == lines
    assert folder.log(PART_BYTES - 3, 10) == lines[PART_BYTES - 3 : PART_BYTES + 7]
    assert folder.log(len(lines), 10) == b""
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            f"step 5/20  train loss 0.6931  waiting 3%  {_clock(3725)} to go",
            Progress(done=5, total=20, eta_s=3725.0, activity="training"),
        ),
        (
            "(RayTrainWorker pid=7) step 5/20  train loss 0.6931  waiting 3%  0:12 to go",
            Progress(done=5, total=20, eta_s=12.0, activity="training"),
        ),
        ("scoring:   0%|          | 0/11 [00:00<?, ?slide/s]", Progress(done=0, total=11, activity="scoring")),
        ("the scores: 3/4 of them", Progress()),
    ],
)
def test_progress_is_read_from_what_the_commands_print(line: str, expected: Progress) -> None:
    assert progress_in(line) == expected
