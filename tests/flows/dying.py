"""A process of the service that kills itself with SIGKILL at the first occurrence of a step of a job.

python tests/flows/dying.py dispatch|api CONFIG STEP before|after
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from service.operations.serving import run_dispatcher, serve_api
from service.queue import attempts, dispatcher, ray_api, store
from service.settings.service import read_service_settings

STEPS: dict[str, tuple[type, str]] = {
    "submitted over HTTP": (store.JobStore, "add"),
    "admitted": (store.JobStore, "admit"),
    "given a workflow": (dispatcher.Dispatcher, "_start_workflow"),
    "handed to Ray": (ray_api.RayJobs, "submit"),
    "noted as running": (store.JobStore, "mark_running"),
    "heard of": (store.JobStore, "record_heartbeat"),
    "stop requested": (ray_api.RayJobs, "stop"),
    "settled": (attempts.Attempts, "settle"),
    "written down as ended": (store.JobStore, "end_attempt"),
    "queued again": (store.JobStore, "requeue"),
}


def make_fatal(step: Callable[..., Any], when: str) -> Callable[..., Any]:
    """Return the step with a SIGKILL before or after it."""

    @functools.wraps(step)
    def fatal(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = step(*arguments, **options)
        if result != []:  # an admission without jobs does not count
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return fatal


def main() -> None:
    process, config, step, when = sys.argv[1:]
    kind, name = STEPS[step]
    setattr(kind, name, make_fatal(getattr(kind, name), when))
    (run_dispatcher if process == "dispatch" else serve_api)(read_service_settings(config, []))


if __name__ == "__main__":
    main()
