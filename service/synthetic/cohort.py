"""A generated cohort on disk: slides, manifest and outlines. The folder is complete or does not exist."""

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
from service.synthetic.clinical import draw_side_px
from service.synthetic.layout import MPP
from service.synthetic.plan import CohortSettings, PlannedSlide, plan_slides
from service.synthetic.slide import Outline, SlideSpec, write_slide

FORMAT_VERSION = 1
"""Version of the generator: it is increased when equal settings give different bytes than before."""

_SETTINGS_FILE = "settings.json"
"""File in the cohort's folder that records its settings."""


def make_cohort(out: Path, settings: CohortSettings, jobs: int = 1) -> bool:
    """Make a cohort: ``manifest.csv``, ``lesions.geojson``, ``decoys.geojson`` and ``slides/*.tif``.

    All files are written to a partial folder next to `out`, which is renamed at the end, so that a run that was killed
    leaves no folder that looks complete. The next run with the same `out` removes the files of the killed one.

    Args:
        out: folder to make: new, empty, or a cohort of the same settings.
        settings: settings of the cohort.
        jobs: number of slides made at once, each in a separate process. It changes no byte.

    Returns:
        False if the cohort existed already, so that nothing had to be done.

    Raises:
        UsageError: if `out` has other content, or if another process is making the same cohort.
    """
    out = out.resolve()
    record = json.dumps({"format": FORMAT_VERSION, **settings.to_record()}, indent=2) + "\n"
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
    """Return whether `out` holds this cohort; raise UsageError if it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UsageError(f"{out} is a file; name a new folder")
    if not any(out.iterdir()):
        return False
    settings_file = out / _SETTINGS_FILE
    if not settings_file.is_file():
        raise UsageError(f"{out} holds other files; name a new folder or empty this one")
    if settings_file.read_text() != record:
        raise UsageError(
            f"{out} holds a cohort with other settings (see its {_SETTINGS_FILE}); name a new folder or remove this one"
        )
    return True


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder next to `out`, locked against other processes; remove it at the end if it still exists."""
    folder = out.parent / f".{out.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    # The lock belongs to the open folder: it ends with the process, however that ends.
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not lock_descriptor(lock, blocking=False):
            raise UsageError(f"another process is making {out}; wait for it or name another folder")
        for path in folder.iterdir():  # left by a run that was killed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _write_slides(folder: Path, settings: CohortSettings, slides: list[PlannedSlide], jobs: int) -> list[Outline]:
    work = [(_make_spec(settings, slide, number), folder / slide.uri) for number, slide in enumerate(slides)]
    progress = tqdm(total=len(work), desc="slides", unit="slide")
    outlines: list[Outline] = []
    with progress:
        for slide_outlines in _map(jobs, work):
            outlines += slide_outlines
            progress.update()
    return outlines


def _map(jobs: int, work: list[tuple[SlideSpec, Path]]) -> Iterator[list[Outline]]:
    if jobs == 1:
        yield from map(_write_slide, work)
        return
    spawn = multiprocessing.get_context("spawn")  # forking is unsafe while tqdm's thread runs
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=spawn) as processes:
        yield from processes.map(_write_slide, work)


def _write_slide(work: tuple[SlideSpec, Path]) -> list[Outline]:
    return write_slide(*work)


def _make_spec(settings: CohortSettings, slide: PlannedSlide, number: int) -> SlideSpec:
    return SlideSpec(
        slide_id=slide.slide_id,
        stratum=slide.stratum,
        center=slide.center,
        side_px=settings.side_px or draw_side_px((settings.seed, number)),
        num_decoys=settings.decoys,
        hint=settings.hint,
        strata=tuple(settings.strata.items()),
        seed=(settings.seed, number),
        clinical=settings.clinical,
    )


def _write_manifest(path: Path, slides: list[PlannedSlide]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, [f.name for f in fields(PlannedSlide)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(slide) for slide in slides)


def _write_outlines(path: Path, outlines: list[Outline]) -> None:
    """Write polygons as GeoJSON in level-0 pixels, x to the right and y down."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [o.points]},
            "properties": {"slide_id": o.slide_id, "lesion" if o.is_lesion else "decoy": o.size, "um_per_px": MPP},
        }
        for o in outlines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
