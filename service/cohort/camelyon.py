"""The manifest of the public Camelyon data, divided as the paper divides it.

    python -m service.cohort.camelyon s3://camelyon-dataset camelyon.csv [--seed 0] [--itc-in-test]

A quarter of the labelled Camelyon17 slides is the test set; the rest is shuffled with Camelyon16, four fifths of it to
train and one fifth to val. All slides of a patient stay together. Of the bucket only names and two small tables are
read; a folder with the same layout will do. Isolated tumour cells (stratum itc) are positive slides wherever they lie:
that they are kept out of training is a setting of the training, `train_without_strata`.

Source: the paper, section 4.1; the layout is that of the open-data bucket, see its README.md files.
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
from service.cohort.manifest import COLUMNS, STRATA, Slide
from service.cohort.splits import split_patients
from service.errors import MagnetError, UsageError

TEST_SHARE = 0.25
"""Of the labelled Camelyon17 slides."""
FIT_SHARES = {"train": 0.8, "val": 0.2}
"""Of all others."""
PATIENTS_PER_CENTER = 20
"""Camelyon17 numbers its patients center by center, and only patients 0 to 99 have public labels."""
NUM_LABELLED_PATIENTS = 100
NUM_PUBLISHED = {"Camelyon16": 399, "Camelyon17": 500}
"""Labelled slides in the bucket."""

_FROM_NAME: dict[str, tuple[int, str | None]] = {"normal": (0, "negative"), "tumor": (1, None)}
"""Label and stratum of Camelyon16's training slides; the size of their metastases is not published."""
_IMAGE_16 = re.compile(r"(?i)(normal|tumor|test)_(\d{3})\.tiff?")
_IMAGE_17 = re.compile(r"(?i)patient_(\d{3})_node_(\d)\.tiff?")


