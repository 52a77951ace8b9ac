"""Plan of a generated cohort: its settings, and one manifest row per slide."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

import numpy as np

from service.cohort.splits import SPLITS, split_patients
from service.synthetic.clinical import MIN_CLINICAL_SIDE_PX, ClinicalSettings
from service.synthetic.layout import MAX_SIDE_PX, MIN_SIDE_PX, RADIUS_SHARES

NUM_CENTERS = 5
"""Number of laboratories, which differ in their stain."""
MAX_DECOYS = 16
"""Largest number of decoys; the tissue has no room for more."""


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Settings of a cohort; equal settings give equal bytes."""

    num_slides: int
    """Number of slides, 1 to 100,000."""
    side_px: int | None = None
    """Side of the slides at level 0, in pixels, 2,048 to 120,000; None, in the clinical world only: drawn per slide."""
    seed: int
    """Seed of all random numbers, 0 or more."""
    decoys: int = 3
    """Number of dark blobs of normal texture in a negative slide; a positive one has one less, and the lesion."""
    hint: float = 0.0
    """Colour difference of lesions at low power, 0 (none) to 1 (full)."""
    positive: float = 0.5
    """Share of the slides that have a lesion, 0 to 1."""
    strata: dict[str, float] = field(default_factory=lambda: {"macro": 1.0, "micro": 1.0, "itc": 0.0})
    """Weights of the strata of positive slides."""
    split: dict[str, float] = field(default_factory=lambda: {"train": 0.6, "val": 0.2, "test": 0.2})
    """Shares of the splits."""

    clinical: ClinicalSettings | None = None
    """Settings of the clinical world, which does not use `decoys` and `hint`; None: the plain world."""

    def __post_init__(self) -> None:
        if self.side_px is None and self.clinical is None:
            raise ValueError("side-px: must be given; only the clinical world draws the sides of its slides")
        bounds = {
            "num_slides": (1, 100_000),
            **({} if self.side_px is None else {"side_px": (self.min_side_px, MAX_SIDE_PX)}),
            "seed": (0, 2**63),
            "decoys": (0, MAX_DECOYS),
            "hint": (0, 1),
            "positive": (0, 1),
        }
        # The messages name the options of the command line.
        problems = [
            f"{name.replace('_', '-')} {getattr(self, name)}: must be {low} to {high}"
            for name, (low, high) in bounds.items()
            if not low <= getattr(self, name) <= high
        ]
        problems += _check_weights("strata", self.strata, tuple(RADIUS_SHARES))
        problems += _check_weights("split", self.split, SPLITS)
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def min_side_px(self) -> int:
        """Smallest side; below it, lesions of their clinical sizes have no room."""
        return MIN_SIDE_PX if self.clinical is None else MIN_CLINICAL_SIDE_PX

    def to_record(self) -> dict[str, Any]:
        """Return the settings as plain values, without those of a world that is not used."""
        record = asdict(self)
        if self.clinical is None:
            del record["clinical"]
        return record


@dataclass(frozen=True, kw_only=True)
class PlannedSlide:
    """One row of the manifest."""

    slide_id: str
    """Name of the slide."""
    uri: str
    """Path relative to the manifest."""
    patient_id: str
    """Name of the patient."""
    center: int
    """Number of the laboratory."""
    label: int
    """1 for a slide with a lesion, otherwise 0."""
    stratum: str
    """"negative", or the stratum of the lesion."""
    split: str
    """train, val or test."""


def plan_slides(settings: CohortSettings) -> list[PlannedSlide]:
    """Plan the rows of a cohort: strata by weight in random order, patients of one or two slides, splits by patient."""
    rng = np.random.default_rng([settings.seed, settings.num_slides])
    strata = _draw_strata(rng, settings)
    patients = _group_into_patients(strata)
    labels = [int(stratum != "negative") for stratum in strata]
    names = [f"patient_{patient:04d}" for patient in patients]
    splits = split_patients(names, labels, strata, settings.seed, settings.split)
    return [
        PlannedSlide(
            slide_id=f"slide_{k:04d}",
            uri=f"slides/slide_{k:04d}.tif",
            patient_id=names[k],
            center=patients[k] % NUM_CENTERS,
            label=labels[k],
            stratum=strata[k],
            split=splits[k],
        )
        for k in range(settings.num_slides)
    ]


def _draw_strata(rng: np.random.Generator, settings: CohortSettings) -> list[str]:
    """Draw the stratum of each slide. Numbers follow the weights; the rest goes to the largest remainders."""
    num_positive = round(settings.num_slides * settings.positive)
    exact = np.array(list(settings.strata.values())) / sum(settings.strata.values()) * num_positive
    numbers = np.floor(exact).astype(int)
    missing = num_positive - int(numbers.sum())
    # A stable sort decides between equal remainders in the same way on each machine.
    numbers[np.argsort(numbers - exact, kind="stable")[:missing]] += 1
    names = [*settings.strata, "negative"]
    return [str(s) for s in rng.permutation(np.repeat(names, [*numbers, settings.num_slides - num_positive]))]


def _group_into_patients(strata: list[str]) -> list[int]:
    """Return the number of each slide's patient: every second patient has two slides, both of one stratum."""
    patients = [0] * len(strata)
    num_patients = 0
    for name in sorted(set(strata)):
        slides = [k for k, stratum in enumerate(strata) if stratum == name]
        for place, k in enumerate(slides):
            patients[k] = num_patients + 2 * (place // 3) + min(place % 3, 1)
        num_patients = max([num_patients, *(patients[k] + 1 for k in slides)])
    return patients


def _check_weights(name: str, weights: dict[str, float], known: tuple[str, ...]) -> list[str]:
    problems = [f"{name} {key!r}: must be one of {', '.join(known)}" for key in weights if key not in known]
    if not (all(0 <= weight < inf for weight in weights.values()) and sum(weights.values()) > 0):
        problems.append(f"{name} {weights}: weights must be 0 or more, and at least one above 0")
    return problems
