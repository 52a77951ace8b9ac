"""Child processes of a command are stopped together with all processes that they started."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_jobs.cluster import processes
from ray_jobs.cluster.processes import free_port, kill_tree, run_process

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
"""Code of a process that ignores SIGTERM."""


def family(folder: Path, *, stubborn: bool = False) -> list[str]:
    """Return a command whose process has a child and a grandchild; each writes its id to the folder and sleeps."""
    head = STUBBORN if stubborn else ""
    note = "import os, pathlib, time; pathlib.Path({path!r}).write_text(str(os.getpid())); "
    sleep = "time.sleep(60)"
    youngest = head + note.format(path=str(folder / "2")) + sleep
    child = (
        note.format(path=str(folder / "1"))
        + f"import subprocess, sys; subprocess.run([sys.executable, '-c', {youngest!r}])"
    )
    eldest = (
        note.format(path=str(folder / "0"))
        + f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    )
    return [sys.executable, "-c", eldest]


def family_ids(folder: Path) -> list[int]:
    """Wait for the three process ids."""
    for _ in range(600):
        texts = [path.read_text() for path in sorted(folder.iterdir())]
        if len(texts) == 3 and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.05)
    raise TimeoutError("the processes did not start")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_end(ids: list[int]) -> bool:
    """Return whether all processes end within two seconds: the system may reap an orphan later."""
    for _ in range(100):
        if all(map(has_ended, ids)):
            return True
        time.sleep(0.02)
    return False


def test_children_and_grandchildren_end_with_the_context(tmp_path: Path) -> None:
    with run_process(family(tmp_path), log=None) as process:
        ids = family_ids(tmp_path)
        assert ids[0] == process.pid
        assert not any(map(has_ended, ids))
    assert all_end(ids)
    assert process.returncode is not None


@pytest.mark.slow
def test_they_also_end_after_an_error(tmp_path: Path) -> None:
    ids: list[int] = []

    def be_interrupted() -> None:
        with run_process(family(tmp_path), log=None):
            ids.extend(family_ids(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert len(ids) == 3
    assert all_end(ids)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    with run_process(family(tmp_path, stubborn=True), log=None):
        ids = family_ids(tmp_path)
    assert all_end(ids)


def test_a_process_that_has_ended_is_no_error() -> None:
    with run_process([sys.executable, "-c", "raise SystemExit(4)"], log=None) as process:
        process.wait(timeout=30)
    assert process.returncode == 4
    kill_tree(process)


def test_a_process_gets_log_environment_and_folder(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['COLOUR'], os.getcwd()); print('late', file=sys.stderr)"
    log = tmp_path / "log"
    with run_process([sys.executable, "-c", code], log=log, env={"COLOUR": "red"}, cwd=tmp_path) as process:
        process.wait(timeout=30)
    assert sorted(log.read_text().splitlines()) == ["late", f"red {tmp_path}"]


def test_ctrl_c_does_not_reach_child_processes(tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path('session').write_text(f'{os.getsid(0)} {os.getpid()}')"
    with run_process([sys.executable, "-c", code], log=None, cwd=tmp_path) as process:
        process.wait(timeout=30)
    session, pid = (tmp_path / "session").read_text().split()
    assert session == pid


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


@pytest.mark.slow
def test_orphans_are_found_by_the_session_of_their_process(tmp_path: Path) -> None:
    with run_process(family(tmp_path), log=None) as process:
        ids = family_ids(tmp_path)
        process.kill()
        process.wait()
        assert not has_ended(ids[2])
    assert all_end(ids)
