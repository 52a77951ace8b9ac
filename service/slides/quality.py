"""Whether a slide is fit to be scored: tissue, stain, pen marks, focus and pixel size, judged before it is zoomed.

What is looked at is a thumbnail, made of the lowest levels, and a few small windows on tissue, for the focus cannot be
seen on a thumbnail. Every threshold is a setting, every refusal a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from magnet.config import CLOSED
from magnet.regions import from_level0
from magnet.windows import WindowRequest
from service.errors import MagnetError
from service.slides.reader_protocol import Batch, Reader
from service.slides.slide import SlideInfo
from service.storage.counters import ReadCounters

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

THUMBNAIL_PX = 640
"""Longer side of the thumbnail that is judged, and drawn on."""
PROBE_PX = 224
"""Side of a window in which the focus is judged."""
PROBE_UM_PER_PX = 1.0
"""Where sharp and blurred tissue are told apart best: nuclei are some pixels wide, compression leaves no trace."""
ASSUMED_MPP = 0.5
"""Pixel size where the slide does not tell: that of a 20x scan."""
CHROMA, CLEAR_DENSITY = 15, 0.05
"""Tissue has channels that differ by more than the first (of 255) and a density above the second; see `magnet.views`,
which tells the model the same."""
GREEN_LEADS = 10
"""Haematoxylin and eosin both absorb green most: in stained tissue no channel is weaker than green by more than this
(of 255). Measured: 98 to 100 % of the tissue of four H&E slides and 57 tiles."""


class SlideRefusedError(MagnetError):
    """A slide is not fit to be scored. To act: whoever made or chose it. A retry does not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings:
    """What a slide must show to be scored."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    require_mpp: bool = False
    """Refuse slides that do not tell their pixel size; otherwise they are scored and flagged."""
    min_mpp: float = 0.1
    """Micrometres per level-0 pixel, at least."""
    max_mpp: float = 2.0
    """Micrometres per level-0 pixel, at most."""
    min_tissue: float = 0.0005
    """Share of the slide that is tissue, at least."""
    min_tissue_mm2: float = 0.02
    """Area of tissue, at least; where the pixel size is known."""
    max_dark: float = 0.5
    """Share of the slide that is black, at most: fluorescence has a dark background, brightfield a bright one."""
    min_stain: float = 0.8
    """Share of the tissue that has the colours of H&E, at least."""
    max_pen: float = 0.2
    """Share of pen marks in what is neither glass nor black, at most."""
    min_sharpness: float = 0.35
    """Sharpness of the tissue, at least: what detail of a pixel's size adds to the contrast; sharp H&E has 0.9."""
    probes: int = 5
    """Windows in which the focus is judged (their median counts); 0: it is not judged."""

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
    """What was found of one slide."""

    thumbnail: Pixels
    """(h, w, 3), the longer side `THUMBNAIL_PX`."""
    tissue: float
    """Share of the thumbnail."""
    tissue_mm2: float | None
    """Area; None where the pixel size is unknown."""
    dark: float
    """Share of the thumbnail that is black."""
    stain: float
    """Share of the tissue that has the colours of H&E; 0 where there is none."""
    pen: float
    """Share of pen marks in all that is neither glass nor black."""
    sharpness: float | None = None
    """Median over the probes; None where it was not judged."""
    counters: ReadCounters = field(default_factory=ReadCounters)
    """What looking took."""


def inspect(reader: Reader, uri: str, gate: GateSettings) -> Quality:
    """Look at a slide as cheaply as can be.

    Raises:
        SlideRefusedError: the slide is not fit; the message says in what, and which setting decides.
        MagnetError: it cannot be read.
    """
    batch = reader.batch([uri])
    info, counters = batch.info[0], batch.counters[0]
    _check_pixel_size(info, gate)
    seen = measure(reader.thumbnail(uri, THUMBNAIL_PX, counters), info)
    _check_colours(seen, gate, uri)
    sharpness = _sharpness(batch, seen.thumbnail, gate.probes)
    if sharpness is not None and sharpness < gate.min_sharpness:
        reason = f"blurred: sharpness {sharpness:.2f}, at least {gate.min_sharpness:g} (gate.min_sharpness)"
        raise SlideRefusedError(reason, uri=uri)
    return replace(seen, sharpness=sharpness, counters=counters)


def measure(thumbnail: Pixels, info: SlideInfo) -> Quality:
    """What a thumbnail tells of its slide."""
    channels = np.moveaxis(thumbnail.astype(np.int16), -1, 0)
    red, green, blue = channels
    brightest, chroma = channels.max(axis=0), channels.max(axis=0) - channels.min(axis=0)
    ink = _ink(red, green, blue)
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


