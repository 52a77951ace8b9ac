"""Dividing patients among splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

SPLITS = ("train", "val", "test")


def split_patients(
    patients: Sequence[str],
    labels: Sequence[int | None],
    strata: Sequence[str | None],
    seed: int,
    shares: Mapping[str, float],
) -> list[str]:
    """The split of each slide: all slides of a patient in one, strata and labels as even as patients allow.

    Patients are taken those with the most slides first, in random order among equals. One with several slides goes
    where they bring strata, labels and number nearest to what is wanted; single slides then fill the gaps, each where
    its stratum lacks most, then its label, then slides at all.

    Args:
        patients: patient of each slide.
        labels: label of each slide, None where unknown.
        strata: stratum of each slide, None where unknown.
        seed: same seed, same splits. The order of the slides does not matter.
        shares: share of each split; they are scaled to sum to 1.

    Returns:
        A key of `shares` for each slide.
    """
    slides: dict[str, list[tuple[str, str]]] = {}
    for patient, known_label, known_stratum in zip(patients, labels, strata, strict=True):
        slides.setdefault(patient, []).append((f"label {known_label}", f"stratum {known_stratum}"))
    kinds = {patient: Counter(kind for pair in found for kind in (*pair, "any")) for patient, found in slides.items()}
    total, shares = sum(kinds.values(), Counter()), {split: share for split, share in shares.items() if share > 0}
    wanted = {split: {k: n * share / sum(shares.values()) for k, n in total.items()} for split, share in shares.items()}
    lacking = {split: dict(numbers) for split, numbers in wanted.items()}
    names = sorted(slides)
    order = {name: place for place, name in enumerate(np.random.default_rng(seed).permutation(names).tolist())}
    given: dict[str, str] = {}
    for patient in sorted(names, key=lambda name: (-len(slides[name]), max(slides[name]), order[name])):
        needs = {split: _need(slides[patient], kinds[patient], lacking[split], wanted[split]) for split in shares}
        given[patient] = max(needs, key=needs.__getitem__)
        for kind, count in kinds[patient].items():
            lacking[given[patient]][kind] -= count
    return [given[patient] for patient in patients]


def _need(
    slides: Sequence[tuple[str, str]],
    kinds: Mapping[str, int],
    lacking: Mapping[str, float],
    wanted: Mapping[str, float],
) -> list[float]:
    """How much a split needs a patient; compared from the first number on. Rounded, so that ties are ties."""
    if len(slides) == 1:
        [(label, stratum)] = slides
        return [round(lacking[kind], 9) for kind in (stratum, label, "any")]
    # By how much the squared distances to what is wanted fall, each in parts of what is wanted.
    return [round(sum((2 * n * lacking[kind] - n * n) / wanted[kind] for kind, n in kinds.items()), 9)]
