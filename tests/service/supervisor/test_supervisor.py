"""The witness beside a job: what it tells the store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.training.progress import clock
from service.queue.attempt_folder import PART_BYTES, AttemptFolder, Stop
from service.queue.job import Progress
from service.supervisor.progress import progress_in
from service.supervisor.secrets import Mask
from service.supervisor.supervisor import Log

pytestmark = pytest.mark.slow


def start(folder: Path, program: str, **env: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "service.supervisor.supervisor", "--folder", str(folder), "--beat-s", "0.1", "--"]
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
    assert (beat.ending.exit_code, beat.ending.last) == (1, "no such slide")
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
    folder.stop(Stop(reason="stopped"))
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
            f"step 5/20  train loss 0.6931  waiting 3%  {clock(3725)} to go",
            Progress(done=5, total=20, eta_s=3725.0, activity="training"),
        ),
        (
            "(RayTrainWorker pid=7) step 5/20  train loss 0.6931  waiting 3%  0:12 to go",
            Progress(done=5, total=20, eta_s=12.0, activity="training"),
        ),
        ("scoring:   0%|          | 0/11 [00:00<?, ?slide/s]", Progress(done=0, total=11, activity="scoring")),
        ("the scores: 3/4 of them", Progress()),
        (
            "trial 3/40 ended  best objective 0.9000  1:00:00 to go",
            Progress(done=3, total=40, eta_s=3600.0, activity="searching"),
        ),
        # A trial's steps are not the search's.
        ("(run_trial pid=7) step 5/20  train loss 0.6931  waiting 3%  0:12 to go", Progress()),
        ("waiting for the cluster: 1 GPU", Progress(activity="waiting for the cluster: 1 GPU")),
    ],
)
def test_progress_is_read_from_what_the_commands_print(line: str, expected: Progress) -> None:
    assert progress_in(line) == expected


def test_a_count_ends_with_what_was_counted() -> None:
    """A training that has checked its slides does not say 12/12 while its workers come up."""
    checked = progress_in("checking slides: 100%|####| 12/12 [00:00<00:00, 5.0slide/s]")
    begun = checked.then(progress_in("job x, MLflow run 0123456789abcdef0123456789abcdef; runs: open http://h"))
    assert begun == Progress(activity="starting workers", mlflow_run="0123456789abcdef0123456789abcdef")
    assert begun.then(progress_in("epoch 1/3  train loss 0.8")) == begun
    assert begun.then(progress_in("step 5/20  train loss 0.7  waiting 3%  0:12 to go")).mlflow_run == begun.mlflow_run


def test_the_log_leaves_out_colours_and_what_ray_says_of_itself(tmp_path: Path) -> None:
    program = """if True:
        print("\\x1b[36m(RayTrainWorker pid=463)\\x1b[0m epoch 1/12")
        print("[2026-11-23 04:04:19,726 E 343 376] core_worker.cc:2465: Actor with class name: 'X' and ID: '6b' has "
              "constructor arguments in the object store and max_restarts > 0.")
    """
    assert start(tmp_path, program).wait(30) == 0
    assert AttemptFolder(str(tmp_path)).log(0, 1000) == b"(RayTrainWorker pid=463) epoch 1/12\n"


@pytest.mark.parametrize(
    ("program", "code", "last"),
    [
        ("print('step 3 of mine'); import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", 139, None),
        ("print('step 3 of mine'); import os; os.kill(os.getpid(), 9)", 137, "step 3 of mine"),
        ("print('step 3 of mine'); {}['x']", 1, "KeyError: 'x'"),
        ("print('step 3 of mine'); print('(raylet) noise'); raise SystemExit(7)", 7, "step 3 of mine"),
    ],
)
def test_how_a_real_process_ended_is_named_and_no_frame_of_a_stack(
    tmp_path: Path, program: str, code: int, last: str | None
) -> None:
    assert start(tmp_path, program).wait(60) == code
    beat = AttemptFolder(str(tmp_path)).beat()
    assert beat is not None
    assert beat.ending is not None
    assert beat.ending.exit_code == code
    assert beat.ending.last == (last or beat.ending.last)
    assert not beat.ending.last.startswith(("File", "Current thread", "Extension modules", "<no Python"))


def test_time_without_progress_is_counted_whatever_a_bar_redraws(tmp_path: Path) -> None:
    bar = b"scoring:  45%|####      | 5/11 [00:10<00:12, 1.2s/slide]\r"
    (tmp_path / "source").write_bytes(bar)
    log = Log(Mask({}))
    with open(tmp_path / "source", "rb") as stream:
        log.read(stream)
    changed_s = log._changed_s
    (tmp_path / "source").write_bytes(bar.replace(b"<00:12", b"<00:40"))
    with open(tmp_path / "source", "rb") as stream:
        log.read(stream)
    assert log._changed_s == changed_s
    (tmp_path / "source").write_bytes(b"a line\n")
    with open(tmp_path / "source", "rb") as stream:
        log.read(stream)
    assert log._changed_s > changed_s


@pytest.mark.parametrize("digits", [9, 10, 400, 5000])
def test_numbers_of_any_length_end_no_witness(digits: int) -> None:
    number = "9" * digits
    for line in (
        f"step {number}/{number}  {number}:00 to go",
        f"scoring: 1%|#| {number}/{number} [0:1<{number}:{number}",
    ):
        progress_in(line)
