"""A cohort on disk: slides, manifest and outlines, there as a whole or not at all."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from filelock import lock_descriptor
from tqdm import tqdm

from service.errors import UsageError
from service.synthetic.plan import CohortSettings, PlannedSlide, plan_slides
from service.synthetic.slide import MPP, Outline, SlideSpec, write_slide

FORMAT_VERSION = 1
"""Raised whenever equal settings give other bytes than before."""

_SETTINGS_FILE = "settings.json"


def make_cohort(out: Path, settings: CohortSettings, jobs: int = 1) -> bool:
    """Make a cohort: ``manifest.csv``, ``lesions.geojson``, ``decoys.geojson`` and ``slides/*.tif``.

    Everything is written beside `out` first and renamed at the end, so that a run that was killed leaves nothing that
    looks whole. The next run with the same `out` clears away what it left.

    Args:
        out: folder to make; new, empty, or the same cohort.
        settings: what determines the cohort.
        jobs: slides made at once, each by a process of its own. Changes no byte.

    Returns:
        False if the cohort was there already and nothing had to be done.

    Raises:
        UsageError: `out` holds anything else, or another process is at it.
    """
    out = out.resolve()
    record = json.dumps({"format": FORMAT_VERSION, **asdict(settings)}, indent=2) + "\n"
    if _is_complete(out, record):
        return False
    slides = plan_slides(settings)
    with _partial_folder(out) as folder:
        (folder / "slides").mkdir()
        outlines = _write_slides(folder, settings, slides, jobs)
        _write_manifest(folder / "manifest.csv", slides)
        _write_outlines(folder / "lesions.geojson", [o for o in outlines if o.is_lesion])
        _write_outlines(folder / "decoys.geojson", [o for o in outlines if not o.is_lesion])
        (folder / _SETTINGS_FILE).write_text(record)
        folder.rename(out)
    return True


def _is_complete(out: Path, record: str) -> bool:
    """Whether `out` is this cohort already; refuses anything but that or nothing."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder to make")
    if not any(out.iterdir()):
        return False
    kept = out / _SETTINGS_FILE
    if not kept.is_file():
        raise UsageError(f"{out} holds other files; name a new folder, or empty this one")
    if kept.read_text() != record:
        raise UsageError(
            f"{out} holds a cohort of other settings (see {kept.name} in it); name a new folder, or remove this one"
        )
    return True


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, locked against other processes, removed at the end unless it was renamed."""
    folder = out.parent / f".{out.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not lock_descriptor(lock, blocking=False):
            raise UsageError(f"another process is making {out}; wait for it, or name another folder")
        for left_over in folder.iterdir():  # of a run that was killed
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _write_slides(folder: Path, settings: CohortSettings, slides: list[PlannedSlide], jobs: int) -> list[Outline]:
    work = [(_spec(settings, slide, number), folder / slide.uri) for number, slide in enumerate(slides)]
    progress = tqdm(total=len(work), desc=f"slides of {settings.side_px:,} px", unit="slide")
    outlines: list[Outline] = []
    with progress:
        for found in _map(jobs, work):
            outlines += found
            progress.update()
    return outlines


def _map(jobs: int, work: list[tuple[SlideSpec, Path]]) -> Iterator[list[Outline]]:
    if jobs == 1:
        yield from map(_write_one, work)
        return
    spawn = multiprocessing.get_context("spawn")  # tqdm's thread forbids to fork
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=spawn) as processes:
        yield from processes.map(_write_one, work)


def _write_one(work: tuple[SlideSpec, Path]) -> list[Outline]:
    return write_slide(*work)


def _spec(settings: CohortSettings, slide: PlannedSlide, number: int) -> SlideSpec:
    return SlideSpec(
        slide_id=slide.slide_id,
        stratum=slide.stratum,
        center=slide.center,
        side_px=settings.side_px,
        num_decoys=settings.decoys,
        hint=settings.hint,
        strata=tuple(settings.strata.items()),
        seed=(settings.seed, number),
    )


def _write_manifest(path: Path, slides: list[PlannedSlide]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, [f.name for f in fields(PlannedSlide)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(slide) for slide in slides)


def _write_outlines(path: Path, outlines: list[Outline]) -> None:
    """GeoJSON of polygons in level-0 pixels, x to the right and y down."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [o.points]},
            "properties": {"slide_id": o.slide_id, "lesion" if o.is_lesion else "decoy": o.size, "um_per_px": MPP},
        }
        for o in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
