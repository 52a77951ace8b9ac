"""What all commands share: logging, error messages and exit statuses (`service.exit_status` defines these)."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable

from ray_jobs.command_line.transient_errors import find_root_error, is_transient
from service import exit_status
from service.errors import MagnetError, ProgramError, UsageError
from service.progress.file import append_error
from service.queue.incidents import describe


def run(main: Callable[[list[str]], int]) -> None:
    """Run a command and exit with its status. Errors that are meant for the user are printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted; the same command with the same --name continues the job", file=sys.stderr)
        status = exit_status.INTERRUPTED
    except Exception as error:  # noqa: BLE001  its kind decides whether another attempt is made
        status = report(error)
    sys.stdout.flush()
    sys.exit(status)


def report(error: Exception) -> int:
    """Print an error, in one line if it is meant for the user, else with its traceback.

    Returns:
        The exit status, by which the queue decides whether to make another attempt.
    """
    cause = find_root_error(error)
    if isinstance(cause, MagnetError) and not isinstance(cause, ProgramError):
        _report_line(str(cause))
        final = exit_status.USAGE if isinstance(cause, UsageError) else exit_status.STOPPED
        return exit_status.FAILED if is_transient(cause) else final
    if isinstance(cause, ProgramError):  # a worker has printed its traceback
        _report_line(str(cause))
        return exit_status.INTERNAL
    traceback.print_exception(error)
    if is_transient(cause):
        _report_line(describe(cause))
        return exit_status.FAILED
    _report_line(str(to_program_error(cause)))
    return exit_status.INTERNAL


def _report_line(message: str) -> None:
    """Print the error that ends the command, and record it as the reason that users of the service see."""
    print(f"error: {message}", file=sys.stderr)
    append_error(message)


def to_program_error(error: BaseException) -> ProgramError:
    """Return the error to show for an unexpected one: it asks the user to report it."""
    return ProgramError(f"this is an error of the program; report it together with this log: {describe(error)}")


def resume_command(name: str) -> str:
    """Return the command line that continues this process's job.

    Args:
        name: name of the job; it is added if the user did not give one.
    """
    name_option = [] if "--name" in sys.argv else ["--name", name]
    return shlex.join(["python", *sys.argv, *name_option])


def worker_environment() -> dict[str, str]:
    """Return the variables that workers need beyond those of their node: object store and MLflow.

    Credentials of the object store are left to the cluster's own environment. MLflow's token is different: it belongs
    to this job, and no node has it.
    """
    names = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI"]
    names += ["MLFLOW_TRACKING_TOKEN"]
    names += ["AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"]
    return {name: os.environ[name] for name in names if name in os.environ}
