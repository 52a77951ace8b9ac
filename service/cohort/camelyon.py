"""Write the manifest of the public Camelyon data, with the splits of the paper's protocol.

    python -m service.cohort.camelyon s3://camelyon-dataset camelyon.csv [--seed 0] [--itc-in-test]

A quarter of the labelled Camelyon17 slides is the test set. The rest is shuffled with Camelyon16: four fifths go to
train and one fifth to val. All slides of a patient are in one split. The command reads only names and two small tables
from the bucket; a folder with the same layout can take its place. Slides with isolated tumour cells (stratum itc) are
positive in every split; the training's setting `train_without_strata` leaves them out of training.

Source: the paper, section 4.1; README.md files of the open-data bucket for its layout.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from service import storage
from service.cohort.manifest import Slide
from service.cohort.manifest_table import COLUMNS, STRATA
from service.cohort.splits import split_patients
from service.errors import MagnetError, UsageError

TEST_SHARE = 0.25
"""Share of the labelled Camelyon17 slides in the test set."""
FIT_SHARES = {"train": 0.8, "val": 0.2}
"""Shares of all other slides in train and val."""
PATIENTS_PER_CENTER = 20
"""Number of patients of each center; Camelyon17 numbers its patients center by center."""
NUM_LABELLED_PATIENTS = 100
"""Number of Camelyon17 patients with public labels; they are the first ones."""
NUM_PUBLISHED = {"Camelyon16": 399, "Camelyon17": 500}
"""Number of labelled slides in the bucket."""

_FROM_NAME: dict[str, tuple[int, str | None]] = {"normal": (0, "negative"), "tumor": (1, None)}
"""Label and stratum of Camelyon16's training slides by the start of their names. The size of their metastases is not
published."""
_IMAGE_16 = re.compile(r"(?i)(normal|tumor|test)_(\d{3})\.tiff?")
_IMAGE_17 = re.compile(r"(?i)patient_(\d{3})_node_(\d)\.tiff?")


@dataclass(frozen=True, slots=True)
class Cohort:
    """Labelled slides of both data sets."""

    slides: list[Slide] = field(default_factory=list)
    """Slides with labels."""
    notes: list[str] = field(default_factory=list)
    """Messages about slides that were left out and about irregular ones that were kept."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0 done, 1 the store failed, 2 wrong input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m service.cohort.camelyon",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "root", metavar="BUCKET_OR_FOLDER", help="bucket or folder that holds CAMELYON16/ and CAMELYON17/"
    )
    parser.add_argument("out", metavar="OUT.csv", help="manifest to write, a path or URI")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    parser.add_argument("--itc-in-test", action="store_true", help="put patients with isolated tumour cells into test")
    options = parser.parse_args(arguments)
    try:
        cohort = find_slides(options.root)
        slides = assign_paper_splits(cohort.slides, options.seed, itc_in_test=options.itc_in_test)
        frame = pd.DataFrame([{name: getattr(slide, name) for name in COLUMNS} for slide in slides])
        storage.write_bytes(options.out, frame.to_csv(index=False).encode())
    except MagnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print("\n".join(cohort.notes))
    counts = frame.assign(stratum=frame["stratum"].fillna("positive, size unknown"))
    print(pd.crosstab(counts["split"], counts["stratum"], margins=True, margins_name="all").to_string())
    print(f"{options.out}: {len(frame)} slides")
    return 0


def find_slides(root: str) -> Cohort:
    """Find the labelled slides of both data sets.

    Args:
        root: bucket or folder that holds ``CAMELYON16`` and ``CAMELYON17``.

    Raises:
        UsageError: if one of them, or its table of labels, is missing.
        AccessError, StorageError: if the store cannot be listed or read.
    """
    cohort = Cohort()
    for name, add in (("Camelyon16", _add_camelyon16), ("Camelyon17", _add_camelyon17)):
        folder = storage.join(root, name.upper())
        uris = storage.list_uris(folder)
        if not any(_is_image(uri) for uri in uris):
            raise UsageError(
                "has no images/*.tif; name the bucket (s3://camelyon-dataset) or a folder with its layout", uri=folder
            )
        before = len(cohort.slides)
        add(uris, folder, cohort)
        cohort.notes.append(f"{name}: {len(cohort.slides) - before} of {NUM_PUBLISHED[name]} labelled slides found")
    return cohort


