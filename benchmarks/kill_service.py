"""Recovery of the service after kills: seconds until it works again, and whether a job is lost or runs twice.

    python benchmarks/kill_service.py --slides FOLDER

Starts `magnet serve` and submits checks of a folder of slides. Kills one part after the other with SIGKILL, and finally
all processes at once; each time it waits until a job that was submitted after the kill is done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ray_jobs.cluster.processes import free_port, kill_tree
from service.client import Client
from service.queue.requests import Check

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "API": ("main() api",),
    "dispatcher": ("main() dispatch",),
    "MLflow": ("ray_jobs.serving.mlflow_guard",),
    "Ray's head": ("gcs_server", "raylet/raylet", "/ray start"),
}
"""Parts of the command lines of the processes that are killed."""
PATIENCE_S = 300.0


class Service:
    """A process of `magnet serve` with its own folder."""

    def __init__(self, folder: Path, slides: Path) -> None:
        self.folder, self.slides, self.port = folder, slides, free_port()
        self.env = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}

    def start(self) -> None:
        argv = [sys.executable, "-m", "ray_jobs.serve", "--storage", str(self.folder / "s"), "--port", str(self.port)]
        argv += ["--allow", str(self.slides), "--set", "retry_first_s=1", "--set", "silence_s=10"]
        with open(self.folder / "serve.log", "ab") as log:
            options = {"env": self.env, "cwd": ROOT, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(argv, start_new_session=True, **options)

    def open_client(self) -> Client:
        stored = json.loads((self.folder / ".config/magnet/client.json").read_text())
        return Client(stored["url"], stored["token"], patience_s=PATIENCE_S)

    def find_processes(self, *patterns: str) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [
            process
            for process in family
            if not patterns or any(pattern in read_command_line(process) for pattern in patterns)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True, help="folder of slides that can be opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-service-") as folder:
        service = Service(Path(folder), options.slides.resolve())
        service.start()
        try:
            measure(service)
        finally:
            kill_tree(service.process)


def measure(service: Service) -> None:
    """Kill each part, and print a row of the table for each."""
    while not (service.folder / ".config/magnet/client.json").exists():
        time.sleep(0.2)
    submitted: list[str] = []
    check = Check(manifest=f"{service.slides}/")
    with service.open_client() as client:
        first = client.submit(check)
        assert client.wait(first.id, timeout_s=PATIENCE_S).state == "done", "".join(client.logs(first.id))
        print("| killed | a job submitted after it is done after |\n| --- | --- |", flush=True)
        for part in (*PARTS, "everything at once"):
            submitted += [client.submit(check).id for _ in range(3)]
            time.sleep(1.5)  # one of them is running
            killed_s = time.monotonic()
            if part == "everything at once":
                for process in [psutil.Process(service.process.pid), *service.find_processes()]:
                    kill(process)
                service.process.wait()
                service.start()
            else:
                for process in service.find_processes(*PARTS[part]):
                    kill(process)
            after = client.submit(check)
            submitted.append(after.id)
            state = client.wait(after.id, timeout_s=PATIENCE_S).state
            print(f"| {part} | {time.monotonic() - killed_s:.1f} s ({state}) |", flush=True)
        jobs = [client.wait(job_id, timeout_s=PATIENCE_S) for job_id in submitted]
    num_done = sum(job.state == "done" for job in jobs)
    num_repeated = sum(sum(attempt.exit_code == 0 for attempt in job.attempts) > 1 for job in jobs)
    print(
        f"{len(jobs)} jobs submitted, {num_done} done, {num_repeated} done twice, "
        f"attempts {sorted(job.attempt for job in jobs)}"
    )


def read_command_line(process: psutil.Process) -> str:
    """Return the command line of a process; empty: it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


if __name__ == "__main__":
    main()
