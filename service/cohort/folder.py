"""A folder or prefix of slides as a manifest: every slide below it becomes a row."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from service import storage
from service.cohort.manifest import Manifest, Slide
from service.errors import UsageError

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".dcm", ".scn", ".bif", ".vms", ".vmu", ".svslide")
"""Suffixes of files that are listed as slides. Whether a file is a slide is known only when it is opened."""
MAX_ID_LENGTH = 80
"""Longest slide id made of a path; what manifests allow beyond it is for the digits that make an id unique."""


@dataclass(frozen=True, slots=True)
class OtherFiles:
    """Files of a folder that are not listed as slides."""

    names: tuple[str, ...]
    """Paths of files without a slide's suffix, relative to the folder."""
    not_utf8: tuple[str, ...] = ()
    """Paths that are not UTF-8, with escaped bytes. They cannot be listed: no table, log or database accepts them."""

    def describe(self) -> str:
        """Describe the files in one line."""
        return "; ".join(filter(None, [self._describe_kinds(), self.describe_not_utf8()]))

    def describe_not_utf8(self) -> str:
        """Describe the names that are not UTF-8 in one line; empty if there are none."""
        if not self.not_utf8:
            return ""
        is_single = len(self.not_utf8) == 1
        count, them = ("1 file name is", "it") if is_single else (f"{len(self.not_utf8)} file names are", "them")
        more = ", ..." if len(self.not_utf8) > 3 else ""
        return f"{count} not UTF-8: {', '.join(self.not_utf8[:3])}{more}; rename {them}"

    def _describe_kinds(self) -> str:
        if not self.names:
            return "no other files"
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in self.names)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        return f"{len(self.names)} other files left out ({listed}), such as {self.names[0]}"


def is_folder(place: str) -> bool:
    """Return whether a path or URI names a folder, not a manifest: it ends in a slash or is a folder on disk."""
    return place.endswith("/") or ("://" not in place and os.path.isdir(place))


def list_slides(folder: str) -> tuple[Manifest, OtherFiles]:
    """List every slide below a folder.

    Args:
        folder: a path, or a URI that can be listed (s3://, gs://, az://).

    Returns:
        A manifest of the slides in the order of their paths, without labels, and the other files.

    Raises:
        UsageError: if there is no slide.
    """
    base = folder.rstrip("/")
    if "://" not in base:
        base = os.path.abspath(os.path.expanduser(base))
    all_uris = storage.list_uris(base)
    uris = [uri for uri in all_uris if _is_utf8(uri)]
    not_utf8 = tuple(_escape(uri.removeprefix(f"{base}/")) for uri in all_uris if not _is_utf8(uri))
    names = [uri.removeprefix(f"{base}/") for uri in uris]
    slide_files = [(name, uri) for name, uri in zip(names, uris, strict=True) if _is_slide(name)]
    other = OtherFiles(tuple(name for name in names if not _is_slide(name)), not_utf8)
    if not slide_files:
        raise UsageError(
            f"no slides in this folder ({other.describe()}); the names of slides end in {', '.join(SUFFIXES)}",
            uri=folder,
        )
    slide_ids = _make_ids([name for name, _ in slide_files])
    slides = [
        Slide(row=row, slide_id=slide_id, uri=uri, patient_id=slide_id)
        for row, (slide_id, (_, uri)) in enumerate(zip(slide_ids, slide_files, strict=True), start=1)
    ]
    # A folder has no file to hash. Its list of slides identifies the cohort instead.
    listing = "\n".join(uri for _, uri in slide_files)
    return Manifest(slides=tuple(slides), uri=folder, sha256=hashlib.sha256(listing.encode()).hexdigest()), other


def _is_utf8(name: str) -> bool:
    # Python represents bytes that are not UTF-8 by halves of surrogate pairs, which cannot be encoded.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escape(name: str) -> str:
    """Return a name that can be printed, such as ``caf\\xe9.svs``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_slide(name: str) -> bool:
    path = PurePosixPath(name)
    is_hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not is_hidden


def _make_ids(names: Sequence[str]) -> list[str]:
    """Return unique slide ids made of paths: ``a/b c.svs`` becomes ``a-b c``; equal ids get eight more digits."""
    plain_ids = [_make_plain_id(name) for name in names]
    count = Counter(plain_ids)
    # The digits come from the path, so that a slide keeps its id when others are added to the folder.
    return [
        plain if count[plain] == 1 else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for plain, name in zip(plain_ids, names, strict=True)
    ]


def _make_plain_id(name: str) -> str:
    """Return a path as a text that can name a file on any system, possibly the same for two paths."""
    text = str(PurePosixPath(name).with_suffix("")).replace("/", "-")
    text = re.sub(r"[^\w .+()-]", "_", text)[:MAX_ID_LENGTH].rstrip(" .")
    return text if text[:1].isalnum() or text[:1] in "_(" else f"_{text}"
