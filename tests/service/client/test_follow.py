"""Logs that are followed while the API is killed and started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from service.client import Client, ServiceError
from service.operations.serving import create_admin_token
from service.queue.attempt_folder import attempt_folder
from service.queue.requests import Check
from service.queue.store import JobStore
from service.queue.tables import Database, jobs
from service.settings.service import ServiceSettings, read_service_settings

ROOT = Path(__file__).parents[3]
START = "from service.cli.main import main; main()"
PARTS = [f"line {k}: Gewebe fünf µm, Größe {k} 🔬\n".encode() for k in range(40)]


class ApiProcess:
    """A process of `magnet api`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.config, self.folder = folder / "service.yaml", folder
        self.config.write_text(yaml.safe_dump({"storage": str(folder / "storage"), "port": port}))
        self.settings: ServiceSettings = read_service_settings(str(self.config), [])
        self.url = f"http://127.0.0.1:{port}"
        self.token = create_admin_token(self.settings, "ada")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-c", START, "api", "--config", str(self.config)]
        with open(self.folder / "api.log", "ab") as log:
            self.process = subprocess.Popen(argv, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=log, stderr=log)
        with Client(self.url, None, patience_s=60) as client:
            client.alive()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def api_process(tmp_path: Path) -> Iterator[ApiProcess]:
    api_process = ApiProcess(tmp_path)
    api_process.start()
    yield api_process
    api_process.kill()


class RunningJob:
    """A job whose attempts the test simulates: it writes their logs as the supervisor does."""

    def __init__(self, api_process: ApiProcess) -> None:
        self._database = Database(api_process.settings.database_url)
        self.store = JobStore(self._database)
        job, _ = self.store.add(Check(manifest="/m.csv"), "ada")
        self.id, self._folder, self._written = job.id, api_process.settings.job_folder("ada", job.id), b""

    def set(self, **values: object) -> None:
        with self._database.writing() as connection:
            connection.execute(jobs.update().where(jobs.c.id == self.id).values(values))

    def start(self, attempt: int) -> None:
        self.set(state="running", attempt=attempt)
        self._log, self._written = attempt_folder(self._folder, attempt), b""

    def write(self, data: bytes) -> None:
        self._written += data
        self._log.write_log(0, self._written)  # the whole part, as the supervisor writes it


class Follower(threading.Thread):
    """Thread that follows a log and keeps its text."""

    def __init__(self, api_process: ApiProcess, job_id: str) -> None:
        super().__init__(daemon=True)
        self.text, self.reports, self.error = "", list[str](), list[Exception]()
        self._api_process, self._job_id = api_process, job_id

    def run(self) -> None:
        try:
            with Client(self._api_process.url, self._api_process.token, report=self.reports.append) as client:
                for text in client.logs(self._job_id, follow=True):
                    self.text += text
        except Exception as error:  # noqa: BLE001  (the test reports it)
            self.error.append(error)

    def wait_for(self, text: str) -> None:
        deadline_s = time.monotonic() + 120
        while text not in self.text:
            assert self.is_alive(), self.error
            assert time.monotonic() < deadline_s, self.text[-200:]
            time.sleep(0.02)


def split_in_character(data: bytes) -> tuple[bytes, bytes]:
    """Cut data inside its last character, which has four bytes."""
    return data[:-3], data[-3:]


@pytest.mark.slow
def test_no_byte_is_lost_or_repeated_while_the_api_is_killed_and_restarted(api_process: ApiProcess) -> None:
    job = RunningJob(api_process)
    follower = Follower(api_process, job.id)
    follower.start()
    try:
        for attempt in (1, 2):
            job.start(attempt)
            for k in range(0, 40, 10):
                whole = b"".join(PARTS[k : k + 10])
                first, second = split_in_character(whole)
                job.write(first)
                if k in (10, 20):
                    api_process.kill()
                    job.write(second)
                    api_process.start()
                else:
                    job.write(second)
                if attempt == 1 and k == 0:
                    follower.wait_for("line 9")  # only after its first response does a client wait for any time
            if attempt == 1:
                follower.wait_for("line 39")
        job.set(state="done", ended_s=time.time())
        follower.join(120)
    finally:
        job.set(state="done", ended_s=time.time())
    assert not follower.error
    whole = b"".join(PARTS).decode()
    assert follower.text == f"{whole}--- attempt 2 ---\n{whole}"
    assert follower.reports
    assert all("no response" in report for report in follower.reports)


def test_following_a_log_at_a_wrong_address_fails_at_once(tmp_path: Path) -> None:
    with (
        Client("http://127.0.0.1:1", "magnet_x", patience_s=0) as client,
        pytest.raises(ServiceError, match="no response"),
    ):
        list(client.logs("check-20260101-000000-00000000", follow=True))
