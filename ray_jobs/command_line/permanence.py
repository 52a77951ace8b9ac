"""Which unexpected errors would come again: those of the program, not of stores, network, Ray, MLflow or memory.

An error that passes is worth another attempt; one of the program only repeats its traceback.
"""

from __future__ import annotations

import re

from service.errors import MagnetError, StoppedError, UsageError

PASSING_TYPES = (OSError, MemoryError, EOFError)
"""Built-in errors of files, network and memory."""
PASSING_PACKAGES = frozenset(
    (
        *("ray", "mlflow", "grpc", "urllib3", "requests", "httpx", "httpx2", "botocore", "boto3", "obstore"),
        *("sqlalchemy", "psycopg", "torch", "concurrent", "asyncio", "multiprocessing"),
    )
)
"""Packages whose own error types report failures of servers, devices and processes."""
PASSING_TEXT = re.compile(
    r"CUDA|cuDNN|cuBLAS|NCCL|Gloo|out of memory|can't (?:start new thread|allocate)|connection|timed out|DataLoader",
    re.I,
)
"""In a plain RuntimeError, which torch raises of devices and processes too."""


def root_error(error: BaseException) -> BaseException:
    """The error that was raised in a worker, without Ray's wrapping; of several the one that comes again."""
    inner = _inner(error)
    if not inner:
        return error
    roots = [root_error(wrapped) for wrapped in inner]
    return next((root for root in roots if not passes(root)), roots[0])


def passes(error: BaseException) -> bool:
    """Whether another attempt may end better.

    Args:
        error: unwrapped, see `root_error`.
    """
    if isinstance(error, MagnetError):
        return not isinstance(error, UsageError | StoppedError)
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if isinstance(error, PASSING_TYPES) or packages & PASSING_PACKAGES:
        return True
    return type(error) is RuntimeError and PASSING_TEXT.search(str(error)) is not None


def _inner(error: BaseException) -> list[BaseException]:
    """What Ray's errors hold: RayTaskError, WorkerGroupError and ControllerError of Ray Train, Ray Data's own."""
    if not any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__):
        return []
    failures = getattr(error, "worker_failures", None)
    held = list(failures.values()) if isinstance(failures, dict) else []
    held += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")]
    if type(error).__name__ == "UserCodeException":
        held.append(error.__cause__)
    return [one for one in held if isinstance(one, BaseException) and one is not error]
