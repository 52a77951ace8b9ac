"""What the commands share: logging, error messages, exit statuses (what these mean: `service.exit_status`)."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from ray_jobs.command_line.permanence import passes, root_error
from service import exit_status
from service.errors import MagnetError, ProgramError, UsageError
from service.progress.file import append_error
from service.queue.incidents import describe

HOME_RUNS = "~/magnet-runs"
"""Folder of runs when nothing is named."""


def run(main: Callable[[list[str]], int]) -> None:
    """Run a command to its exit status; errors that are meant for the user come without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted; the same command with the same --name goes on", file=sys.stderr)
        status = exit_status.INTERRUPTED
    except Exception as error:  # noqa: BLE001  its kind decides over another attempt
        status = report(error)
    sys.stdout.flush()
    sys.exit(status)


def report(error: Exception) -> int:
    """Print an error: in one line if it is meant for the user, else with its traceback; the exit status."""
    cause = root_error(error)
    if isinstance(cause, MagnetError) and not isinstance(cause, ProgramError):
        _report_line(str(cause))
        final = exit_status.USAGE if isinstance(cause, UsageError) else exit_status.STOPPED
        return exit_status.FAILED if passes(cause) else final
    if isinstance(cause, ProgramError):  # a worker has printed its traceback
        _report_line(str(cause))
        return exit_status.INTERNAL
    traceback.print_exception(error)
    if passes(cause):
        _report_line(describe(cause))
        return exit_status.FAILED
    _report_line(str(program_error(cause)))
    return exit_status.INTERNAL


def _report_line(message: str) -> None:
    """Print the error that ends the command, and record it as the reason that users of the service see."""
    print(f"error: {message}", file=sys.stderr)
    append_error(message)


def program_error(error: BaseException) -> ProgramError:
    """The error of the program that an unexpected one is."""
    return ProgramError(f"an error of this program, report it with this log: {describe(error)}")


def absolute(place: str) -> str:
    """A path made absolute, so that workers elsewhere mean the same; URIs stay as they are."""
    return place if "://" in place else str(Path(place).expanduser().resolve())


def storage_folder(option: str | None) -> str:
    """The folder of a job's runs: --storage, MAGNET_STORAGE or a folder in the user's home."""
    return absolute(option or os.environ.get("MAGNET_STORAGE") or HOME_RUNS)


def job_name(text: str) -> str:
    """A job's name, as folders, MLflow's filters and object stores take it.

    Raises:
        UsageError: if it has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise UsageError(f"--name {text!r}: must be 1 to 100 letters, digits, '.', '_' or '-', a letter or digit first")
    return text


def gigabytes(text: str) -> float:
    """The value of --gpu-memory in gigabytes (10^9 bytes), from words such as 24GB or 40.

    Raises:
        UsageError: it is no such word.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]) > 0:
        raise UsageError(f"--gpu-memory {text!r}: want gigabytes above 0, for example 24GB")
    return float(found[1])


def new_name(kind: str) -> str:
    """A name for a job that was given none: unique, sortable by time."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def again(name: str) -> str:
    """What to type to let this process's job go on."""
    named = [] if "--name" in sys.argv else ["--name", name]
    return shlex.join(["python", *sys.argv, *named])


def worker_environment() -> dict[str, str]:
    """What workers need of this process's environment, beyond what their node has: object store and MLflow.

    Credentials of the store are left to the cluster's own environment; MLflow's token comes with the job, which is the
    only one that has it.
    """
    names = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI"]
    names += ["MLFLOW_TRACKING_TOKEN"]
    names += ["AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"]
    return {name: os.environ[name] for name in names if name in os.environ}
