"""The table that lists a cohort's slides, checked before anything is started.

A manifest is CSV (UTF-8, commas) or Parquet, on disk or in an object store. Its columns are those of `COLUMNS`; more
are allowed and kept. Relative URIs are seen from the manifest's own folder. All that is wrong is found in one go.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from service import storage
from service.cohort import bounded_files
from service.cohort.splits import SPLITS, split_patients
from service.errors import MagnetError, UsageError
from service.progress.bar import ProgressBar

COLUMNS = ("slide_id", "uri", "patient_id", "center", "label", "stratum", "split")
STRATA = ("negative", "macro", "micro", "itc")

_SAFE_ID = re.compile(r"[\w(][\w .+()-]{0,99}(?<![ .])")
"""Slide ids name pictures, on any file system."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest or one of its slides."""

    row: int | None
    """Line of the CSV file (the header is line 1) or row of the Parquet file (from 1); None for the whole table."""
    column: str | None
    reason: str
    slide_id: str = ""
    uri: str = ""

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column}"] if self.column else []
        place += [self.slide_id] if self.slide_id else []
        place += [self.uri] if self.uri else []
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class ManifestError(UsageError):
    """A manifest cannot be used. To act: whoever wrote it. Retrying does not help.

    Args:
        problems: all of them.
        uri: the manifest.
    """

    def __init__(self, problems: Iterable[Problem], uri: str) -> None:
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n  ".join([f"{len(self.problems)} {noun}", *map(str, self.problems)]), uri=uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.uri)


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One row of a manifest."""

    row: int
    """As in `Problem`."""
    slide_id: str
    uri: str
    """Absolute, or a path."""
    patient_id: str
    """The slide's own id where the manifest names no patient."""
    center: str | None = None
    label: int | None = None
    """1 for a positive slide, 0 for a negative one, None if unknown."""
    stratum: str | None = None
    split: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Columns that are none of `COLUMNS`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked manifest."""

    slides: tuple[Slide, ...]
    uri: str
    sha256: str
    """Of the file's bytes."""
    left_out: tuple[Slide, ...] = ()
    """Slides of the file that a training's label policy took out (`service.cohort.label_policy`)."""

    def split(self, name: str) -> tuple[Slide, ...]:
        """The slides of one split."""
        return tuple(slide for slide in self.slides if slide.split == name)

    def to_frame(self) -> pd.DataFrame:
        """One row per slide: the columns of `COLUMNS`, then the manifest's own; labels as nullable integers."""
        rows = [{**{name: getattr(slide, name) for name in COLUMNS}, **slide.extra} for slide in self.slides]
        return pd.DataFrame(rows).astype({"label": "Int64"})


class OpensSlides(Protocol):
    """A reader that can say what a slide is, or why it cannot be read."""

    def info(self, uri: str) -> object:
        """Open a slide; raises `MagnetError` where it cannot be read."""


