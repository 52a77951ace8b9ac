"""The clinical world: slides of real size, lesions of clinical size, evidence that only cells show.

Lengths are micrometres or millimetres of tissue, not shares of the slide. A candidate (lesion or decoy) has a size of
the clinical definitions. A lesion differs from a decoy only in the chromatin of its nuclei, whose wavelengths are
shorter than 3 um: at 2 um/px and coarser the two look the same.

Source of the sizes: Bandi et al. 2019 (CAMELYON17): macrometastases are larger than 2 mm, micrometastases .2 to 2 mm,
isolated tumour cells clusters below .2 mm or 200 cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.synthetic.layout import CAPSULE_SHARE, MPP, Blob, Candidate, Layout, draw_pieces, draw_waves
from service.synthetic.nuclei import draw_nuclei
from service.synthetic.textures import Stain, draw_noise, equalise_blocks, tissue_rgb
from service.synthetic.tiff import TILE_PX

Floats = NDArray[np.float32]

SIDES_MM = (15.0, 30.0)
"""Smallest and largest side of a slide in millimetres."""

MIN_CLINICAL_SIDE_PX = 40_000
"""Smallest side that can be asked for: 10 mm."""

DIAMETERS_MM = {"macro": (2.0, 4.0), "micro": (0.2, 2.0), "itc": (0.05, 0.16)}
"""Smallest and largest diameter of a candidate; drawn uniformly in the logarithm."""

CHROMATIN_UM = (2.0, 2.5)
"""Wavelengths of the chromatin that marks a lesion. Pixels of 2 um average each of its waves away."""

CHROMATIN_LEVELS = 34.0
"""Spread of the chromatin in grey levels."""

GAP_UM = 60.0
"""Least distance between two candidates."""

_PEN_RGB = np.array([[28.0, 60.0, 150.0], [30.0, 110.0, 60.0], [25.0, 25.0, 30.0]])
"""Blue, green and black ink on glass."""

_SIDE = 2
"""Number of the random stream of a slide that its side is drawn from."""

SHARES = {"pen": 0.15, "fold": 0.25, "blur": 0.25}
"""Share of the slides that have each artefact."""


@dataclass(frozen=True, kw_only=True)
class ClinicalSettings:
    """Settings of the clinical world."""

    mean_candidates: float = 12.0
    """Mean number of candidates of a slide (Poisson distribution), 1 to 40; every slide has at least one."""
    contrast: float = 25.0
    """Grey levels by which candidates are darker than the tissue around them, 0 to 60; 0: they cannot be seen."""

    def __post_init__(self) -> None:
        for name, low, high in (("mean_candidates", 1, 40), ("contrast", 0, 60)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be {low} to {high}")


@dataclass(frozen=True)
class Scanner:
    """How a scanner shows colours: a gain per channel and a gamma."""

    gain: tuple[float, float, float]
    gamma: float

    @classmethod
    def draw(cls, rng: np.random.Generator, center: int) -> Scanner:
        """Draw the scanner of a slide: that of its center (the same in all cohorts), with a small drift."""
        habit = np.random.default_rng([center, 11])
        red, green, blue = (1 - np.abs(habit.normal(0, 0.02, 3)) - np.abs(rng.normal(0, 0.005, 3))).tolist()
        return cls((red, green, blue), float(np.exp(habit.normal(0, 0.08) + rng.normal(0, 0.02))))

    def show(self, rgb: Floats) -> Floats:
        """RGB as this scanner stores it, float32, same shape."""
        light = np.clip(rgb, 0, 255) / np.float32(255)
        return np.float32(255) * light ** np.float32(self.gamma) * np.array(self.gain, np.float32)


def draw_side_px(seed: tuple[int, int]) -> int:
    """Draw the side of a slide in level-0 pixels, a multiple of a tile.

    Args:
        seed: seed of the cohort and number of the slide.
    """
    rng = np.random.default_rng([*seed, _SIDE])
    return round(float(rng.uniform(*SIDES_MM)) * 1000 / MPP / TILE_PX) * TILE_PX


def draw_clinical_layout(
    rng: np.random.Generator, side_px: int, stratum: str, mean_candidates: float, strata: dict[str, float]
) -> Layout:
    """Draw the layout of a slide.

    Args:
        rng: source of all randomness.
        side_px: side of the slide in level-0 pixels.
        stratum: "negative", or the stratum of the lesion.
        mean_candidates: mean of the Poisson distribution of the number of candidates; every slide has at least one. A
            positive slide has one decoy less, so that the number of candidates carries no information.
        strata: weights by which the sizes of decoys are drawn, the same as those of the lesions of the cohort.

    Returns:
        Pieces of tissue that hold all candidates without overlap. Candidates are placed by size, the lesion among them.
    """
    has_lesion = stratum != "negative"
    num = max(1, int(rng.poisson(mean_candidates)))
    weights = np.array(list(strata.values())) / sum(strata.values())
    sizes = [str(s) for s in rng.choice(list(strata), size=num - has_lesion, p=weights)]
    wanted = [(size, False) for size in sizes] + ([(stratum, True)] if has_lesion else [])
    while True:  # all is drawn again where a candidate finds no room: it must not shrink below the size of its stratum
        drawn = [(_draw_radius_px(rng, size), size, is_lesion) for size, is_lesion in wanted]
        drawn.sort(key=lambda candidate: -candidate[0])
        layout = Layout(side_px, draw_pieces(rng, side_px), ())
        for radius_px, size, is_lesion in drawn:
            blob = _place(rng, layout, radius_px)
            if blob is None:
                break
            layout = replace(layout, candidates=(*layout.candidates, Candidate(blob, size, is_lesion)))
        else:
            return layout


def draw_clinical_textures(
    rng: np.random.Generator, stain: Stain, scanner: Scanner, contrast: float
) -> dict[str, NDArray[np.uint8]]:
    """Draw the textures of one slide.

    Args:
        rng: source of all randomness.
        stain: strength of the dyes.
        scanner: colours of the scanner.
        contrast: grey levels by which candidates are darker than lymphoid tissue; 0: not at all.

    Returns:
        By name, uint8 RGB of shape (variants, 256, 256, 3).
    """
    lymph, nuclei = _draw_lymphoid(rng, stain)
    stroma = equalise_blocks(tissue_rgb(rng, stain, "stroma", draw_nuclei(rng, "stroma", 3)))
    decoy = lymph - np.float32(contrast)
    tiles = {
        "stroma": stroma,
        "lymph": lymph,
        "decoy": decoy,
        "lesion": decoy + _draw_chromatin(rng, nuclei),
        "glass": 243.0 + rng.normal(0, 1.2, (1, TILE_PX, TILE_PX, 1)).astype(np.float32).repeat(3, axis=-1),
        "fold": np.clip(lymph, 0, 255) ** 2 / np.float32(255),  # light passes through the tissue twice
        "blur": _blur(lymph, wavelength_px=40),
        "pen": np.broadcast_to(_PEN_RGB[rng.integers(len(_PEN_RGB))].astype(np.float32), (1, TILE_PX, TILE_PX, 3)),
    }
    return {
        name: np.clip(scanner.show(tile) + np.float32(0.5), 0, 255).astype(np.uint8) for name, tile in tiles.items()
    }


def draw_artefacts(rng: np.random.Generator, layout: Layout) -> list[tuple[str, Blob]]:
    """Draw pen marks, folds and regions out of focus, as textures with outlines, in the order of painting."""
    side, artefacts = layout.side_px, []
    for name, share in SHARES.items():
        if rng.random() >= share:
            continue
        piece = layout.pieces[rng.integers(len(layout.pieces))]
        angle = rng.uniform(0, 2 * np.pi)
        reach = piece.reach * (1.05 if name == "pen" else rng.uniform(0.2, 0.7))
        x, y = piece.x + reach * np.cos(angle), piece.y + reach * np.sin(angle)
        radius = {"pen": 0.015, "fold": 0.012, "blur": 0.03}[name] * side * rng.uniform(0.7, 1.3)
        elongation = 0.1 if name == "blur" else 0.9
        artefacts.append((name, Blob(float(x), float(y), float(radius), draw_waves(rng, elongation, roughness=0.05))))
    return artefacts


def _draw_radius_px(rng: np.random.Generator, size: str) -> float:
    low, high = np.log(DIAMETERS_MM[size])
    return float(np.exp(rng.uniform(low, high))) * 1000 / MPP / 2


def _place(rng: np.random.Generator, layout: Layout, radius_px: float) -> Blob | None:
    """Return a candidate of this size where the tissue leaves room for it; None: it leaves none."""
    blob = Blob(0.0, 0.0, radius_px, draw_waves(rng, elongation=rng.uniform(0.05, 0.15), roughness=0.10))
    bounds = np.array([(p.x - p.reach, p.y - p.reach, p.x + p.reach, p.y + p.reach) for p in layout.pieces])
    x, y = rng.uniform(bounds[:, :2].min(0), bounds[:, 2:].max(0), (4000, 2)).T
    room = layout.tissue_depth(x, y) - CAPSULE_SHARE * layout.side_px
    for other in layout.candidates:
        room = np.minimum(room, np.hypot(x - other.blob.x, y - other.blob.y) - other.blob.reach)
    fits = np.flatnonzero(room > blob.reach + GAP_UM / MPP)
    return replace(blob, x=float(x[fits[0]]), y=float(y[fits[0]])) if len(fits) else None


def _draw_lymphoid(rng: np.random.Generator, stain: Stain) -> tuple[Floats, Floats]:
    nuclei = draw_nuclei(rng, "lymph", 6)
    return equalise_blocks(tissue_rgb(rng, stain, "lymph", nuclei)), nuclei


def _draw_chromatin(rng: np.random.Generator, nuclei: Floats) -> Floats:
    """Coarse chromatin inside nuclei, RGB differences, float32 (variants, 256, 256, 3), without any longer wave.

    All variants share the waves, so that nuclei that cross the border of a tile fit the next one.
    """
    low_px, high_px = (length / MPP for length in CHROMATIN_UM)
    waves = draw_noise(rng, low_px, high_px)
    pattern = _keep_wavelengths(np.clip(1.5 * nuclei, 0, 1) * waves, 0.85 * low_px, high_px + 0.2)
    return np.float32(CHROMATIN_LEVELS) * pattern[..., None] * np.array([1.0, 1.1, 0.7], np.float32)


def _keep_wavelengths(image: Floats, shortest_px: float, longest_px: float) -> Floats:
    """Keep these wavelengths of periodic images (..., 256, 256)."""
    frequency = np.hypot(np.fft.fftfreq(TILE_PX)[:, None], np.fft.rfftfreq(TILE_PX))
    keep = (frequency >= 1 / longest_px) & (frequency <= 1 / shortest_px)
    return np.fft.irfft2(np.fft.rfft2(image) * keep, (TILE_PX, TILE_PX)).astype(np.float32)


def _blur(tiles: Floats, wavelength_px: float) -> Floats:
    """Remove wavelengths shorter than this from periodic tiles (variants, 256, 256, 3)."""
    channels = np.moveaxis(tiles, -1, 0)
    return np.ascontiguousarray(np.moveaxis(_keep_wavelengths(channels, wavelength_px, np.inf), 0, -1))
