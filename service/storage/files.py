"""Local files: opened under their resolved names and checked again once they are open.

A link that is created between the check of a name and the opening of the file must not lead a process with rights
(`service.storage.rights`) to another file. Therefore the last part of a name is never followed as a link, and the path
of the open descriptor, which can no longer be replaced, is checked again where the system reports it (Linux). Pipes and
devices are refused, because reading them may never end.
"""

from __future__ import annotations

import os
import stat as modes
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from service.errors import AccessError, NotFoundError, StorageError, UsageError
from service.storage.rights import current_rights, outside_error
from service.storage.uri import Location

DESCRIPTORS = "/proc/self/fd"
"""Folder in which Linux reports the path of each open descriptor."""


@contextmanager
def map_file_errors(uri: str) -> Iterator[None]:
    """Raise the errors of file operations inside this context as errors of `service.errors`."""
    try:
        yield
    except OSError as error:
        raise _map_os_error(error, uri) from error


def open_regular(path: str, uri: str) -> int:
    """Open a regular file for reading.

    Args:
        path: resolved path, as `service.storage.rights.resolve` returns it.
        uri: name for error messages.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        AccessError: the opened file is outside this process's rights.
        UsageError: it is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _no_follow_flag())
    try:
        mode = os.fstat(descriptor).st_mode
        if modes.S_ISDIR(mode):
            raise IsADirectoryError(path)
        if not modes.S_ISREG(mode):
            raise UsageError("is a pipe or device, not a regular file", uri=uri)
        _check_opened(descriptor, uri, write=False)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: str, uri: str, max_bytes: int | None) -> bytes:
    """Read all bytes of a file; see `open_regular` for `path`, `uri` and the errors.

    Raises:
        UsageError: the file is larger than `max_bytes`.
    """
    with open(open_regular(path, uri), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        check_size(size_bytes, max_bytes, uri)
        return file.read()


def check_size(size_bytes: int, max_bytes: int | None, uri: str) -> None:
    """Raise UsageError if an object is larger than its reader allows; None allows any size."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise UsageError(f"has {size_bytes:,} bytes, more than the limit of {max_bytes:,}", uri=uri)


def write_file(path: str, data: bytes, uri: str) -> None:
    """Write a file completely or not at all; create its folder if it is missing."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # All further steps use this descriptor, so that replacing the folder by a link cannot redirect the file.
    folder_descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | _no_follow_flag())
    temporary = f".{name[:200]}.{uuid.uuid4().hex}"
    try:
        _check_opened(folder_descriptor, uri, write=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o666, dir_fd=folder_descriptor), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder_descriptor, dst_dir_fd=folder_descriptor)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder_descriptor)
        os.close(folder_descriptor)


def walk_files(folder: str) -> list[str]:
    """List all files below a folder, as sorted paths relative to it.

    Linked folders are not entered, and neither are folders that this process may not read.
    """
    files, rights = [], current_rights()
    for parent, folders, names in os.walk(folder):
        if rights is not None:
            # os.walk enters the folders that remain in this list.
            folders[:] = [name for name in folders if rights.allows(Location("file", "", f"{parent}/{name}"))]
        relative = os.path.relpath(parent, folder)
        paths = [name if relative == "." else f"{relative}/{name}" for name in names]
        files += [path for path in paths if os.path.isfile(os.path.join(folder, path))]
    return sorted(files)


def _no_follow_flag() -> int:
    return 0 if current_rights() is None else os.O_NOFOLLOW


def _check_opened(descriptor: int, uri: str, *, write: bool) -> None:
    """Check the path of an open file against this process's rights."""
    rights = current_rights()
    if rights is None or not os.path.isdir(DESCRIPTORS):
        return
    path = os.readlink(f"{DESCRIPTORS}/{descriptor}")
    if not rights.allows(Location("file", "", path), write=write):
        raise outside_error(uri, write=write)


def _map_os_error(error: OSError, uri: str) -> UsageError | StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError("no such file; check the path, and that this machine mounts it", uri=uri)
    if isinstance(error, IsADirectoryError):
        return UsageError("is a folder, not a file", uri=uri)
    if isinstance(error, PermissionError):
        return AccessError("permission denied; check the owner and the mode of the file", uri=uri)
    return StorageError(f"the file system failed: {error.strerror or error}", uri=uri)
