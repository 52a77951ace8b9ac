"""The rows of a manifest as text: parsing of CSV and Parquet, and checks of columns and single rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from service.cohort import bounded_files
from service.cohort.splits import SPLITS
from service.errors import UsageError

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


@dataclass(frozen=True)
class Table:
    """A parsed table."""

    columns: list[str]
    """Names of the columns, as in the header."""
    rows: list[tuple[int, dict[str, str]]]
    """Number of each row, as in `Problem`, and its cells by column."""
    problems: list[Problem]
    """Problems of the file's form."""


def parse_table(data: bytes) -> Table:
    """Parse the content of a CSV or Parquet file. Problems of its form are part of the result."""
    return _parse_parquet(data) if data.startswith(b"PAR1") else _parse_csv(data)


def _parse_csv(data: bytes) -> Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Spreadsheet programs often save CSV in another encoding; the line helps to find the character.
        row = data[: error.start].count(b"\n") + 1
        return Table([], [], [Problem(row, None, "is not UTF-8 text; save the table as CSV (UTF-8) or as Parquet")])
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[Problem] = []
    start = 1  # a cell may contain line breaks, so that the number of a row is its first line
    try:
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                pass
            elif not columns:
                columns = cells
            elif len(cells) != len(columns):
                reason = f"has {len(cells)} cells, the header has {len(columns)}; quote cells with commas"
                problems.append(Problem(start, None, reason))
            else:
                rows.append((start, dict(zip(columns, cells, strict=True))))
            start = lines.line_num + 1
    except csv.Error as error:
        problems.append(Problem(start, None, f"is not valid CSV: {error}"))
    if len(columns) == 1 and (separator := re.search(r"[;\t|]", columns[0])):
        name = "a tab" if separator[0] == "\t" else repr(separator[0])
        reason = f"columns are separated by {name}; save the table with commas, or as Parquet"
        return Table([], [], [Problem(None, None, reason)])
    return Table(columns, rows, problems)


def _parse_parquet(data: bytes) -> Table:
    try:
        columns, cells = bounded_files.read_parquet_rows(data)
        rows = [{name: _format_cell(value) for name, value in row.items()} for row in cells]
    except (pa.ArrowException, OSError) as error:
        return Table([], [], [Problem(None, None, f"is a damaged Parquet file: {error}")])
    except ValueError as error:
        return Table([], [], [Problem(None, None, f"is not a table of slides: {error}")])
    return Table(columns, list(enumerate(rows, start=1)), [])


def _format_cell(value: object) -> str:
    """Return a Parquet cell as a CSV file would hold it: integers without a point, an empty text for null."""
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()


def check_columns(table: Table, need_labels: bool) -> list[Problem]:
    """Check the header of a table, and that it has rows.

    Args:
        table: parsed table.
        need_labels: whether the column `label` is required.
    """
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
    misspelt = [f"{names[0]!r} looks like {name}" for name, names in similar.items() if names]
    hint = f" ({', '.join(misspelt)})" if misspelt else ""
    return f"is not a manifest: its header has neither slide_id nor uri{hint}; the first line must name both columns"


def check_cells(row: int, cells: Mapping[str, str], need_labels: bool) -> list[Problem]:
    """Check the cells of one row.

    Args:
        row: number of the row.
        cells: cells by column.
        need_labels: whether the label is required.
    """
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
        problems.append(Problem(row, "stratum", f"{stratum!r} is not allowed; write one of {', '.join(STRATA)}"))
    elif stratum and label in ("0", "1") and (stratum == "negative") != (label == "0"):
        problems.append(
            Problem(row, "stratum", f"{stratum!r} contradicts label {label}; only negative slides have label 0")
        )
    if split and split not in SPLITS:
        problems.append(Problem(row, "split", f"{split!r} is not allowed; write one of {', '.join(SPLITS)}"))
    return problems
