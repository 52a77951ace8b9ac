"""Quality check of a slide before scoring: tissue, stain, pen marks, focus and pixel size.

The check reads a thumbnail from the coarsest levels, and a few small windows of tissue, because a thumbnail does not
show the focus. Every threshold is a setting, and every refusal is explained in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from magnet.config import FORBID_EXTRA
from magnet.regions import from_level0
from magnet.windows import WindowRequest
from service.errors import MagnetError
from service.slides.reader_protocol import Batch, Reader
from service.slides.slide import SlideInfo
from service.storage.counters import ReadCounters

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

THUMBNAIL_PX = 640
"""Longer side of the thumbnail that is checked, and shown in reports."""
PROBE_PX = 224
"""Side of a window in which the focus is measured."""
PROBE_UM_PER_PX = 1.0
"""Pixel size that separates sharp from blurred tissue best: nuclei have some pixels, compression has no effect."""
ASSUMED_MPP = 0.5
"""Pixel size in micrometres for a slide without one: that of a 20x scan."""
CHROMA, CLEAR_DENSITY = 15, 0.05
"""Lower limits of the channel difference (of 255) and of the optical density of tissue. `magnet.views` uses the same
limits for the model."""
GREEN_LEADS = 10
"""Largest excess of green over any other channel (of 255) in stained tissue: haematoxylin and eosin both absorb green
most. Measured: true for 98 to 100 % of the tissue of four H&E slides and 57 tiles."""


class SlideRefusedError(MagnetError):
    """The slide failed the quality check. To act: its supplier. A retry does not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings:
    """Thresholds of the quality check."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    require_mpp: bool = False
    """Whether slides without a pixel size are refused; otherwise they are scored and flagged."""
    min_mpp: float = 0.1
    """Lower limit of the pixel size in micrometres per level-0 pixel."""
    max_mpp: float = 2.0
    """Upper limit of the pixel size in micrometres per level-0 pixel."""
    min_tissue: float = 0.0005
    """Lower limit of the share of tissue in the slide."""
    min_tissue_mm2: float = 0.02
    """Lower limit of the area of tissue in square millimetres; ignored if the pixel size is unknown."""
    max_dark: float = 0.5
    """Upper limit of the share of black in the slide: fluorescence has a dark background, brightfield a bright one."""
    min_stain: float = 0.8
    """Lower limit of the share of the tissue with the colours of H&E."""
    max_pen: float = 0.2
    """Upper limit of the share of pen marks in all that is neither glass nor black."""
    min_sharpness: float = 0.35
    """Lower limit of the sharpness of the tissue, see `measure_sharpness`; sharp H&E has at least 0.9."""
    probes: int = 5
    """Number of windows in which the focus is measured (the median counts), 0 to 64; 0 disables the check."""

    def __post_init__(self) -> None:
        for name in ("min_tissue", "max_dark", "min_stain", "max_pen"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 to 1")
        if not 0 < self.min_mpp <= self.max_mpp:
            raise ValueError(f"min_mpp = {self.min_mpp}, max_mpp = {self.max_mpp}: must be above 0 and in this order")
        if not 0 <= self.probes <= 64:
            raise ValueError(f"probes = {self.probes}: must be 0 to 64")


@dataclass(frozen=True, slots=True)
class Quality:
    """Measurements of the quality of one slide."""

    thumbnail: Pixels
    """uint8 (h, w, 3), the longer side at most `THUMBNAIL_PX`."""
    tissue: float
    """Share of tissue in the thumbnail."""
    tissue_mm2: float | None
    """Area of tissue in square millimetres; None if the pixel size is unknown."""
    dark: float
    """Share of black in the thumbnail."""
    stain: float
    """Share of the tissue with the colours of H&E; 0 without tissue."""
    pen: float
    """Share of pen marks in all that is neither glass nor black."""
    sharpness: float | None = None
    """Median sharpness of the probes; None if it was not measured."""
    counters: ReadCounters = field(default_factory=ReadCounters)
    """Cost of the reads."""


def inspect(reader: Reader, uri: str, gate: GateSettings) -> Quality:
    """Check the quality of a slide with few reads.

    Args:
        reader: reader of the slide.
        uri: the slide.
        gate: thresholds.

    Returns:
        The measurements of a slide that passed.

    Raises:
        SlideRefusedError: the slide failed; the message has the reason and the name of the setting.
        MagnetError: the slide cannot be read.
    """
    batch = reader.batch([uri])
    info, counters = batch.info[0], batch.counters[0]
    _check_pixel_size(info, gate)  # first, because it needs no pixels
    quality = measure(reader.thumbnail(uri, THUMBNAIL_PX, counters), info)
    _check_colours(quality, gate, uri)
    sharpness = _measure_probes(batch, quality.thumbnail, gate.probes)
    if sharpness is not None and sharpness < gate.min_sharpness:
        reason = f"blurred: sharpness {sharpness:.2f}, must be at least {gate.min_sharpness:g} (gate.min_sharpness)"
        raise SlideRefusedError(reason, uri=uri)
    return replace(quality, sharpness=sharpness, counters=counters)


def measure(thumbnail: Pixels, info: SlideInfo) -> Quality:
    """Measure all but the sharpness on a thumbnail, uint8 (h, w, 3)."""
    channels = np.moveaxis(thumbnail.astype(np.int16), -1, 0)
    red, green, blue = channels
    brightest, chroma = channels.max(axis=0), channels.max(axis=0) - channels.min(axis=0)
    ink = _find_ink(red, green, blue)
    dark = (brightest < 40) & ~ink
    tissue = (chroma > CHROMA) & (channels.mean(axis=0) < 255 * 10**-CLEAR_DENSITY) & ~ink & ~dark
    stained = tissue & (green <= red + GREEN_LEADS) & (green <= blue + GREEN_LEADS)
    share = float(tissue.mean())
    area_mm2 = None
    if info.mpp_xy is not None:
        wide, high = (px * mpp / 1e3 for px, mpp in zip(info.size_px, info.mpp_xy, strict=True))
        area_mm2 = share * wide * high
    return Quality(
        thumbnail=thumbnail,
        tissue=share,
        tissue_mm2=area_mm2,
        dark=float((brightest < 40).mean()),
        stain=float(stained.sum() / max(1, tissue.sum())),
        pen=float(ink.sum() / max(1, ink.sum() + tissue.sum())),
    )


def measure_sharpness(image: Pixels) -> float:
    """Measure the detail of the size of a pixel relative to the contrast.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        Standard deviation of the Laplacian over that of the grey values, 0 or more.
    """
    grey = image.astype(np.float64).mean(axis=-1)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((4 * grey[1:-1, 1:-1] - around).std() / max(1.0, grey.std()))


def _find_ink(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Mask:
    """Find pen colours that H&E tissue does not have: green, strong blue, strong red, greyish black; bool (h, w)."""
    greenish = (green > red + 25) & (green > blue + 10)
    bluish = (blue > red + 90) & (red < 110) & (blue > green + 25) & (green > 15)
    reddish = (red > np.maximum(green, blue) + 110) & (green < 90)
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    blackish = (brightest < 75) & (darkest > 10) & (brightest - darkest < 20)  # pure black is missing image, not ink
    return greenish | bluish | reddish | blackish


def _check_pixel_size(info: SlideInfo, gate: GateSettings) -> None:
    if info.mpp_xy is None:
        if gate.require_mpp:
            raise SlideRefusedError("the slide has no pixel size (gate.require_mpp)", uri=info.uri)
        return
    x, y = info.mpp_xy
    if not gate.min_mpp <= min(x, y) <= max(x, y) <= gate.max_mpp:
        raise SlideRefusedError(
            f"unusual pixel size: {x:g} x {y:g} micrometres, must be {gate.min_mpp:g} to {gate.max_mpp:g} "
            "(gate.min_mpp, gate.max_mpp)",
            uri=info.uri,
        )


def _check_colours(quality: Quality, gate: GateSettings, uri: str) -> None:
    """Raise SlideRefusedError for the first failed check; a check that explains the failure of others is done first."""
    if quality.dark > gate.max_dark:
        reason = f"wrong stain: {quality.dark:.0%} of the slide is black, limit {gate.max_dark:.0%} (gate.max_dark)"
    elif quality.pen > gate.max_pen:
        reason = f"pen marks: {quality.pen:.0%} of all that is on the glass, limit {gate.max_pen:.0%} (gate.max_pen)"
    elif quality.tissue < min(1e-4, gate.min_tissue):
        reason = "blank: no tissue found (gate.min_tissue)"
    elif quality.tissue < gate.min_tissue:
        reason = (
            f"too little tissue: {quality.tissue:.3%} of the slide, minimum {gate.min_tissue:.3%} (gate.min_tissue)"
        )
    elif quality.tissue_mm2 is not None and quality.tissue_mm2 < gate.min_tissue_mm2:
        reason = (
            f"too little tissue: {quality.tissue_mm2:.3g} mm2, minimum {gate.min_tissue_mm2:g} (gate.min_tissue_mm2)"
        )
    elif quality.stain < gate.min_stain:
        reason = (
            f"wrong stain: {quality.stain:.0%} of the tissue has the colours of H&E, minimum {gate.min_stain:.0%} "
            "(gate.min_stain)"
        )
    else:
        return
    raise SlideRefusedError(reason, uri=uri)


def _measure_probes(batch: Batch, thumbnail: Pixels, probes: int) -> float | None:
    """Return the median sharpness of windows spread over the tissue; None without tissue or on a small slide."""
    info = batch.info[0]
    side = PROBE_PX * PROBE_UM_PER_PX / (min(info.mpp_xy) if info.mpp_xy else ASSUMED_MPP)
    side = max(side, PROBE_PX)  # no finer than native resolution
    if not probes or side > min(info.size_px):
        return None
    red, green, blue = np.moveaxis(thumbnail.astype(np.int16), -1, 0)
    dense = (np.maximum(red, blue) - green > CHROMA) & ~_find_ink(red, green, blue)
    row, column = np.nonzero(dense)
    if not len(row):
        return None
    # The middles of equal parts: the ends are at the edge of the tissue.
    probe = np.linspace(0, len(row) - 1, 2 * probes + 1).round().astype(int)[1::2]
    scale = max(info.size_px) / max(thumbnail.shape[:2])
    corner = np.stack([column[probe], row[probe]], axis=1) * scale - side / 2
    corner = np.clip(corner, 0, np.array(info.size_px) - side)
    region = from_level0(np.column_stack([corner, np.full(len(corner), side)]), info.size_px)
    windows = batch.fetch(WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, PROBE_PX, 0))
    # A window has one to two pixels per requested pixel, so its first PROBE_PX are always inside the slide.
    return float(np.median([measure_sharpness(pixels[:PROBE_PX, :PROBE_PX]) for pixels in windows.pixels]))
