"""Which errors are transient: those of stores, network, Ray, MLflow and memory, not those of the user or the program.

Another attempt can overcome a transient error. An error of the program would only repeat its traceback.
"""

from __future__ import annotations

import re

from service.errors import MagnetError, StoppedError, UsageError

TRANSIENT_TYPES = (OSError, MemoryError, EOFError)
"""Built-in errors of files, network and memory."""
TRANSIENT_PACKAGES = frozenset(
    (
        *("ray", "mlflow", "grpc", "urllib3", "requests", "httpx", "httpx2", "botocore", "boto3", "obstore"),
        *("sqlalchemy", "psycopg", "torch", "concurrent", "asyncio", "multiprocessing"),
    )
)
"""Packages whose own error types report failures of servers, devices and processes."""
TRANSIENT_TEXT = re.compile(
    r"CUDA|cuDNN|cuBLAS|NCCL|Gloo|out of memory|can't (?:start new thread|allocate)|connection|timed out|DataLoader",
    re.I,
)
"""Texts of a plain RuntimeError that is transient: torch raises it for failed devices and processes too."""


def find_root_error(error: BaseException) -> BaseException:
    """Return the error that was raised in a worker, without Ray's wrapping.

    If several workers failed, an error that is not transient comes first: it decides whether the job is over.
    """
    inner = _inner_errors(error)
    if not inner:
        return error
    roots = [find_root_error(wrapped) for wrapped in inner]
    return next((root for root in roots if not is_transient(root)), roots[0])


def is_transient(error: BaseException) -> bool:
    """Return whether an error is transient: another attempt may succeed.

    Args:
        error: without Ray's wrapping, see `find_root_error`.
    """
    if isinstance(error, MagnetError):
        return not isinstance(error, UsageError | StoppedError)
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if isinstance(error, TRANSIENT_TYPES) or packages & TRANSIENT_PACKAGES:
        return True
    # The type alone, not its subclasses: NotImplementedError and RecursionError are errors of the program.
    return type(error) is RuntimeError and TRANSIENT_TEXT.search(str(error)) is not None


def _inner_errors(error: BaseException) -> list[BaseException]:
    """Return what an error of Ray wraps: RayTaskError, Ray Train's worker and controller errors, Ray Data's own."""
    if not any(cls.__module__.partition(".")[0] == "ray" for cls in type(error).__mro__):
        return []
    failures = getattr(error, "worker_failures", None)
    inner = list(failures.values()) if isinstance(failures, dict) else []
    inner += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")]
    if type(error).__name__ == "UserCodeException":
        inner.append(error.__cause__)
    return [candidate for candidate in inner if isinstance(candidate, BaseException) and candidate is not error]
