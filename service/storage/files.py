"""Files of this machine: opened under their resolved names, and looked at once more when they are open.

A process with rights (`service.storage.rights`) must not be led elsewhere by a link that is put in place between the
check and the opening. So the last part of a name is never followed as a link, and the descriptor's own path, which
nobody can exchange any more, is checked again where the system tells it (Linux). Pipes and devices are refused, since
reading them may never end.
"""

from __future__ import annotations

import os
import stat as modes
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from service.errors import AccessError, NotFoundError, StorageError, UsageError
from service.storage.rights import in_force, outside
from service.storage.uri import Location

DESCRIPTORS = "/proc/self/fd"
"""Where Linux names the file behind a descriptor."""


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Context in which the errors of file operations become ours."""
    try:
        yield
    except OSError as error:
        raise _mapped(error, uri) from error


def open_regular(path: str, uri: str) -> int:
    """A descriptor of a regular file, for reading.

    Args:
        path: resolved, as `service.storage.rights.resolve` returns it.
        uri: for error messages.

    Raises:
        AccessError: what was opened lies outside this process's rights.
        UsageError: it is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK the opening of a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _no_follow())
    try:
        mode = os.fstat(descriptor).st_mode
        if modes.S_ISDIR(mode):
            raise IsADirectoryError(path)
        if not modes.S_ISREG(mode):
            raise UsageError("is a pipe or device, not a file", uri=uri)
        _check_opened(descriptor, uri, write=False)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: str, uri: str, most_bytes: int | None) -> bytes:
    """All bytes of a file; arguments as for `open_regular`.

    Raises:
        UsageError: also if it has more than `most_bytes`.
    """
    with open(open_regular(path, uri), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        check_size(size_bytes, most_bytes, uri)
        return file.read()


def check_size(size_bytes: int, most_bytes: int | None, uri: str) -> None:
    """Refuse what is larger than its reader expects."""
    if most_bytes is not None and size_bytes > most_bytes:
        raise UsageError(f"has {size_bytes:,} bytes; at most {most_bytes:,} are read here", uri=uri)


def write_file(path: str, data: bytes, uri: str) -> None:
    """Write a file whole or not at all; its folder is made if it is missing."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    inside = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | _no_follow())
    temporary = f".{name[:200]}.{uuid.uuid4().hex}"
    try:
        _check_opened(inside, uri, write=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o666, dir_fd=inside), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=inside)
        os.close(inside)


def walk_files(folder: str) -> list[str]:
    """Paths of all files below a folder, sorted, relative to it.

    Linked folders are not entered, nor are those that this process may not read.
    """
    found, rights = [], in_force()
    for parent, folders, names in os.walk(folder):
        if rights is not None:
            folders[:] = [one for one in folders if rights.allow(Location("file", "", f"{parent}/{one}"), write=False)]
        inside = os.path.relpath(parent, folder)
        paths = [name if inside == "." else f"{inside}/{name}" for name in names]
        found += [path for path in paths if os.path.isfile(os.path.join(folder, path))]
    return sorted(found)


def _no_follow() -> int:
    return 0 if in_force() is None else os.O_NOFOLLOW


def _check_opened(descriptor: int, uri: str, *, write: bool) -> None:
    """Check the path of an open file against this process's rights."""
    rights = in_force()
    if rights is None or not os.path.isdir(DESCRIPTORS):
        return
    path = os.readlink(f"{DESCRIPTORS}/{descriptor}")
    if not rights.allow(Location("file", "", path), write=write):
        raise outside(uri, write=write)


def _mapped(error: OSError, uri: str) -> UsageError | StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError("no such file; check the path, and that this machine mounts it", uri=uri)
    if isinstance(error, IsADirectoryError):
        return UsageError("is a folder, not a file", uri=uri)
    if isinstance(error, PermissionError):
        return AccessError("no right to do this to the file; check its owner and mode", uri=uri)
    return StorageError(f"the file system failed: {error.strerror or error}", uri=uri)
