"""The manifest: the table that lists a cohort's slides, checked before a job starts.

A manifest is CSV (UTF-8, separated by commas) or Parquet, on disk or in an object store. Its columns are those of
`service.cohort.manifest_table.COLUMNS`; further columns are allowed and kept. Relative URIs start at the manifest's
folder. All problems of a manifest are reported at once, so that a user corrects them in one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import pandas as pd

from service import storage
from service.cohort import bounded_files
from service.cohort.manifest_table import (
    COLUMNS,
    ManifestError,
    Problem,
    check_cells,
    check_columns,
    parse_table,
)
from service.cohort.splits import split_patients
from service.errors import MagnetError, UsageError
from service.progress.bar import ProgressBar


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
    table = parse_table(data)
    problems = check_columns(table, need_labels)
    if table.columns and not {"slide_id", "uri"} & set(table.columns):
        raise ManifestError(problems, uri)
    problems = table.problems + problems
    # Without this, a missing column would be reported once more for each row.
    missing = {problem.column for problem in problems if problem.row is None}
    slides: list[Slide] = []
    row_problems: list[Problem] = []
    for row, cells in table.rows:
        row_problems += check_cells(row, cells, need_labels)
        slides.append(_make_slide(row, cells, storage.parent(uri), row_problems))
    row_problems += _check_duplicates(slides) + _check_splits(slides)
    problems += [problem for problem in row_problems if problem.column not in missing]
    if not problems and need_labels:
        problems += check_classes(slides)
    if problems:
        raise ManifestError(sorted(problems, key=lambda p: p.row or 0), uri)
    return Manifest(slides=tuple(slides), uri=uri, sha256=hashlib.sha256(data).hexdigest())


def assign_splits(manifest: Manifest, seed: int, shares: Mapping[str, float]) -> Manifest:
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
        progress = ProgressBar(results, total=len(manifest.slides), desc="checking slides", unit="slide")
        return [problem for problem in progress if problem is not None]


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
