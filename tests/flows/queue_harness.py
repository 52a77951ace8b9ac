"""Harness of the queue's flow tests: the service as real processes, on a cluster whose jobs are plain processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import yaml

from ray_jobs.cluster.processes import free_port
from service.api.response_bodies import JobView
from service.client.client import Client
from service.operations.serving import create_admin_token
from service.queue.requests import Check
from service.settings.service import ServiceSettings, read_service_settings
from tests.flows.harness import ROOT, Command, answers, running

FAST = {"beat_s": 0.3, "silence_s": 2.0, "lease_s": 1.0, "retry_first_s": 0.2, "retry_most_s": 0.5, "arrivals_s": 0.5}
STUB = ROOT / "tests" / "flows" / "stub_python.py"


class Queue:
    """API, dispatcher and cluster as processes, each of which can be killed."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.parts: dict[str, Command] = {}
        self.num_logs = 0
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
        python.chmod(0o755)
        values = FAST | {
            "storage": str(folder / "service"),
            "database": database,
            "python": str(python),
            "port": free_port(),
        }
        values |= {"ray": f"http://127.0.0.1:{free_port()}", "job_env": {"PYTHONPATH": str(ROOT)}}
        values |= {"places": [{"prefix": str(folder), "write": ["*"]}]}
        values |= {"max_running": {"check": 8}, "max_running_per_user": 8}
        self.config = folder / "service.yaml"
        self.config.write_text(yaml.safe_dump(values))
        self.settings: ServiceSettings = read_service_settings(str(self.config), [])
        self.starts = folder / "starts"
        self.client = Client(f"http://127.0.0.1:{self.settings.port}", create_admin_token(self.settings, "lab"))

    def start_api(self, *dying: str) -> None:
        """Start the API; `dying` is a step at which it kills itself, and "before" or "after"."""
        self._start("api", dying)
        self.parts["api"].wait_for(lambda: answers(f"{self.client.url}/healthz"), 60)

    def start_dispatcher(self, *dying: str) -> None:
        """Start the dispatcher; `dying` is a step at which it kills itself, and "before" or "after"."""
        self._start("dispatch", dying)

    def start_dispatcher_as(self, part: str) -> None:
        """Start one of several dispatchers; `part` is its name in `parts`."""
        magnet = "from service.cli.main import main; main()"
        self._run(part, ["python", "-c", magnet, "dispatch", "--config", str(self.config)])

    def at_work(self, *parts: str) -> list[str]:
        """Return the dispatchers, of these, that have taken the lease; also dead ones."""
        return [part for part in parts if "at work" in self.parts[part].output]

    def start_ray(self) -> None:
        """Start a head of the cluster that knows no jobs."""
        port = self.settings.ray.rpartition(":")[2]
        self._run("ray", ["python", "-m", "service.testing.fake_ray", "--port", port, "--log", str(self.starts)])
        self.parts["ray"].wait_for(lambda: answers(f"{self.settings.ray}/api/version"), 60)

    def kill(self, part: str) -> None:
        """Kill a part with SIGKILL."""
        psutil.Process(self.parts[part].process.pid).kill()
        self.parts[part].process.wait()

    def wait_for_death(self, part: str, timeout_s: float = 30) -> None:
        """Wait until a part has killed itself."""
        assert self.parts[part].process.wait(timeout_s) == -signal.SIGKILL, self.parts[part].output

    def submit(self, name: str) -> JobView:
        """Submit a job that does what its name says; see `stub_python`."""
        manifest = self.folder / f"{name}.csv"
        manifest.touch()
        return self.client.submit(Check(manifest=str(manifest)))

    def trace(self, name: str) -> Counter[str]:
        """Return how often the job's command started and ended."""
        path = self.folder / f"{name}.trace"
        return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()

    def wait_for_start(self, name: str, timeout_s: float = 30) -> int:
        """Wait until the job's command runs; return its process id."""
        deadline = time.monotonic() + timeout_s
        while not self.trace(name)["start"]:
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.05)
        return int((self.folder / f"{name}.trace").read_text().split()[-1])

    def _start(self, what: str, dying: tuple[str, ...]) -> None:
        if dying:
            self._run(what, ["python", "tests/flows/dying.py", what, str(self.config), *dying])
        else:
            magnet = "from service.cli.main import main; main()"
            self._run(what, ["python", "-c", magnet, what, "--config", str(self.config)])

    def _run(self, part: str, command: list[str]) -> None:
        self.num_logs += 1
        log = self.folder / f"{part}-{self.num_logs}.log"
        environment = {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # `env` execs the program, so the process is the part itself.
        self.parts[part] = self.stack.enter_context(running(command, environment, log))


@contextmanager
def queue(folder: Path, database: str | None = None) -> Iterator[Queue]:
    """Make a queue without processes; at the end stop those that were started."""
    started = Queue(folder, database)
    with started.stack, started.client:
        yield started