def assign_paper_splits(slides: Sequence[Slide], seed: int, *, itc_in_test: bool) -> list[Slide]:
    """Assign splits by the paper's protocol, patient by patient.

    Args:
        slides: labelled slides of both data sets.
        seed: seed of the division into test and rest, and of the rest into train and val.
        itc_in_test: whether test gets every patient that has a slide with isolated tumour cells, and others up to its
            share. Only such a test set explains the paper's scores over all slides.
    """
    camelyon17 = [slide for slide in slides if _IMAGE_17.fullmatch(f"{slide.slide_id}.tif")]
    test_patients = {slide.patient_id for slide in camelyon17 if itc_in_test and slide.stratum == "itc"}
    rest = [slide for slide in camelyon17 if slide.patient_id not in test_patients]
    num_missing = TEST_SHARE * len(camelyon17) - (len(camelyon17) - len(rest))
    # Patients with isolated tumour cells alone may exceed the share.
    if rest and num_missing > 0:
        splits = _split(rest, seed, {"test": num_missing, "fit": len(rest) - num_missing})
        test_patients |= {slide.patient_id for slide, split in zip(rest, splits, strict=True) if split == "test"}
    fit = [slide for slide in slides if slide.patient_id not in test_patients]
    split_of = {slide.slide_id: split for slide, split in zip(fit, _split(fit, seed, FIT_SHARES), strict=True)}
    return [replace(slide, split=split_of.get(slide.slide_id, "test")) for slide in slides]


def _split(slides: Sequence[Slide], seed: int, shares: dict[str, float]) -> list[str]:
    return split_patients(
        [s.patient_id for s in slides], [s.label for s in slides], [s.stratum for s in slides], seed, shares
    )


def _add_camelyon16(uris: Sequence[str], folder: str, cohort: Cohort) -> None:
    """Add the slides of Camelyon16. Each counts as a separate patient: the data set names no patients."""
    images = dict(_images(uris, _IMAGE_16))
    references = _read_references(_find_table(uris, "reference.csv", folder))
    _handle_known_errors(images, cohort.notes)
    for slide_id, uri in images.items():
        # The organisers found normal_086 to be a tumour slide.
        label_and_stratum = _FROM_NAME.get("tumor" if slide_id == "normal_086" else slide_id.partition("_")[0])
        label_and_stratum = label_and_stratum or references.get(slide_id)
        if label_and_stratum is None:
            cohort.notes.append(f"left out: {slide_id}, which reference.csv does not name")
        else:
            cohort.slides.append(_slide(slide_id, uri, slide_id, None, *label_and_stratum))


def _handle_known_errors(images: dict[str, str], notes: list[str]) -> None:
    """Remove duplicates and note irregular slides, as the organisers published them."""
    if "normal_086" in images and "tumor_111" in images:
        del images["normal_086"]
        notes.append("left out: normal_086, which the organisers renamed to tumor_111")
    elif "normal_086" in images:
        notes.append("positive: normal_086, which the organisers found to be a tumour slide and renamed to tumor_111")
    if images.pop("test_049", None):
        notes.append("left out: test_049, a duplicate that the organisers removed")
    if "test_114" in images:
        notes.append("kept: test_114, whose outlines are incomplete, but whose label is right")


