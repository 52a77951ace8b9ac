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

    Patients are taken in random order, stratum by stratum, those with the most slides first; each goes where its
    stratum lacks most, then its label, then slides at all.

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
    total = sum(shares.values())
    kinds = Counter(kind for found in slides.values() for pair in found for kind in (*pair, "any"))
    lacking = {(split, kind): share / total * kinds[kind] for split, share in shares.items() for kind in kinds}
    names = sorted(slides)
    order = {name: place for place, name in enumerate(np.random.default_rng(seed).permutation(names).tolist())}
    given: dict[str, str] = {}
    for patient in sorted(names, key=lambda name: (max(slides[name]), -len(slides[name]), order[name])):
        label, stratum = max(slides[patient])  # the positive one where a patient has both
        needs = {
            split: [round(lacking[split, kind], 9) for kind in (stratum, label, "any")]
            for split, share in shares.items()
            if share > 0
        }
        given[patient] = max(needs, key=needs.__getitem__)
        for pair in slides[patient]:
            for kind in (*pair, "any"):
                lacking[given[patient], kind] -= 1
    return [given[patient] for patient in patients]
