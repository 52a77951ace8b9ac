"""Output of commands: standard output, a file, or an object store."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from service.errors import UsageError


def write_output(data: bytes, output: str | None) -> None:
    """Write data completely or not at all.

    Args:
        data: data to write.
        output: path or URI; None or `-`: standard output.

    Raises:
        UsageError: the file cannot be written.
    """
    if output in (None, "-"):
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    elif "://" in output:
        from service import storage  # noqa: PLC0415  (loading the clients of object stores takes half a second)

        storage.write_bytes(output, data)
    else:
        _write_file(Path(output).expanduser(), data)


def _write_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if path.exists() and not path.is_file():  # a device or pipe must not be replaced by a file
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}; choose another file with --output"
        ) from error
