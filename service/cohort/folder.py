"""A folder or prefix of slides as a manifest: every slide under it becomes a row."""

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
"""Of what is taken for a slide; whether it is one shows when it is opened."""
LONGEST_ID = 80
"""Room is left for what makes an id unique."""


@dataclass(frozen=True, slots=True)
class OtherFiles:
    """What else lay there."""

    names: tuple[str, ...]
    """Relative to the folder."""
    not_utf8: tuple[str, ...] = ()
    """The same, of those whose names are not UTF-8: no table, log or database takes them. Their bytes are escaped."""

    def told(self) -> str:
        """In one line."""
        return "; ".join(filter(None, [self._kinds(), self.not_utf8_note()]))

    def not_utf8_note(self) -> str:
        """The names that are not UTF-8, in one line; empty if there are none."""
        if not self.not_utf8:
            return ""
        single = len(self.not_utf8) == 1
        count, them = ("1 file name is", "it") if single else (f"{len(self.not_utf8)} file names are", "them")
        more = ", ..." if len(self.not_utf8) > 3 else ""
        return f"{count} not UTF-8: {', '.join(self.not_utf8[:3])}{more}; rename {them}"

    def _kinds(self) -> str:
        if not self.names:
            return "no other files"
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in self.names)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        return f"{len(self.names)} other files left out ({listed}), such as {self.names[0]}"


def is_folder(place: str) -> bool:
    """Whether a place is a folder and no manifest: it ends with a slash, or is a folder on disk."""
    return place.endswith("/") or ("://" not in place and os.path.isdir(place))


def slides_under(folder: str) -> tuple[Manifest, OtherFiles]:
    """Every slide under a folder, in the order of their names; files whose names are not UTF-8 are left out.

    Args:
        folder: a path or a URI that can be listed (s3://, gs://, az://).

    Raises:
        UsageError: there is no slide.
    """
    base = folder.rstrip("/")
    if "://" not in base:
        base = os.path.abspath(os.path.expanduser(base))
    found = storage.list_uris(base)
    uris = [uri for uri in found if _is_utf8(uri)]
    not_utf8 = tuple(_escaped(uri.removeprefix(f"{base}/")) for uri in found if not _is_utf8(uri))
    names = [uri.removeprefix(f"{base}/") for uri in uris]
    chosen = [(name, uri) for name, uri in zip(names, uris, strict=True) if _is_slide(name)]
    other = OtherFiles(tuple(name for name in names if not _is_slide(name)), not_utf8)
    if not chosen:
        raise UsageError(f"no slides here ({other.told()}); slides end in {', '.join(SUFFIXES)}", uri=folder)
    slides = [
        Slide(row=row, slide_id=slide_id, uri=uri, patient_id=slide_id)
        for row, (slide_id, (_, uri)) in enumerate(zip(_ids([n for n, _ in chosen]), chosen, strict=True), start=1)
    ]
    listing = "\n".join(uri for _, uri in chosen)
    return Manifest(slides=tuple(slides), uri=folder, sha256=hashlib.sha256(listing.encode()).hexdigest()), other


def _is_utf8(name: str) -> bool:
    """Python keeps the bytes of other names as halves of surrogate pairs, which nothing writes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(name: str) -> str:
    """A name that can be printed, such as ``caf\\xe9.svs``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_slide(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _ids(names: Sequence[str]) -> list[str]:
    """Slide ids, unique, made of the paths: ``a/b c.svs`` is ``a-b c``; where two would be alike, with a few digits
    more."""
    plain = [_plain(name) for name in names]
    count = Counter(plain)
    return [
        one if count[one] == 1 else f"{one}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for one, name in zip(plain, names, strict=True)
    ]


def _plain(name: str) -> str:
    text = str(PurePosixPath(name).with_suffix("")).replace("/", "-")
    text = re.sub(r"[^\w .+()-]", "_", text)[:LONGEST_ID].rstrip(" .")
    return text if text[:1].isalnum() or text[:1] in "_(" else f"_{text}"