@dataclass(frozen=True)
class _Table:
    """Cells as text, with the number of each row."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[Problem]


def load_manifest(uri: str, *, need_labels: bool) -> Manifest:
    """Read and check a manifest.

    Args:
        uri: URI or path of a CSV or Parquet file.
        need_labels: whether every slide must have a label and both labels must occur, in train if there are splits.

    Returns:
        Its slides, in the file's order.

    Raises:
        ManifestError: naming all problems at once.
        NotFoundError, AccessError, StorageError: the file cannot be read.
    """
    data = storage.read_bytes(uri, most_bytes=bounded_files.MANIFEST_BYTES)
    table = _parse_parquet(data) if data[:4] == b"PAR1" else _parse_csv(data)
    problems = _check_columns(table, need_labels)
    if table.columns and not {"slide_id", "uri"} & set(table.columns):
        raise ManifestError(problems, uri)
    problems = table.problems + problems
    missing = {problem.column for problem in problems if problem.row is None}
    slides: list[Slide] = []
    found: list[Problem] = []
    for row, cells in table.rows:
        found += _check_cells(row, cells, need_labels)
        slides.append(_slide(row, cells, storage.parent(uri), found))
    found += _check_duplicates(slides) + _check_splits(slides)
    problems += [problem for problem in found if problem.column not in missing]
    if not problems and need_labels:
        problems += check_classes(slides)
    if problems:
        raise ManifestError(sorted(problems, key=lambda p: p.row or 0), uri)
    return Manifest(slides=tuple(slides), uri=uri, sha256=hashlib.sha256(data).hexdigest())


def with_splits(manifest: Manifest, seed: int, shares: Mapping[str, float]) -> Manifest:
    """A manifest whose slides all have a split.

    Args:
        manifest: returned as it is where it has splits already.
        seed: same seed, same splits, whatever the order of the rows.
        shares: share of the slides that each split is to get.

    Returns:
        Splits by patient, as even in strata and labels as patients allow.

    Raises:
        ManifestError: so few patients that training would lack a label.
    """
    if any(slide.split for slide in manifest.slides):
        return manifest
    slides = manifest.slides
    splits = split_patients(
        [s.patient_id for s in slides], [s.label for s in slides], [s.stratum for s in slides], seed, shares
    )
    divided = tuple(replace(slide, split=split) for slide, split in zip(slides, splits, strict=True))
    if all(slide.label is not None for slide in divided) and (problems := check_classes(divided)):
        raise ManifestError(problems, manifest.uri)
    return replace(manifest, slides=divided)


def check_slides(manifest: Manifest, reader: OpensSlides, num_threads: int = 32) -> list[Problem]:
    """Open every slide of a manifest.

    Args:
        manifest: the cohort.
        reader: used from several threads at once.
        num_threads: slides opened at the same time.

    Returns:
        One problem for each slide that does not open, in the manifest's order.
    """

    def check(slide: Slide) -> Problem | None:
        try:
            reader.info(slide.uri)
        except MagnetError as error:
            return Problem(slide.row, None, error.message, slide.slide_id, slide.uri)
        return None

    with ThreadPoolExecutor(num_threads) as threads:
        found = threads.map(check, manifest.slides)
        progress = ProgressBar(found, total=len(manifest.slides), desc="checking slides", unit="slide")
        return [problem for problem in progress if problem is not None]


def _parse_csv(data: bytes) -> _Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        return _Table([], [], [Problem(row, None, "is not UTF-8 text; save the table as CSV (UTF-8) or as Parquet")])
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[Problem] = []
    start = 1
    try:
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                pass
            elif not columns:
                columns = cells
            elif len(cells) != len(columns):
                problems.append(Problem(start, None, f"has {len(cells)} cells, the header has {len(columns)}"))
            else:
                rows.append((start, dict(zip(columns, cells, strict=True))))
            start = lines.line_num + 1
    except csv.Error as error:
        problems.append(Problem(start, None, f"is not CSV: {error}"))
    if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
        name = "a tab" if found[0] == "\t" else repr(found[0])
        reason = f"columns are separated by {name}; save the table with commas, or as Parquet"
        return _Table([], [], [Problem(None, None, reason)])
    return _Table(columns, rows, problems)


def _parse_parquet(data: bytes) -> _Table:
    try:
        columns, cells = bounded_files.parquet_rows(data)
        rows = [{name: _text(value) for name, value in row.items()} for row in cells]
    except (pa.ArrowException, OSError) as error:
        return _Table([], [], [Problem(None, None, f"is a damaged Parquet file: {error}")])
    except ValueError as error:
        return _Table([], [], [Problem(None, None, f"is no table of slides: {error}")])
    return _Table(columns, list(enumerate(rows, start=1)), [])


def _text(value: object) -> str:
    """A Parquet cell as it would stand in a CSV file: whole numbers without a point, nothing for null."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()


def _check_columns(table: _Table, need_labels: bool) -> list[Problem]:
    if not table.columns:
        is_empty = Problem(None, None, "is empty; want a header line and one line per slide")
        return [] if table.problems else [is_empty]
    # What a file without these columns holds is not quoted: it may be any file, and an error is read by many.
    if not {"slide_id", "uri"} & set(table.columns):
        return [Problem(None, None, _no_manifest(table.columns))]
    needed = ("slide_id", "uri", "label") if need_labels else ("slide_id", "uri")
    have = f"the table has {', '.join(table.columns)}"
    problems = [Problem(None, name, f"is missing; {have}") for name in needed if name not in table.columns]
    repeated = sorted({name for name in table.columns if table.columns.count(name) > 1})
    problems += [Problem(None, name, "occurs more than once") for name in repeated]
    if not table.rows and not table.problems:
        problems.append(Problem(None, None, "has a header but no slides"))
    return problems


