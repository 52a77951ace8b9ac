"""The slides that a command works on: a manifest is read, split as the command needs it, and checked.

A job that fails on a missing slide after hours is expensive. So the commands open every slide before they start one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from service.cohort.folder import is_folder, list_slides
from service.cohort.label_policy import describe_splits, select_training_slides
from service.cohort.manifest import Manifest, ManifestError, Slide, assign_splits, check_slides, load_manifest
from service.errors import UsageError
from service.settings.train import TrainSettings
from service.slides.reader import RegionReader

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Shares of the splits if the manifest has none."""
NUM_THREADS = 16
"""Number of slides that `check_manifest` opens at a time."""


def load_for_training(uri: str, settings: TrainSettings) -> Manifest:
    """Return the slides to train with, each opened once, and print their counts.

    Args:
        uri: path or URI of the manifest.
        settings: settings of the training; the seed decides over the splits if the manifest has none.

    Raises:
        ManifestError: rows are wrong or slides cannot be opened; the message lists all problems.
    """
    # Splits come first: which strata are left out must not change which split a slide is in.
    manifest = assign_splits(load_manifest(uri, need_labels=True), settings.recipe.seed, SHARES)
    manifest = select_training_slides(manifest, without_strata=settings.train_without_strata, fit_on=settings.fit_on)
    with RegionReader(num_threads=settings.compute.reader_threads) as reader:
        require_readable(manifest, reader, uri)
    for name, count in describe_splits(manifest).items():
        print(f"  {name}: {count}", flush=True)
    return manifest


def load_for_search(uri: str, settings: TrainSettings) -> Manifest:
    """Return the slides of a search's trainings, as `load_for_training`.

    Raises:
        ManifestError: as for `load_for_training`.
        UsageError: the val split has slides of one label only: trials are compared by their validation AUROC.
    """
    manifest = load_for_training(uri, settings)
    labels = {slide.label for slide in manifest.split("val")}
    if labels != {0, 1}:
        raise UsageError(
            f"{manifest.uri}: the val split needs slides of both labels, it has {sorted(map(str, labels))}"
        )
    return manifest


def load_for_pretraining(uri: str, seed: int) -> Manifest:
    """Return the slides to pretrain on.

    If the manifest has splits or labels, only the slides that a training with this seed would train on are taken. All
    slides of a plain list are taken.

    Args:
        uri: path or URI of the manifest.
        seed: seed of the training.

    Raises:
        ManifestError: rows are wrong.
    """
    manifest = load_manifest(uri, need_labels=False)
    # Slides for validation and test must stay unseen, also without labels.
    if any(slide.split or slide.label is not None for slide in manifest.slides):
        manifest = assign_splits(manifest, seed, SHARES)
        manifest = replace(manifest, slides=manifest.split("train"))
    return manifest


def load_for_scoring(place: str, split: str | None) -> list[Slide]:
    """Return the slides to score. They are not opened: a slide that cannot be read becomes a row with a reason.

    Args:
        place: path or URI of a manifest, or of a folder whose slides are taken.
        split: only slides of this split; None: all slides.

    Raises:
        UsageError: there are no such slides.
    """
    if is_folder(place):
        manifest, other = list_slides(place)
        print(f"{place}: {len(manifest.slides)} slides, {other.describe()}", flush=True)
    else:
        manifest = load_manifest(place, need_labels=False)
    slides = [slide for slide in manifest.slides if split in (None, slide.split)]
    if not slides:
        raise UsageError(f"{place}: has no slides in the split {split!r}; leave out --split to score all slides")
    return slides


def check_manifest(place: str, *, need_labels: bool) -> None:
    """Read a manifest or folder, open each slide, and print counts.

    Args:
        place: path or URI of a manifest, or of a folder of slides.
        need_labels: whether each slide must have a label.

    Raises:
        ManifestError: rows are wrong or slides cannot be opened; the message lists all problems.
    """
    if is_folder(place):
        manifest, other = list_slides(place)
        print(f"{place}: {other.describe()}", flush=True)
    else:
        manifest = load_manifest(place, need_labels=need_labels)
    with RegionReader(num_threads=NUM_THREADS) as reader:
        require_readable(manifest, reader, manifest.uri)
    for name in ("split", "label", "stratum"):
        count = Counter(str(getattr(slide, name)) for slide in manifest.slides)
        print(f"  {name}: {', '.join(f'{value} {n}' for value, n in sorted(count.items()))}")
    print(f"all {len(manifest.slides)} slides open", flush=True)


def require_readable(manifest: Manifest, reader: RegionReader, uri: str) -> None:
    """Open each slide of a manifest.

    Raises:
        ManifestError: some cannot be opened; the message lists all of them.
    """
    print(f"{uri}: {len(manifest.slides)} slides, checking that each one opens", flush=True)
    if problems := check_slides(manifest, reader):
        raise ManifestError(problems, uri)
