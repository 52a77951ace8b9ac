"""The manifest: the table that lists a cohort's slides, checked before a job starts.

A manifest is CSV (UTF-8, separated by commas) or Parquet, on disk or in an object store. Its columns are those of
`COLUMNS`; further columns are allowed and kept. Relative URIs start at the manifest's folder. All problems of a
manifest are reported at once, so that a user corrects them in one pass.
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
from tqdm import tqdm

from service import storage
from service.cohort import bounded_files
from service.cohort.splits import SPLITS, split_patients
from service.errors import MagnetError, UsageError

COLUMNS = ("slide_id", "uri", "patient_id", "center", "label", "stratum", "split")
"""Columns with a meaning; `slide_id` and `uri` are required, and `label` for a training."""
STRATA = ("negative", "macro", "micro", "itc")
"""Values of the column `stratum`."""

_SAFE_ID = re.compile(r"[\w(][\w .+()-]{0,99}(?<![ .])")
"""Allowed slide ids: they become names of picture files, which every file system must accept."""


@dataclass(frozen=True)
class Problem:
    """A problem of a manifest or of one of its slides."""

    row: int | None
    """Line of the CSV file (the header is line 1) or row of the Parquet file (from 1); None for the whole table."""
    column: str | None
    """Name of the column; None for the whole row or table."""
    reason: str
    """What is wrong and, where it is not obvious, what to do."""
    slide_id: str = ""
    """Id of the slide, if the problem is its file."""
    uri: str = ""
    """URI of the slide, if the problem is its file."""

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column}"] if self.column else []
        place += [self.slide_id] if self.slide_id else []
        place += [self.uri] if self.uri else []
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class ManifestError(UsageError):
    """A manifest cannot be used. Its author must correct it; a retry does not help.

    Args:
        problems: all problems of the manifest.
        uri: URI of the manifest.
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
    """Number of the row, as in `Problem`."""
    slide_id: str
    """Unique name of the slide."""
    uri: str
    """Absolute URI or path of the slide's file."""
    patient_id: str
    """Name of the patient; the slide's id if the manifest names none."""
    center: str | None = None
    """Name of the laboratory or hospital, None if unknown."""
    label: int | None = None
    """1 for a positive slide, 0 for a negative one, None if unknown."""
    stratum: str | None = None
    """One of `STRATA`, None if unknown."""
    split: str | None = None
    """One of `service.cohort.splits.SPLITS`, None if the manifest has no splits."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Cells of further columns, by column."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked manifest."""

    slides: tuple[Slide, ...]
    """Slides in the order of the file."""
    uri: str
    """URI of the file or folder."""
    sha256: str
    """SHA-256 of the file's bytes; of the list of URIs for a folder."""
    left_out: tuple[Slide, ...] = ()
    """Slides that the label policy of a training left out (`service.cohort.label_policy`)."""

    def split(self, name: str) -> tuple[Slide, ...]:
        """Return the slides of one split."""
        return tuple(slide for slide in self.slides if slide.split == name)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per slide: the columns of `COLUMNS`, then further columns; labels are nullable integers."""
        rows = [{**{name: getattr(slide, name) for name in COLUMNS}, **slide.extra} for slide in self.slides]
        return pd.DataFrame(rows).astype({"label": "Int64"})


class OpensSlides(Protocol):
    """A reader that can open slides."""

    def info(self, uri: str) -> object:
        """Open a slide; raise `MagnetError` if it cannot be read."""


@dataclass(frozen=True)
class _Table:
    """A parsed table: cells as text, the number of each row, and problems of its form."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[Problem]