def _no_manifest(columns: Sequence[str]) -> str:
    """Why a table is no manifest, quoting only what looks like a misspelt column of one."""
    near = {
        name: get_close_matches(name, [c.lower() for c in columns], n=1, cutoff=0.7) for name in ("slide_id", "uri")
    }
    misspelt = [f"{found[0]!r} looks like {name}" for name, found in near.items() if found]
    hint = f" ({', '.join(misspelt)})" if misspelt else ""
    return f"is no manifest: its first line names neither slide_id nor uri{hint}; see the README for the columns"


def _check_cells(row: int, cells: Mapping[str, str], need_labels: bool) -> list[Problem]:
    """What can be said of one row by itself."""
    problems = []
    slide_id, label, stratum, split = (cells.get(name, "") for name in ("slide_id", "label", "stratum", "split"))
    if not slide_id:
        problems.append(Problem(row, "slide_id", "is empty"))
    elif not _SAFE_ID.fullmatch(slide_id):
        reason = f"{slide_id!r} cannot name a file; use up to 100 letters, digits, spaces and ._+()-"
        problems.append(Problem(row, "slide_id", reason))
    if not cells.get("uri"):
        problems.append(Problem(row, "uri", "is empty"))
    if label not in ("0", "1") and (label or need_labels):
        problems.append(Problem(row, "label", f"{label!r} is neither 0 nor 1" if label else "is empty"))
    if stratum and stratum not in STRATA:
        problems.append(Problem(row, "stratum", f"{stratum!r} is none of {', '.join(STRATA)}"))
    elif stratum and label in ("0", "1") and (stratum == "negative") != (label == "0"):
        problems.append(Problem(row, "stratum", f"{stratum!r} contradicts label {label}"))
    if split and split not in SPLITS:
        problems.append(Problem(row, "split", f"{split!r} is none of {', '.join(SPLITS)}"))
    return problems


def _slide(row: int, cells: Mapping[str, str], folder: str, problems: list[Problem]) -> Slide:
    """The slide of a row; a URI that cannot be resolved is added to the problems."""
    uri = cells.get("uri", "")
    try:
        uri = storage.join(folder, uri) if uri else ""
        if uri:
            storage.resolve(uri)  # found here, all wrong rows are named at once
    except UsageError as error:
        problems.append(Problem(row, "uri", error.message))
    label = cells.get("label", "")
    return Slide(
        row=row,
        slide_id=cells.get("slide_id", ""),
        uri=uri,
        patient_id=cells.get("patient_id") or cells.get("slide_id", ""),
        center=cells.get("center") or None,
        label=int(label) if label in ("0", "1") else None,
        stratum=cells.get("stratum") or None,
        split=cells.get("split") or None,
        extra={name: text for name, text in cells.items() if name not in COLUMNS},
    )


def _check_duplicates(slides: Sequence[Slide]) -> list[Problem]:
    problems = []
    for column in ("slide_id", "uri"):
        first: dict[str, int] = {}
        for slide in slides:
            value = getattr(slide, column)
            if value and first.setdefault(value, slide.row) != slide.row:
                problems.append(Problem(slide.row, column, f"{value!r} stands in row {first[value]} already"))
    return problems


def _check_splits(slides: Sequence[Slide]) -> list[Problem]:
    """Splits are given for all slides or for none, and one for each patient."""
    if not any(slide.split for slide in slides):
        return []
    reason = "is empty, though other rows have a split; fill in all or none"
    problems = [Problem(slide.row, "split", reason) for slide in slides if not slide.split]
    first: dict[str, Slide] = {}
    for slide in slides:
        other = first.setdefault(slide.patient_id, slide)
        if slide.split and other.split and slide.split != other.split:
            reason = f"patient {slide.patient_id!r} is in {slide.split} here and in {other.split} in row {other.row}"
            problems.append(Problem(slide.row, "split", reason))
    return problems


def check_classes(slides: Sequence[Slide]) -> list[Problem]:
    """Training needs both labels: the problem of a train split (or table without splits) that lacks one."""
    has_splits = any(slide.split for slide in slides)
    labels = {slide.label for slide in slides if slide.split in ("train", None)}
    where = "in train" if has_splits else "in the table"
    return [
        Problem(None, "label", f"no slide {where} has label {label}; training needs both labels")
        for label in (0, 1)
        if label not in labels
    ]
