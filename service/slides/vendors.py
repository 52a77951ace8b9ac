"""Makers' habits: which images of a TIFF are the levels of its pyramid, and how large a pixel is.

Label, macro and thumbnail images are left out by rule, so that nothing can read them by accident.

| format | told by | levels |
| --- | --- | --- |
| aperio-svs | description starts with "Aperio" | tiled images of level 0's shape |
| philips-tiff | software "Philips" | tiled images; sizes padded to whole tiles, steps are powers of two |
| ome-tiff | description holds "<OME" | the first image and its sub-images |
| generic-tiff | anything else tiled (libvips, COG, ASAP, ...) | first image, then reduced ones of its shape |

Hamamatsu, Leica, Ventana and Trestle files are TIFFs too, but of a geometry of their own: OpenSlide reads those.
Source for the rules: OpenSlide's documentation of these formats.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from service.errors import SlideError, UnsupportedSlideError
from service.slides.tiff import Directory, Tiff

WIDTH, HEIGHT, DESCRIPTION, SOFTWARE, XMP = 256, 257, 270, 305, 700
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
SUBFILE_TYPE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS = 254, 322, 323, 324
NDPI_FORMAT = 65420

MAX_SIDE_PX = 1 << 22
"""Pixels of a level's side; the largest slides have some 300,000."""

MppXY = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level as it lies in the file."""

    directory: Directory
    stored_px: tuple[int, int]
    """Width and height as stored, with padding."""
    shown_px: tuple[int, int]
    """Width and height of what shows the slide."""
    step_xy: tuple[float, float]
    """Level-0 pixels per level pixel."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a slide, finest first."""

    format: str
    levels: tuple[StoredLevel, ...]
    mpp_xy: MppXY | None
    """Micrometres per level-0 pixel."""


def pyramid_of(tiff: Tiff) -> Pyramid:
    """The slide that a TIFF holds.

    Raises:
        UnsupportedSlideError: OpenSlide may be able to read it.
        SlideError: nothing can.
    """
    first = tiff.directories[0]
    _refuse_foreign(tiff)
    if not _is_tiled(first):
        raise UnsupportedSlideError("its first image is not tiled")
    description = first.text(DESCRIPTION, 1 << 18)
    if description.startswith("Aperio"):
        rest = [d for d in tiff.directories[1:] if _is_tiled(d) and not _is_label_or_macro(d)]
        return Pyramid("aperio-svs", _levels(first, rest), _aperio_mpp(description))
    if first.text(SOFTWARE).startswith("Philips"):
        rest = [d for d in tiff.directories[1:] if _is_tiled(d) and not _is_label_or_macro(d)]
        return Pyramid("philips-tiff", _padded_levels(first, rest), _philips_mpp(description))
    if "<OME" in description[:2048]:
        _refuse_channels(first, description)
        return Pyramid("ome-tiff", _levels(first, tiff.children(first)), _ome_mpp(description))
    rest = [d for d in tiff.directories[1:] if _is_tiled(d) and d.integer(SUBFILE_TYPE, 0) & 5 == 1]
    return Pyramid("generic-tiff", _levels(first, rest), _resolution_mpp(first))


def _refuse_foreign(tiff: Tiff) -> None:
    first = tiff.directories[0]
    if NDPI_FORMAT in first:
        raise UnsupportedSlideError("a Hamamatsu NDPI file is not read in place")
    if "<scn" in first.text(DESCRIPTION, 2048):
        raise UnsupportedSlideError("a Leica SCN file is not read in place")
    if any(b"iScan" in directory.prefix(XMP, 1 << 16) for directory in tiff.directories):
        raise UnsupportedSlideError("a Ventana BIF file is not read in place")
    if first.text(SOFTWARE).startswith("MedScan"):
        raise UnsupportedSlideError("a Trestle file is not read in place")


def _refuse_channels(first: Directory, description: str) -> None:
    channels = re.search(r'\bSizeC="(\d+)"', description)
    samples = first.integer(277, 1)
    if samples == 1 and channels and int(channels[1]) > 1:
        raise SlideError(f"holds {channels[1]} separate channels (fluorescence); only RGB and grey slides can be read")


def _is_tiled(directory: Directory) -> bool:
    return TILE_WIDTH in directory and TILE_OFFSETS in directory


def _is_label_or_macro(directory: Directory) -> bool:
    lines = directory.text(DESCRIPTION, 1024).lower().splitlines()[:2]
    return any(line.strip().startswith(("label", "macro")) for line in lines)