@dataclass(frozen=True, slots=True)
class Cohort:
    """What was found."""

    slides: list[Slide] = field(default_factory=list)
    """With labels."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and what is odd about what was not."""


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status: 0 done, 2 wrong input, 1 the store failed."""
    parser = argparse.ArgumentParser(
        prog="python -m service.cohort.camelyon",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="BUCKET_OR_FOLDER", help="holds CAMELYON16/ and CAMELYON17/")
    parser.add_argument("out", metavar="OUT.csv", help="manifest to write, a path or URI")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same splits (0)")
    parser.add_argument("--itc-in-test", action="store_true", help="patients with isolated tumour cells go to test")
    given = parser.parse_args(arguments)
    try:
        cohort = find(given.root)
        slides = divided(cohort.slides, given.seed, itc_in_test=given.itc_in_test)
        frame = pd.DataFrame([{name: getattr(slide, name) for name in COLUMNS} for slide in slides])
        storage.write_bytes(given.out, frame.to_csv(index=False).encode())
    except MagnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print("\n".join(cohort.notes))
    counts = frame.assign(stratum=frame["stratum"].fillna("positive, size unknown"))
    print(pd.crosstab(counts["split"], counts["stratum"], margins=True, margins_name="all").to_string())
    print(f"{given.out}: {len(frame)} slides")
    return 0


def find(root: str) -> Cohort:
    """The labelled slides of both data sets.

    Args:
        root: bucket or folder that holds ``CAMELYON16`` and ``CAMELYON17``.

    Raises:
        UsageError: one of them, or its table of labels, is not there.
        AccessError, StorageError: the store cannot be listed or read.
    """
    cohort = Cohort()
    for name, add in (("Camelyon16", _add_camelyon16), ("Camelyon17", _add_camelyon17)):
        folder = storage.join(root, name.upper())
        uris = storage.list_uris(folder)
        if not any(_is_image(uri) for uri in uris):
            raise UsageError(
                "holds no images/*.tif; give the bucket (s3://camelyon-dataset) or a folder with its layout", uri=folder
            )
        before = len(cohort.slides)
        add(uris, folder, cohort)
        cohort.notes.append(f"{name}: {len(cohort.slides) - before} of {NUM_PUBLISHED[name]} labelled slides found")
    return cohort


def divided(slides: Sequence[Slide], seed: int, *, itc_in_test: bool) -> list[Slide]:
    """Slides with splits by the paper's protocol, patient by patient.

    Args:
        slides: of both data sets, with labels.
        seed: of both divisions.
        itc_in_test: test gets every patient that has a slide with isolated tumour cells, and others up to its share.
            The paper's own scores over all slides are only to be explained by such a test set.
    """
    own = [slide for slide in slides if _IMAGE_17.fullmatch(f"{slide.slide_id}.tif")]
    held = {slide.patient_id for slide in own if itc_in_test and slide.stratum == "itc"}
    rest = [slide for slide in own if slide.patient_id not in held]
    wanted = TEST_SHARE * len(own) - (len(own) - len(rest))
    if rest and wanted > 0:
        splits = _split(rest, seed, {"test": wanted, "fit": len(rest) - wanted})
        held |= {slide.patient_id for slide, split in zip(rest, splits, strict=True) if split == "test"}
    fit = [slide for slide in slides if slide.patient_id not in held]
    split_of = {slide.slide_id: split for slide, split in zip(fit, _split(fit, seed, FIT_SHARES), strict=True)}
    return [replace(slide, split=split_of.get(slide.slide_id, "test")) for slide in slides]


def _split(slides: Sequence[Slide], seed: int, shares: dict[str, float]) -> list[str]:
    return split_patients(
        [s.patient_id for s in slides], [s.label for s in slides], [s.stratum for s in slides], seed, shares
    )


def _add_camelyon16(uris: Sequence[str], folder: str, cohort: Cohort) -> None:
    """Every slide is its own patient: the data set does not name them."""
    images = dict(_images(uris, _IMAGE_16))
    references = _references(_table(uris, "reference.csv", folder))
    _tell_oddities(images, cohort.notes)
    for slide_id, uri in images.items():
        known = _FROM_NAME.get("tumor" if slide_id == "normal_086" else slide_id.partition("_")[0])
        known = known or references.get(slide_id)
        if known is None:
            cohort.notes.append(f"left out: {slide_id}, which reference.csv does not name")
        else:
            cohort.slides.append(_slide(slide_id, uri, slide_id, None, *known))


def _tell_oddities(images: dict[str, str], notes: list[str]) -> None:
    """What the organisers say of single slides; duplicates are taken away."""
    if "normal_086" in images and "tumor_111" in images:
        del images["normal_086"]
        notes.append("left out: normal_086, which the organisers renamed to tumor_111")
    elif "normal_086" in images:
        notes.append("positive: normal_086, which the organisers found to be a tumour slide and renamed to tumor_111")
    if images.pop("test_049", None):
        notes.append("left out: test_049, a duplicate that the organisers removed")
    if "test_114" in images:
        notes.append("kept: test_114, whose outlines are incomplete; its label is not concerned")


def _add_camelyon17(uris: Sequence[str], folder: str, cohort: Cohort) -> None:
    """Labels are those of ``stages.csv`` alone: ``evaluation/example.csv`` is a sample submission, not the truth."""
    images = dict(_images(uris, _IMAGE_17))
    place = _table(uris, "stages.csv", folder)
    stages = _stages(place)
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
    """Slide id and URI of each image; masks and overviews lie in other folders."""
    for uri in uris:
        name = storage.name(uri)
        if _is_image(uri) and pattern.fullmatch(name):
            yield name.rpartition(".")[0].lower(), uri


def _table(uris: Sequence[str], name: str, folder: str) -> str:
    """The URI of a table, wherever below the folder it lies."""
    found = [uri for uri in uris if storage.name(uri) == name]
    if len(found) != 1:
        raise UsageError(f"holds {len(found)} files {name}, from which labels are taken; want one", uri=folder)
    return found[0]


def _rows(uri: str) -> list[list[str]]:
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    return [[cell.strip() for cell in cells] for cells in csv.reader(io.StringIO(text, newline="")) if cells]


def _references(uri: str) -> dict[str, tuple[int, str | None]]:
    """Label and stratum of the Camelyon16 test slides: rows such as ``test_001,Tumor,IDC,Macro``, with no header."""
    found: dict[str, tuple[int, str | None]] = {}
    for cells in _rows(uri):
        slide_id, words = cells[0].lower().partition(".")[0], {cell.lower() for cell in cells[1:]}
        if "normal" in words:
            found[slide_id] = 0, "negative"
        elif words & {"tumor", "tumour"}:
            found[slide_id] = 1, next(iter(words & {"macro", "micro", "itc"}), None)
    return found


def _stages(uri: str) -> dict[str, tuple[str, str]]:
    """Stratum and center ("" in copies without it) of the Camelyon17 slides.

    Rows are ``patient_004_node_4.tif,itc,0``; those of whole patients, ``patient_004.zip,pN0(i+),0``, are passed over.
    """
    found = {}
    for number, cells in enumerate(_rows(uri), start=1):
        if not _IMAGE_17.fullmatch(cells[0]):
            continue
        stage = cells[1].lower() if len(cells) > 1 else ""
        if stage not in STRATA:
            raise UsageError(f"row {number}: stage {stage!r} is none of {', '.join(STRATA)}", uri=uri)
        found[cells[0].lower().rpartition(".")[0]] = stage, cells[2] if len(cells) > 2 else ""
    return found


if __name__ == "__main__":
    sys.exit(main())
