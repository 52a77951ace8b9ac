"""How each slide is read, how much its pixels differ from OpenSlide's, and the messages for damaged files.

    python benchmarks/formats.py FOLDER

Prints two Markdown tables, one of the slides in FOLDER/slides and one of the files in FOLDER/bad. The difference is the
mean absolute difference, in grey levels of 255, over `NUM_WINDOWS` random windows of a level; the largest value of a
slide's levels is shown. Pixels that OpenSlide leaves transparent count as white, since our reader paints them white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from magnet.regions import from_level0
from magnet.windows import WindowRequest
from service.errors import MagnetError
from service.slides.reader import RegionReader, SlideBatch

NUM_WINDOWS, OUT_PX = 8, 200


def slide_row(reader: RegionReader, path: Path) -> list[str]:
    """Return file, format, way of reading, size, number of levels and difference."""
    batch = reader.batch([str(path)])
    info = batch.info[0]
    with openslide.OpenSlide(path) as reference:
        difference = max(level_difference(batch, reference, level) for level in range(len(info.levels)))
    by_openslide = info.format.startswith("openslide:")
    return [
        f"`{path.name}`",
        info.format.removeprefix("openslide:"),
        "through OpenSlide" if by_openslide else "in place",
        f"{info.size_px[0]:,} x {info.size_px[1]:,}",
        str(len(info.levels)),
        f"{difference:.4f}",
    ]


def level_difference(batch: SlideBatch, reference: openslide.OpenSlide, level: int) -> float:
    """Return the mean absolute difference of windows inside the level, in grey levels of 255."""
    info, reference_pixels = batch.info[0], openslide_pixels(reference, level)
    high, wide = reference_pixels.shape[:2]
    steps = info.size_px[0] / wide, info.size_px[1] / high
    side = min(
        OUT_PX * max(steps) * 1.001, *info.size_px
    )  # slightly larger than the output: this level is read, not a finer one
    corner = np.random.default_rng(level).uniform(0, 1, (NUM_WINDOWS, 2)) * (np.array(info.size_px) - side)
    region = from_level0(np.concatenate([corner, np.full((NUM_WINDOWS, 1), side)], axis=1), info.size_px)
    out_px = max(1, int(side / max(steps)))
    windows = batch.fetch(WindowRequest(0, np.zeros(NUM_WINDOWS, np.int64), region, out_px, 0))
    differences = []
    for pixels, (left, top, px_w, px_h) in zip(windows.pixels, windows.place, strict=True):
        x = max(0, round((left + info.size_px[0] / batch.side_px[0]) / px_w))
        y = max(0, round((top + info.size_px[1] / batch.side_px[0]) / px_h))
        piece = reference_pixels[y : y + out_px, x : x + out_px].astype(int)
        differences.append(np.abs(pixels[: piece.shape[0], : piece.shape[1]] - piece).mean())
    return float(np.mean(differences))


def openslide_pixels(reference: openslide.OpenSlide, level: int) -> NDArray[np.uint8]:
    """Return a whole level, (H, W, 3), with transparent pixels white."""
    rgba = np.asarray(reference.read_region((0, 0), level, reference.level_dimensions[level]))
    return rgba[..., :3] + (255 - rgba[..., 3:])


def bad_row(path: Path) -> list[str]:
    """Return file, class of the error, and its message."""
    try:
        with RegionReader() as reader:
            reader.batch([str(path)]).fetch(WindowRequest(0, np.zeros(1, np.int64), np.array([[1.0, 0, 0]]), 224, 0))
    except MagnetError as error:
        return [f"`{path.name}`", type(error).__name__, str(error).replace(str(path), path.name)]
    return [f"`{path.name}`", "none", "readable"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format rows as a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    good = sorted(path for path in (folder / "slides").iterdir() if path.suffix != ".md")
    bad = sorted(path for path in (folder / "bad").iterdir() if path.is_file() and path.suffix != ".md")
    with RegionReader() as reader:
        rows = [slide_row(reader, path) for path in good]
    print(table(["slide", "format", "read", "size", "levels", "difference to OpenSlide"], rows))
    print()
    print(table(["damaged file", "error", "what the user sees"], [bad_row(path) for path in bad]))


if __name__ == "__main__":
    main()
