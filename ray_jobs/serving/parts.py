"""Long-running processes of `magnet serve`, which are started again when they die."""

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

RESTART_PAUSE_S = 2.0
"""Seconds before a part that died is started again, so that one that cannot start does not busy the machine."""
REMOVED_VARIABLES = (
    *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_AUTH_TOKEN", "MAGNET_RIGHTS"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
)
"""Variables of the user's shell that would lead a part to another cluster or server."""
PRIVATE_UMASK = 0o077
"""Umask under which only their owner can read new files."""


@dataclass(slots=True)
class Part:
    """A process that is kept running."""

    name: str
    """Name of the part in messages."""
    argv: Sequence[str]
    """Program and arguments."""
    log: Path
    """File for standard output and standard error."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition to this process's environment."""
    umask: int = PRIVATE_UMASK
    """Umask of the process."""
    process: subprocess.Popen[bytes] | None = None
    """The process; None: it has not been started."""
    has_responded: bool = False
    """Whether the part has responded since the service started."""

    def start(self) -> None:
        """Start the process."""
        inherited = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
        with open(self.log, "ab", opener=_open_private) as log:
            self.process = subprocess.Popen(
                list(self.argv),
                stdout=log,
                stderr=log,
                env=inherited | dict(self.env),
                umask=self.umask,
                start_new_session=True,  # Ctrl-C must reach only this command, which stops the parts in order
                preexec_fn=with_parent(signal.SIGTERM),
            )

    def revive(self) -> None:
        """Start the process again if it has died."""
        if self.process is not None and self.process.poll() is not None:
            print(
                f"{self.name} ended with status {self.process.returncode}; starting it again. Its log: {self.log}",
                flush=True,
            )
            kill_tree(self.process)  # its children may still hold its ports
            time.sleep(RESTART_PAUSE_S)
            self.start()

    def stop(self) -> None:
        """Stop the process and its children."""
        if self.process is not None:
            kill_tree(self.process)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
