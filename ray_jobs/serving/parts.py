"""Long-running processes of `magnet serve`: started, and started again when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_jobs.cluster.processes import kill_tree
from service.supervisor.parent_death import with_parent

REST_S = 2.0
"""Seconds before a part that died is started again."""
FOREIGN = (
    *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_TOKEN", "MAGNET_RIGHTS"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
)
"""Variables of the user's shell that would lead a part to another cluster or server."""
PRIVATE = 0o077
"""Umask under which new files are readable by their owner only."""


@dataclass(slots=True)
class Part:
    """A process that is kept alive."""

    name: str
    words: Sequence[str]
    """Program and arguments."""
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    umask: int = PRIVATE
    process: subprocess.Popen[bytes] | None = None
    answered: bool = False
    """Whether it has answered since the service started."""

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is for this command, which stops it in order."""
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        with open(self.log, "ab", opener=_private) as log:
            self.process = subprocess.Popen(
                list(self.words),
                stdout=log,
                stderr=log,
                env=inherited | dict(self.env),
                umask=self.umask,
                start_new_session=True,
                preexec_fn=with_parent(signal.SIGTERM),
            )

    def revive(self) -> None:
        """Start it again if it has died."""
        if self.process is not None and self.process.poll() is not None:
            print(f"{self.name} ended ({self.process.returncode}); starting it again. Its log: {self.log}", flush=True)
            kill_tree(self.process)  # what it left behind
            time.sleep(REST_S)
            self.start()

    def stop(self) -> None:
        """Stop it, and the processes that it started."""
        if self.process is not None:
            kill_tree(self.process)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
