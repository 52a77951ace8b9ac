"""Division of a cohort into splits, patient by patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

SPLITS = ("train", "val", "test")
"""Names of the splits."""


def split_patients(
    patients: Sequence[str],
    labels: Sequence[int | None],
    strata: Sequence[str | None],
    seed: int,
    shares: Mapping[str, float],
) -> list[str]:
    """Assign each patient to a split, so that strata and labels are distributed as evenly as patients allow.

    All slides of a patient are in one split, so that val and test measure patients that training has not used.
    Patients are assigned greedily, those with the most slides first, in random order among equals. A patient with
    several slides goes to the split whose numbers of strata, labels and slides it brings closest to their targets.
    Patients with one slide then fill the gaps: each goes to the split that lacks most of its stratum, then of its
    label, then of slides.

    Args:
        patients: patient of each slide.
        labels: label of each slide, None where unknown.
        strata: stratum of each slide, None where unknown.
        seed: seed of the order among equals; the order of the slides has no influence.
        shares: share of each split; they are scaled to sum to 1.

    Returns:
        A key of `shares` for each slide.
    """
    slides: dict[str, list[tuple[str, str]]] = {}
    for patient, known_label, known_stratum in zip(patients, labels, strata, strict=True):
        slides.setdefault(patient, []).append((f"label {known_label}", f"stratum {known_stratum}"))
    # Number of each patient's slides of each category: their label, their stratum, and "any".
    numbers = {
        patient: Counter(category for pair in pairs for category in (*pair, "any")) for patient, pairs in slides.items()
    }
    total, shares = sum(numbers.values(), Counter()), {split: share for split, share in shares.items() if share > 0}
    target = {split: {k: n * share / sum(shares.values()) for k, n in total.items()} for split, share in shares.items()}
    lacking = {split: dict(category_numbers) for split, category_numbers in target.items()}
    names = sorted(slides)
    order = {name: place for place, name in enumerate(np.random.default_rng(seed).permutation(names).tolist())}
    split_of: dict[str, str] = {}
    for patient in sorted(names, key=lambda name: (-len(slides[name]), max(slides[name]), order[name])):
        needs = {
            split: _compute_need(slides[patient], numbers[patient], lacking[split], target[split]) for split in shares
        }
        split_of[patient] = max(needs, key=needs.__getitem__)
        for category, count in numbers[patient].items():
            lacking[split_of[patient]][category] -= count
    return [split_of[patient] for patient in patients]


def _compute_need(
    slides: Sequence[tuple[str, str]],
    numbers: Mapping[str, int],
    lacking: Mapping[str, float],
    target: Mapping[str, float],
) -> list[float]:
    """Return how much a split needs a patient, as numbers that are compared from the first on.

    They are rounded, so that rounding errors do not decide between equal needs.
    """
    if len(slides) == 1:
        [(label, stratum)] = slides
        return [round(lacking[category], 9) for category in (stratum, label, "any")]
    # Decrease of the squared distances to the targets, each relative to its target.
    return [round(sum((2 * n * lacking[k] - n * n) / target[k] for k, n in numbers.items()), 9)]
