"""Which places a job may name: no arbitrary files of the cluster's nodes, no internal addresses.

`MAGNET_ALLOWED_PREFIXES` carries the same list to the jobs, where manifests are held to it (`service.manifest`).
"""

from __future__ import annotations

from collections.abc import Sequence

from service import storage
from service.errors import AccessError, UsageError
from service.prefixes import is_below
from service.queue.requests import Check, Score, Train, Tune, places, weights_and_encoders

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
"""Of what is a file of weights and no name."""


def check_allowed(request: Check | Train | Tune | Score, prefixes: Sequence[str]) -> None:
    """Refuse a request that names a place outside `prefixes`, or code instead of weights.

    Raises:
        AccessError: naming the place.
        UsageError: weights that are pickled, or a network from elsewhere.
    """
    weights, encoders = weights_and_encoders(request)
    files = [name for name in weights if "://" in name or name.endswith(SUFFIXES)]
    for name in files:
        if not name.endswith(".safetensors"):
            raise UsageError("weights come as .safetensors, pickled ones can run code; convert them", uri=name)
    for name in encoders:
        if ":" in name:
            raise UsageError(f"encoder {name!r}: want the plain name of a timm model")
    for place in [*places(request), *files]:
        require_allowed(place, prefixes)


def require_allowed(place: str, prefixes: Sequence[str]) -> None:
    """Refuse a place outside `prefixes`.

    Raises:
        AccessError: it lies elsewhere.
        UsageError: it is no place.
    """
    if "://" not in place and not place.startswith("/"):
        raise UsageError("write a whole URI or an absolute path; the cluster has another working folder", uri=place)
    if not is_below(place, prefixes):
        allowed = ", ".join(prefixes)
        raise AccessError(f"lies outside the places that jobs may use ({allowed}); ask an administrator", uri=place)


def joined(folder: str, relative: str) -> str:
    """A file of a results folder, for whose name a user is answerable.

    Raises:
        UsageError: the name leads out of the folder.
    """
    if not relative or relative.startswith((".", "/")) or "/" in relative or "\\" in relative:
        raise UsageError(f"{relative!r} is no slide's id")
    return storage.join(folder, relative)