def load_manifest(uri: str, *, need_labels: bool) -> Manifest:
    """Read and check a manifest.

    Args:
        uri: URI or path of a CSV or Parquet file.
        need_labels: whether every slide must have a label, and train (the table, if it has no splits) both labels.

    Raises:
        ManifestError: with all problems of the manifest.
        NotFoundError, AccessError, StorageError: if the file cannot be read.
    """
    data = storage.read_bytes(uri, most_bytes=bounded_files.MANIFEST_BYTES)
    table = _parse_parquet(data) if data[:4] == b"PAR1" else _parse_csv(data)
    problems = _check_columns(table, need_labels)
    if table.columns and not {"slide_id", "uri"} & set(table.columns):
        raise ManifestError(problems, uri)
    problems = table.problems + problems
    # A missing column would be reported again for each row.
    missing = {problem.column for problem in problems if problem.row is None}
    slides: list[Slide] = []
    row_problems: list[Problem] = []
    for row, cells in table.rows:
        row_problems += _check_cells(row, cells, need_labels)
        slides.append(_make_slide(row, cells, storage.parent(uri), row_problems))
    row_problems += _check_duplicates(slides) + _check_splits(slides)
    problems += [problem for problem in row_problems if problem.column not in missing]
    if not problems and need_labels:
        problems += check_classes(slides)
    if problems:
        raise ManifestError(sorted(problems, key=lambda p: p.row or 0), uri)
    return Manifest(slides=tuple(slides), uri=uri, sha256=hashlib.sha256(data).hexdigest())


def with_splits(manifest: Manifest, seed: int, shares: Mapping[str, float]) -> Manifest:
    """Assign splits to the slides of a manifest that has none, patient by patient.

    Args:
        manifest: manifest; it is returned unchanged if it has splits.
        seed: seed of the assignment; the order of the rows has no influence.
        shares: share of the slides for each split.

    Raises:
        ManifestError: if there are so few patients that train lacks a label.
    """
    if any(slide.split for slide in manifest.slides):
        return manifest
    slides = manifest.slides
    splits = split_patients(
        [s.patient_id for s in slides], [s.label for s in slides], [s.stratum for s in slides], seed, shares
    )
    split_slides = tuple(replace(slide, split=split) for slide, split in zip(slides, splits, strict=True))
    if all(slide.label is not None for slide in split_slides) and (problems := check_classes(split_slides)):
        raise ManifestError(problems, manifest.uri)
    return replace(manifest, slides=split_slides)


def check_slides(manifest: Manifest, reader: OpensSlides, num_threads: int = 32) -> list[Problem]:
    """Open every slide of a manifest.

    Args:
        manifest: manifest of the slides.
        reader: reader that several threads may use at once.
        num_threads: number of slides that are opened at once.

    Returns:
        One problem for each slide that cannot be opened, in the order of the manifest.
    """

    def check(slide: Slide) -> Problem | None:
        try:
            reader.info(slide.uri)
        except MagnetError as error:
            return Problem(slide.row, None, error.message, slide.slide_id, slide.uri)
        return None

    with ThreadPoolExecutor(num_threads) as threads:
        results = threads.map(check, manifest.slides)
        progress = tqdm(results, total=len(manifest.slides), desc="checking slides", unit="slide")
        return [problem for problem in progress if problem is not None]


def _parse_csv(data: bytes) -> _Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Spreadsheet programs often save CSV in another encoding; the line helps to find the character.
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
                problems.append(
                    Problem(
                        start,
                        None,
                        f"has {len(cells)} cells, the header has {len(columns)}; quote cells with commas",
                    )
                )
            else:
                rows.append((start, dict(zip(columns, cells, strict=True))))
            start = lines.line_num + 1
    except csv.Error as error:
        problems.append(Problem(start, None, f"is not valid CSV: {error}"))
    if len(columns) == 1 and (separator := re.search(r"[;\t|]", columns[0])):
        name = "a tab" if separator[0] == "\t" else repr(separator[0])
        reason = f"columns are separated by {name}; save the table with commas, or as Parquet"
        return _Table([], [], [Problem(None, None, reason)])
    return _Table(columns, rows, problems)


def _parse_parquet(data: bytes) -> _Table:
    try:
        columns, cells = bounded_files.read_parquet_rows(data)
        rows = [{name: _text(value) for name, value in row.items()} for row in cells]
    except (pa.ArrowException, OSError) as error:
        return _Table([], [], [Problem(None, None, f"is a damaged Parquet file: {error}")])
    except ValueError as error:
        return _Table([], [], [Problem(None, None, f"is not a table of slides: {error}")])
    return _Table(columns, list(enumerate(rows, start=1)), [])


def _text(value: object) -> str:
    """Return a Parquet cell as a CSV file would hold it: integers without a point, an empty text for null."""
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()