def _add_camelyon17(uris: Sequence[str], folder: str, cohort: Cohort) -> None:
    """Add the slides of Camelyon17. Only ``stages.csv`` has their labels; ``evaluation/example.csv`` is a sample."""
    images = dict(_images(uris, _IMAGE_17))
    stages_uri = _find_table(uris, "stages.csv", folder)
    stages = _read_stages(stages_uri)
    unlabelled = []
    for slide_id, uri in images.items():
        patient = slide_id.rpartition("_node_")[0]
        number = int(patient.removeprefix("patient_"))
        if slide_id in stages:
            stratum, center = stages[slide_id]
            center = center or str(number // PATIENTS_PER_CENTER)
            cohort.slides.append(_slide(slide_id, uri, patient, center, int(stratum != "negative"), stratum))
        elif number < NUM_LABELLED_PATIENTS:
            cohort.notes.append(f"left out: {slide_id}, which stages.csv does not name")
        else:
            unlabelled.append(slide_id)
    if unlabelled:
        cohort.notes.append(
            f"left out: {len(unlabelled)} Camelyon17 slides of patients from {NUM_LABELLED_PATIENTS} on, which have no "
            "public labels (evaluation/example.csv is a sample submission)"
        )
    if missing := sorted(set(stages) - set(images)):
        cohort.notes.append(f"not found: {len(missing)} slides that stages.csv names, the first {missing[0]}")


def _slide(slide_id: str, uri: str, patient: str, center: str | None, label: int, stratum: str | None) -> Slide:
    return Slide(row=0, slide_id=slide_id, uri=uri, patient_id=patient, center=center, label=label, stratum=stratum)


def _is_image(uri: str) -> bool:
    return storage.name(storage.parent(uri)) == "images" and uri.lower().endswith((".tif", ".tiff"))


def _images(uris: Sequence[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield slide id and URI of each image; masks and overviews are in other folders."""
    for uri in uris:
        name = storage.name(uri)
        if _is_image(uri) and pattern.fullmatch(name):
            yield name.rpartition(".")[0].lower(), uri


def _find_table(uris: Sequence[str], name: str, folder: str) -> str:
    """Return the URI of a table in any folder below `folder`: copies of the bucket differ in its place."""
    tables = [uri for uri in uris if storage.name(uri) == name]
    if len(tables) != 1:
        raise UsageError(f"has {len(tables)} files {name}; exactly one is needed for the labels", uri=folder)
    return tables[0]


def _read_rows(uri: str) -> list[list[str]]:
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    return [[cell.strip() for cell in cells] for cells in csv.reader(io.StringIO(text, newline="")) if cells]


def _read_references(uri: str) -> dict[str, tuple[int, str | None]]:
    """Read label and stratum of the Camelyon16 test slides; rows are ``test_001,Tumor,IDC,Macro``, without header."""
    result: dict[str, tuple[int, str | None]] = {}
    for cells in _read_rows(uri):
        slide_id, texts = cells[0].lower().partition(".")[0], {cell.lower() for cell in cells[1:]}
        if "normal" in texts:
            result[slide_id] = 0, "negative"
        elif texts & {"tumor", "tumour"}:
            result[slide_id] = 1, next(iter(texts & {"macro", "micro", "itc"}), None)
    return result


def _read_stages(uri: str) -> dict[str, tuple[str, str]]:
    """Read stratum and center of the Camelyon17 slides; the center is "" in copies without it.

    Rows of slides are ``patient_004_node_4.tif,itc,0``; rows of patients, ``patient_004.zip,pN0(i+),0``, are skipped.
    """
    result = {}
    for number, cells in enumerate(_read_rows(uri), start=1):
        if not _IMAGE_17.fullmatch(cells[0]):
            continue
        stage = cells[1].lower() if len(cells) > 1 else ""
        if stage not in STRATA:
            raise UsageError(f"row {number}: stage {stage!r} is unknown; known are {', '.join(STRATA)}", uri=uri)
        result[cells[0].lower().rpartition(".")[0]] = stage, cells[2] if len(cells) > 2 else ""
    return result


if __name__ == "__main__":
    sys.exit(main())
