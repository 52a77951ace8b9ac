"""Division of patients into splits: all slides of a patient together, strata distributed evenly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from service.cohort.splits import split_patients

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
WEIGHTS = {"negative": 0.64, "itc": 0.07, "micro": 0.12, "macro": 0.17}


def cohort(seed: int) -> tuple[list[str], list[int | None], list[str | None]]:
    """Return 60 patients of five slides each, with any mixture of strata, and 120 patients of one slide."""
    rng = np.random.default_rng(seed)
    patients = [f"p{k // 5}" for k in range(300)] + [f"single{k}" for k in range(120)]
    strata = rng.choice(list(WEIGHTS), len(patients), p=list(WEIGHTS.values())).tolist()
    return patients, [int(name != "negative") for name in strata], strata


@pytest.mark.parametrize("seed", range(3))
def test_each_split_gets_its_share_of_every_stratum_although_patients_mix_strata(seed: int) -> None:
    patients, labels, strata = cohort(seed)
    splits = split_patients(patients, labels, strata, seed, SHARES)
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients))
    counts, total = Counter(zip(strata, splits, strict=True)), Counter(strata)
    for stratum, count in total.items():
        for split, share in SHARES.items():
            assert counts[stratum, split] == pytest.approx(share * count, abs=2), (stratum, split)


def test_order_of_the_slides_does_not_matter() -> None:
    patients, labels, strata = cohort(0)
    forward = split_patients(patients, labels, strata, 0, SHARES)
    backward = split_patients(patients[::-1], labels[::-1], strata[::-1], 0, SHARES)
    assert forward == backward[::-1]
    assert forward != split_patients(patients, labels, strata, 1, SHARES)


def test_a_split_without_a_share_gets_nothing() -> None:
    splits = split_patients(*cohort(0), 0, {"train": 3, "val": 1, "test": 0})
    assert Counter(splits) == {"train": pytest.approx(315, abs=2), "val": pytest.approx(105, abs=2)}
