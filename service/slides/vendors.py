"""Vendor formats of TIFF: which images of a file are the levels of its pyramid, and the pixel size.

Label, macro and thumbnail images are excluded here, so that no other module can read them by mistake.

| format | recognised by | levels |
| --- | --- | --- |
| aperio-svs | description that starts with "Aperio" | tiled images of level 0's shape |
| philips-tiff | software "Philips" | tiled images, padded to whole tiles, reduced by powers of two |
| ome-tiff | description that contains "<OME" | first image and its sub-images |
| generic-tiff | all other tiled files (libvips, COG, ASAP, ...) | first image and reduced images of its shape |

Hamamatsu, Leica, Ventana and Trestle files are TIFFs too, but with another geometry: OpenSlide reads those.

Source: OpenSlide's documentation of these formats.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from service.errors import SlideError, UnsupportedSlideError
from service.slides.tiff import Directory, Tiff

WIDTH, HEIGHT, DESCRIPTION, SOFTWARE, XMP = 256, 257, 270, 305, 700
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
SAMPLES, SUBFILE_TYPE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS = 277, 254, 322, 323, 324
NDPI_FORMAT = 65420

MAX_SIDE_PX = 1 << 22
"""Limit of a level's side; the largest slides have about 300,000 pixels."""

MppXY = tuple[float, float]
"""Micrometres per level-0 pixel in x and y."""


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level as stored in the file."""

    directory: Directory
    """Directory of the level's image."""
    stored_px: tuple[int, int]
    """Width and height including padding."""
    shown_px: tuple[int, int]
    """Width and height of the part that shows the slide."""
    step_xy: tuple[float, float]
    """Level-0 pixels per level pixel."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The pyramid of a slide."""

    format: str
    """Name of the format."""
    levels: tuple[StoredLevel, ...]
    """Levels, finest first."""
    mpp_xy: MppXY | None
    """Pixel size of level 0; None if the file does not contain it."""


def find_pyramid(tiff: Tiff) -> Pyramid:
    """Find the pyramid of the slide in a TIFF.

    Raises:
        UnsupportedSlideError: the layout is not supported here; OpenSlide may be able to read it.
        SlideError: the file is damaged, or has separate fluorescence channels.
    """
    first = tiff.directories[0]
    _refuse_other_geometries(tiff)
    if not _is_tiled(first):
        raise UnsupportedSlideError("its first image is not tiled")
    description = first.text(DESCRIPTION, 1 << 18)
    if description.startswith("Aperio"):
        rest = [d for d in tiff.directories[1:] if _is_tiled(d) and not _is_label_or_macro(d)]
        return Pyramid("aperio-svs", _select_levels(first, rest), _parse_aperio_mpp(description))
    if first.text(SOFTWARE).startswith("Philips"):
        rest = [d for d in tiff.directories[1:] if _is_tiled(d) and not _is_label_or_macro(d)]
        return Pyramid("philips-tiff", _select_padded_levels(first, rest), _parse_philips_mpp(description))
    if "<OME" in description[:2048]:
        _refuse_channels(first, description)
        return Pyramid("ome-tiff", _select_levels(first, tiff.children(first)), _parse_ome_mpp(description))
    # Bit 0 of the subfile type marks a reduced image, bit 2 a transparency mask.
    rest = [d for d in tiff.directories[1:] if _is_tiled(d) and d.integer(SUBFILE_TYPE, 0) & 5 == 1]
    return Pyramid("generic-tiff", _select_levels(first, rest), _read_resolution_mpp(first))


def _refuse_other_geometries(tiff: Tiff) -> None:
    first = tiff.directories[0]
    if NDPI_FORMAT in first:
        raise UnsupportedSlideError("unsupported Hamamatsu NDPI file")
    if "<scn" in first.text(DESCRIPTION, 2048):
        raise UnsupportedSlideError("unsupported Leica SCN file")
    if any(b"iScan" in directory.prefix(XMP, 1 << 16) for directory in tiff.directories):
        raise UnsupportedSlideError("unsupported Ventana BIF file")
    if first.text(SOFTWARE).startswith("MedScan"):
        raise UnsupportedSlideError("unsupported Trestle file")


def _refuse_channels(first: Directory, description: str) -> None:
    channels = re.search(r'\bSizeC="(\d+)"', description)
    samples = first.integer(SAMPLES, 1)
    if samples == 1 and channels and int(channels[1]) > 1:
        raise SlideError(f"has {channels[1]} separate channels (fluorescence); only RGB and grey slides are supported")


def _is_tiled(directory: Directory) -> bool:
    return TILE_WIDTH in directory and TILE_OFFSETS in directory


def _is_label_or_macro(directory: Directory) -> bool:
    # Aperio writes the kind of image in the second line, Philips in the first.
    lines = directory.text(DESCRIPTION, 1024).lower().splitlines()[:2]
    return any(line.strip().startswith(("label", "macro")) for line in lines)


