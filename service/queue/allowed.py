"""Which places a job may name: no arbitrary files of the cluster's nodes, no internal addresses.

`MAGNET_RIGHTS` carries the same rights to the jobs, where everything that is opened is held to them
(`service.storage.rights`).
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
"""A tag of timm's; any other name of weights is a file's."""


def check_allowed(request: Check | Train | Tune | Score, rights: Rights) -> None:
    """Refuse a request that names a place outside its user's rights, or code instead of weights.

    Raises:
        AccessError: naming the place.
        UsageError: weights that are pickled, or a network from elsewhere.
    """
    weights, encoders = weights_and_encoders(request)
    files = [name for name in weights if not TAG.fullmatch(name)]
    for name in files:
        if not name.endswith(".safetensors"):
            raise UsageError("weights come as .safetensors, pickled ones can run code; convert them", uri=name)
    for name in encoders:
        if ":" in name:
            raise UsageError(f"encoder {name!r}: want the plain name of a timm model")
    for place in [*read_places(request), *files]:
        require_allowed(place, rights)
    for place in written_places(request):
        require_allowed(place, rights, write=True)


def require_allowed(place: str, rights: Rights, *, write: bool = False) -> None:
    """Refuse a place that a user may not read, or write.

    Raises:
        AccessError: it lies elsewhere.
        UsageError: it is no place.
    """
    if "://" not in place and not place.startswith("/"):
        raise UsageError("write a whole URI or an absolute path; the cluster has another working folder", uri=place)
    rights.require(place, write=write)


def joined(folder: str, relative: str) -> str:
    """A file of a results folder, for whose name a user is answerable.

    Raises:
        UsageError: the name leads out of the folder.
    """
    if not relative or relative.startswith((".", "/")) or "/" in relative or "\\" in relative:
        raise UsageError(f"{relative!r} is no slide's id")
    return storage.join(folder, relative)
