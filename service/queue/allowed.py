"""Checks which places a job may name: no arbitrary files of the cluster's nodes, no internal addresses.

The job itself gets the same rights in `MAGNET_RIGHTS`; `service.storage.rights` enforces them whenever it opens a file.
"""

from __future__ import annotations

import re

from service import storage
from service.errors import UsageError
from service.queue.requests import (
    Check,
    Score,
    Train,
    Tune,
    read_places,
    weights_and_encoders,
    written_places,
)
from service.storage.rights import Rights

TAG = re.compile(r"[A-Za-z0-9_-]+")
"""A tag of pretrained weights in timm; any other name of weights is that of a file."""


def check_allowed(request: Check | Train | Tune | Score, rights: Rights) -> None:
    """Refuse a request that names a place outside the user's rights, or weights that can contain code.

    Args:
        request: the job.
        rights: of its user.

    Raises:
        AccessError: the user has no right to a place; the error names it.
        UsageError: weights are pickled, or an encoder is loaded from elsewhere.
    """
    weights, encoders = weights_and_encoders(request)
    files = [name for name in weights if not TAG.fullmatch(name)]
    for name in files:
        if not name.endswith(".safetensors"):
            raise UsageError(
                "weights must be a .safetensors file, since pickled files can run code; convert them", uri=name
            )
    for name in encoders:
        # timm downloads models of anybody by names such as "hf-hub:owner/model".
        if ":" in name:
            raise UsageError(f"encoder {name!r}: must be the plain name of a timm model, without ':'")
    for place in [*read_places(request), *files]:
        require_allowed(place, rights)
    for place in written_places(request):
        require_allowed(place, rights, write=True)


def require_allowed(place: str, rights: Rights, *, write: bool = False) -> None:
    """Refuse a place that a user may not read, or write.

    Args:
        place: a path or URI.
        rights: of the user.
        write: whether the place is written.

    Raises:
        AccessError: the user has no right to it.
        UsageError: it is a relative path.
    """
    if "://" not in place and not place.startswith("/"):
        raise UsageError("write a whole URI or an absolute path: jobs run in another working folder", uri=place)
    rights.require(place, write=write)


def join_result_file(folder: str, relative: str) -> str:
    """Return the URI of a file in a results folder; the name comes from a user.

    Args:
        folder: of the results.
        relative: name of the file.

    Raises:
        UsageError: the name leads out of the folder.
    """
    if not relative or relative.startswith((".", "/")) or "/" in relative or "\\" in relative:
        raise UsageError(f"{relative!r} is not the id of a slide: it must not be empty, start with '.' or contain '/'")
    return storage.join(folder, relative)