def _read_size(directory: Directory) -> tuple[int, int]:
    size = directory.integer(WIDTH), directory.integer(HEIGHT)
    if not all(0 < side <= MAX_SIDE_PX for side in size):
        raise SlideError(f"an image has {size[0]} x {size[1]} pixels, sides must be 1 to {MAX_SIDE_PX}; it is damaged")
    return size


def _select_levels(first: Directory, rest: list[Directory]) -> tuple[StoredLevel, ...]:
    """Select level 0 and the images of its shape, each smaller than the previous one."""
    whole = _read_size(first)
    levels = [StoredLevel(first, whole, whole, (1.0, 1.0))]
    for size, directory in sorted(((_read_size(d), d) for d in rest), key=lambda pair: -pair[0][0]):
        if _has_same_shape(whole, size) and size[0] < levels[-1].stored_px[0]:
            levels.append(StoredLevel(directory, size, size, (whole[0] / size[0], whole[1] / size[1])))
    return tuple(levels)


def _has_same_shape(whole: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether `size` is `whole` reduced, except for rounding (vendors round down, round up or drop a row)."""
    step = min(whole[0] / size[0], whole[1] / size[1])
    expected = whole[0] / step, whole[1] / step
    return all(abs(side - exact) <= max(2.0, 0.01 * exact) for side, exact in zip(size, expected, strict=True))


def _select_padded_levels(first: Directory, rest: list[Directory]) -> tuple[StoredLevel, ...]:
    """Select the levels of a Philips slide: reduced by 2^k and padded to whole tiles, so that the size is not exact."""
    whole = _read_size(first)
    levels = [StoredLevel(first, whole, whole, (1.0, 1.0))]
    for size, directory in sorted(((_read_size(d), d) for d in rest), key=lambda pair: -pair[0][0]):
        tile = directory.integer(TILE_WIDTH), directory.integer(TILE_HEIGHT)
        step = _find_power_of_two(whole, size, tile, above=int(levels[-1].step_xy[0]))
        if step is not None:
            shown = max(1, whole[0] // step), max(1, whole[1] // step)
            levels.append(StoredLevel(directory, size, shown, (float(step), float(step))))
    return tuple(levels)


def _find_power_of_two(whole: tuple[int, int], size: tuple[int, int], tile: tuple[int, int], above: int) -> int | None:
    """Find the step 2^k, greater than `above`, that reduces `whole` to an image of this size; None if there is none."""
    if min(tile) < 1:
        return None
    step = 2 * above
    while step <= max(whole):
        reduced = math.ceil(whole[0] / step), math.ceil(whole[1] / step)
        if all(s in (r, r - 1, -(-r // t) * t) for s, r, t in zip(size, reduced, tile, strict=True)):
            return step
        step *= 2
    return None


def _check_mpp(x_um: float, y_um: float) -> MppXY | None:
    return (float(x_um), float(y_um)) if all(math.isfinite(v) and 0 < v < 1e4 for v in (x_um, y_um)) else None


def _parse_number(text: str) -> float:
    try:
        return float(text.strip().strip('"').replace(",", "."))
    except ValueError:
        return math.nan


def _parse_aperio_mpp(description: str) -> MppXY | None:
    match = re.search(r"\|\s*MPP\s*=\s*([^|\r\n]+)", description)
    return _check_mpp(_parse_number(match[1]), _parse_number(match[1])) if match else None


def _parse_philips_mpp(description: str) -> MppXY | None:
    match = re.search(r'"DICOM_PIXEL_SPACING"[^>]*>([^<]*)<', description)
    spacing_mm = [_parse_number(part) for part in match[1].replace("&quot;", " ").split()] if match else []
    # DICOM gives the spacing of rows first, then of columns.
    return _check_mpp(spacing_mm[1] * 1e3, spacing_mm[0] * 1e3) if len(spacing_mm) == 2 else None


def _parse_ome_mpp(description: str) -> MppXY | None:
    sides = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', description)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', description)
        scale = _OME_UNITS_UM.get(unit[1], math.nan) if unit else 1.0
        sides.append(_parse_number(size[1]) * scale if size else math.nan)
    return _check_mpp(sides[0], sides[1])


# The micro sign has two code points, and both are in use.
_OME_UNITS_UM = {"nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}


def _read_resolution_mpp(first: Directory) -> MppXY | None:
    unit_um = {2: 25400.0, 3: 10000.0}.get(first.integer(RESOLUTION_UNIT, 2))
    if unit_um is None or X_RESOLUTION not in first or Y_RESOLUTION not in first:
        return None
    sides = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        fraction = first.numbers(tag).astype(float).ravel()
        valid = fraction.shape == (2,) and fraction.min() > 0
        sides.append(unit_um * fraction[1] / fraction[0] if valid else math.nan)
    return _check_mpp(sides[0], sides[1])