def sharpness_of(image: Pixels) -> float:
    """How much detail of a pixel's size there is for the contrast: spread of the Laplacian over that of the grey."""
    grey = image.astype(np.float64).mean(axis=-1)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((4 * grey[1:-1, 1:-1] - around).std() / max(1.0, grey.std()))


def _ink(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Mask:
    """Felt-tip colours that no H&E tissue has: green, strong blue, strong red, and greyish black."""
    greenish = (green > red + 25) & (green > blue + 10)
    bluish = (blue > red + 90) & (red < 110) & (blue > green + 25) & (green > 15)
    reddish = (red > np.maximum(green, blue) + 110) & (green < 90)
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    blackish = (brightest < 75) & (darkest > 10) & (brightest - darkest < 20)  # pure black is missing, not written on
    return greenish | bluish | reddish | blackish


def _check_pixel_size(info: SlideInfo, gate: GateSettings) -> None:
    if info.mpp_xy is None:
        if gate.require_mpp:
            raise SlideRefusedError("tells no pixel size (gate.require_mpp)", uri=info.uri)
        return
    x, y = info.mpp_xy
    if not gate.min_mpp <= min(x, y) <= max(x, y) <= gate.max_mpp:
        raise SlideRefusedError(
            f"odd pixel size: {x:g} x {y:g} micrometres, want {gate.min_mpp:g} to {gate.max_mpp:g} "
            "(gate.min_mpp, gate.max_mpp)",
            uri=info.uri,
        )


def _check_colours(seen: Quality, gate: GateSettings, uri: str) -> None:
    """The first that is wrong, the one that explains the others first."""
    if seen.dark > gate.max_dark:
        reason = f"wrong stain: {seen.dark:.0%} of the slide is black, at most {gate.max_dark:.0%} (gate.max_dark)"
    elif seen.pen > gate.max_pen:
        reason = f"pen marks: {seen.pen:.0%} of what is on the glass, at most {gate.max_pen:.0%} (gate.max_pen)"
    elif seen.tissue < min(1e-4, gate.min_tissue):
        reason = "blank: no tissue found (gate.min_tissue)"
    elif seen.tissue < gate.min_tissue:
        reason = f"too little tissue: {seen.tissue:.3%} of the slide, at least {gate.min_tissue:.3%} (gate.min_tissue)"
    elif seen.tissue_mm2 is not None and seen.tissue_mm2 < gate.min_tissue_mm2:
        reason = f"too little tissue: {seen.tissue_mm2:.3g} mm2, at least {gate.min_tissue_mm2:g} (gate.min_tissue_mm2)"
    elif seen.stain < gate.min_stain:
        reason = (
            f"wrong stain: {seen.stain:.0%} of the tissue has the colours of H&E, at least {gate.min_stain:.0%} "
            "(gate.min_stain)"
        )
    else:
        return
    raise SlideRefusedError(reason, uri=uri)


def _sharpness(batch: Batch, thumbnail: Pixels, probes: int) -> float | None:
    """Median sharpness of windows on tissue, spread over it; None where there is no room for one."""
    info = batch.info[0]
    side = PROBE_PX * PROBE_UM_PER_PX / (min(info.mpp_xy) if info.mpp_xy else ASSUMED_MPP)
    side = max(side, PROBE_PX)
    if not probes or side > min(info.size_px):
        return None
    red, green, blue = np.moveaxis(thumbnail.astype(np.int16), -1, 0)
    dense = (np.maximum(red, blue) - green > CHROMA) & ~_ink(red, green, blue)
    row, column = np.nonzero(dense)
    if not len(row):
        return None
    chosen = np.linspace(0, len(row) - 1, 2 * probes + 1).round().astype(int)[1::2]
    scale = max(info.size_px) / max(thumbnail.shape[:2])
    corner = np.stack([column[chosen], row[chosen]], axis=1) * scale - side / 2
    corner = np.clip(corner, 0, np.array(info.size_px) - side)
    region = from_level0(np.column_stack([corner, np.full(len(corner), side)]), info.size_px)
    windows = batch.fetch(WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, PROBE_PX, 0))
    # A window holds one to two pixels per pixel asked for; its first PROBE_PX are always of the slide.
    return float(np.median([sharpness_of(pixels[:PROBE_PX, :PROBE_PX]) for pixels in windows.pixels]))