def _check_columns(table: _Table, need_labels: bool) -> list[Problem]:
    if not table.columns:
        is_empty = Problem(None, None, "is empty; write a header line and one line per slide")
        return [] if table.problems else [is_empty]
    # A file without these columns may be any file, even one with secrets. Its content must not reach an error message,
    # which many people can read.
    if not {"slide_id", "uri"} & set(table.columns):
        return [Problem(None, None, _explain_no_manifest(table.columns))]
    needed = ("slide_id", "uri", "label") if need_labels else ("slide_id", "uri")
    columns = f"the table has the columns {', '.join(table.columns)}"
    problems = [Problem(None, name, f"is missing; {columns}") for name in needed if name not in table.columns]
    repeated = sorted({name for name in table.columns if table.columns.count(name) > 1})
    problems += [Problem(None, name, "occurs more than once; remove or rename one of the columns") for name in repeated]
    if not table.rows and not table.problems:
        problems.append(Problem(None, None, "has a header but no slides; write one line per slide"))
    return problems


def _explain_no_manifest(columns: Sequence[str]) -> str:
    """Return why a table is not a manifest; only names that resemble a required column are quoted."""
    similar = {
        name: get_close_matches(name, [c.lower() for c in columns], n=1, cutoff=0.7) for name in ("slide_id", "uri")
    }
    misspelt = [f"{names[0]!r} resembles {name}" for name, names in similar.items() if names]
    hint = f" ({', '.join(misspelt)})" if misspelt else ""
    return f"is not a manifest: its header has neither slide_id nor uri{hint}; see the README for the columns"


def _check_cells(row: int, cells: Mapping[str, str], need_labels: bool) -> list[Problem]:
    """Check the cells of one row."""
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
        problems.append(
            Problem(row, "label", f"{label!r} is neither 0 (negative) nor 1 (positive)" if label else "is empty")
        )
    if stratum and stratum not in STRATA:
        problems.append(Problem(row, "stratum", f"{stratum!r} must be one of {', '.join(STRATA)}"))
    elif stratum and label in ("0", "1") and (stratum == "negative") != (label == "0"):
        problems.append(
            Problem(row, "stratum", f"{stratum!r} contradicts label {label}; only negative slides have label 0")
        )
    if split and split not in SPLITS:
        problems.append(Problem(row, "split", f"{split!r} must be one of {', '.join(SPLITS)}"))
    return problems


def _make_slide(row: int, cells: Mapping[str, str], folder: str, problems: list[Problem]) -> Slide:
    """Return the slide of a row; add a problem if its URI cannot be resolved."""
    uri = cells.get("uri", "")
    try:
        uri = storage.join(folder, uri) if uri else ""
        if uri:
            storage.resolve(uri)  # checked here, so that all wrong rows are reported at once
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
                problems.append(Problem(slide.row, column, f"{value!r} duplicates row {first[value]}"))
    return problems


def _check_splits(slides: Sequence[Slide]) -> list[Problem]:
    """Check that all slides have a split or none has, and that each patient is in one split."""
    if not any(slide.split for slide in slides):
        return []
    reason = "is empty, but other rows have a split; fill in all or none"
    problems = [Problem(slide.row, "split", reason) for slide in slides if not slide.split]
    first: dict[str, Slide] = {}
    for slide in slides:
        other = first.setdefault(slide.patient_id, slide)
        if slide.split and other.split and slide.split != other.split:
            reason = (
                f"patient {slide.patient_id!r} is in {slide.split}, but in {other.split} in row {other.row}; "
                "a patient must be in one split"
            )
            problems.append(Problem(slide.row, "split", reason))
    return problems


def check_classes(slides: Sequence[Slide]) -> list[Problem]:
    """Check that train (the table, if it has no splits) has both labels, which a training needs."""
    has_splits = any(slide.split for slide in slides)
    labels = {slide.label for slide in slides if slide.split in ("train", None)}
    where = "in train" if has_splits else "in the table"
    return [
        Problem(None, "label", f"no slide {where} has label {label}; training needs both labels")
        for label in (0, 1)
        if label not in labels
    ]