def _size(directory: Directory) -> tuple[int, int]:
    size = directory.integer(WIDTH), directory.integer(HEIGHT)
    if not all(0 < side <= MAX_SIDE_PX for side in size):
        raise SlideError(f"an image of {size[0]} x {size[1]} pixels, sides must be 1 to {MAX_SIDE_PX}; it is damaged")
    return size


def _levels(first: Directory, rest: list[Directory]) -> tuple[StoredLevel, ...]:
    """Level 0 and those of the rest that have its shape, each smaller than the one before."""
    whole = _size(first)
    levels = [StoredLevel(first, whole, whole, (1.0, 1.0))]
    for size, directory in sorted(((_size(d), d) for d in rest), key=lambda pair: -pair[0][0]):
        if _same_shape(whole, size) and size[0] < levels[-1].stored_px[0]:
            levels.append(StoredLevel(directory, size, size, (whole[0] / size[0], whole[1] / size[1])))
    return tuple(levels)


def _same_shape(whole: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether `size` is `whole` reduced, give or take rounding (makers round down, up, or drop a row)."""
    step = min(whole[0] / size[0], whole[1] / size[1])
    expected = whole[0] / step, whole[1] / step
    return all(abs(have - want) <= max(2.0, 0.01 * want) for have, want in zip(size, expected, strict=True))


def _padded_levels(first: Directory, rest: list[Directory]) -> tuple[StoredLevel, ...]:
    """Philips: a level shows 1/2^k of level 0 and is filled up to whole tiles; its size does not tell its step."""
    whole = _size(first)
    levels = [StoredLevel(first, whole, whole, (1.0, 1.0))]
    for size, directory in sorted(((_size(d), d) for d in rest), key=lambda pair: -pair[0][0]):
        tile = directory.integer(TILE_WIDTH), directory.integer(TILE_HEIGHT)
        step = _power_of_two(whole, size, tile, above=int(levels[-1].step_xy[0]))
        if step is not None:
            shown = max(1, whole[0] // step), max(1, whole[1] // step)
            levels.append(StoredLevel(directory, size, shown, (float(step), float(step))))
    return tuple(levels)


def _power_of_two(whole: tuple[int, int], size: tuple[int, int], tile: tuple[int, int], above: int) -> int | None:
    """The step 2^k, more than `above`, at which `whole` fills an image of that size; None where none does."""
    if min(tile) < 1:
        return None
    step = 2 * above
    while step <= max(whole):
        reduced = math.ceil(whole[0] / step), math.ceil(whole[1] / step)
        if all(s in (r, r - 1, -(-r // t) * t) for s, r, t in zip(size, reduced, tile, strict=True)):
            return step
        step *= 2
    return None


def _valid(x_um: float, y_um: float) -> MppXY | None:
    return (float(x_um), float(y_um)) if all(math.isfinite(v) and 0 < v < 1e4 for v in (x_um, y_um)) else None


def _number(text: str) -> float:
    try:
        return float(text.strip().strip('"').replace(",", "."))
    except ValueError:
        return math.nan


def _aperio_mpp(description: str) -> MppXY | None:
    found = re.search(r"\|\s*MPP\s*=\s*([^|\r\n]+)", description)
    return _valid(_number(found[1]), _number(found[1])) if found else None


def _philips_mpp(description: str) -> MppXY | None:
    found = re.search(r'"DICOM_PIXEL_SPACING"[^>]*>([^<]*)<', description)
    spacing_mm = [_number(part) for part in found[1].replace("&quot;", " ").split()] if found else []
    return _valid(spacing_mm[1] * 1e3, spacing_mm[0] * 1e3) if len(spacing_mm) == 2 else None  # rows, then columns


def _ome_mpp(description: str) -> MppXY | None:
    sides = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', description)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', description)
        scale = _OME_UNITS_UM.get(unit[1], math.nan) if unit else 1.0
        sides.append(_number(size[1]) * scale if size else math.nan)
    return _valid(sides[0], sides[1])


_OME_UNITS_UM = {"nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}


def _resolution_mpp(first: Directory) -> MppXY | None:
    unit_um = {2: 25400.0, 3: 10000.0}.get(first.integer(RESOLUTION_UNIT, 2))
    if unit_um is None or X_RESOLUTION not in first or Y_RESOLUTION not in first:
        return None
    sides = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        fraction = first.numbers(tag).astype(float).ravel()
        valid = fraction.shape == (2,) and fraction.min() > 0
        sides.append(unit_um * fraction[1] / fraction[0] if valid else math.nan)
    return _valid(sides[0], sides[1])
