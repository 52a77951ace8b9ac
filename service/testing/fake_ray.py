"""A fake of Ray's Jobs API whose jobs are plain processes, for tests of the queue.

    python -m service.testing.fake_ray --port P [--log FILE]

Like Ray, it accepts a submission id only once and stops jobs by SIGTERM and, three seconds later, SIGKILL. When it is
killed, its jobs are killed too, and it does not know them after a restart. It writes one line per start of a job to the
log file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

STOP_WAIT_S = 3.0
"""Seconds between SIGTERM and SIGKILL."""


class FakeJobs:
    """Jobs of a fake Ray head.

    Args:
        log: file that gets a line for each start of a job; None for no file.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._kill_s: dict[str, float] = {}

    def submit(self, body: dict[str, Any]) -> tuple[int, object]:
        """Start a job's process; return HTTP status and body."""
        submission_id = body["submission_id"]
        if submission_id in self._processes:
            return 500, f"ValueError: Job with submission_id {submission_id} already exists."
        if self._log is not None:
            with open(self._log, "a") as log:
                log.write(f"{submission_id}\n")
        # As in Ray, a watcher kills the process group of the job when the head dies.
        command = f"(while kill -0 {os.getpid()} 2>/dev/null; do sleep 0.1; done; kill -9 -$$) & {body['entrypoint']}"
        self._processes[submission_id] = subprocess.Popen(
            ["bash", "-c", f"{command}; status=$?; kill $!; exit $status"],
            env=os.environ | body["runtime_env"]["env_vars"],
            start_new_session=True,
        )
        return 200, {"submission_id": submission_id}

    def status(self, submission_id: str) -> tuple[int, object]:
        """Return HTTP status and body with the state of a job."""
        if submission_id not in self._processes:
            return 404, f"Job {submission_id} does not exist"
        process, kill_s = self._processes[submission_id], self._kill_s.get(submission_id)
        # The fake has no timer: it kills a job that ignores SIGTERM when somebody asks for its state.
        if kill_s is not None and process.poll() is None and time.monotonic() > kill_s:
            os.killpg(process.pid, signal.SIGKILL)
        if process.poll() is None:
            return 200, {"status": "RUNNING"}
        state = "STOPPED" if kill_s is not None else "SUCCEEDED" if process.returncode == 0 else "FAILED"
        message = "" if state == "SUCCEEDED" else f"Job entrypoint command failed with exit code {process.returncode}"
        return 200, {"status": state, "message": message}

    def stop(self, submission_id: str) -> tuple[int, object]:
        """Request the end of a job; return HTTP status and body."""
        process = self._processes.get(submission_id)
        if process is None:
            return 404, f"Job {submission_id} does not exist"
        if process.poll() is None and submission_id not in self._kill_s:
            os.killpg(process.pid, signal.SIGTERM)
            self._kill_s[submission_id] = time.monotonic() + STOP_WAIT_S
        return 200, {"stopped": True}


def make_handler(jobs: FakeJobs) -> type[BaseHTTPRequestHandler]:
    """Return the request handler of the API for these jobs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/version":
                self._answer(200, {"ray_version": "fake"})
            elif self.path.startswith("/nodes"):
                self._answer(200, {"data": {"summary": [{"raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 2}}}]}})
            else:
                self._answer(*jobs.status(self.path.rpartition("/")[2]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            self._answer(*(jobs.stop(self.path.split("/")[-2]) if self.path.endswith("/stop") else jobs.submit(body)))

        def _answer(self, status: int, body: object) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Discard access logs."""

    return Handler


def main(arguments: list[str]) -> None:
    """Serve until the process is killed, one request at a time."""
    parser = argparse.ArgumentParser(prog="fake_ray", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--log", type=Path, help="file that gets a line for each start of a job")
    options = parser.parse_args(arguments)
    HTTPServer(("127.0.0.1", options.port), make_handler(FakeJobs(options.log))).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
