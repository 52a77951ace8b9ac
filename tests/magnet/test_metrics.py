"""The area under the ROC curve compared with scikit-learn, closed forms and its definition."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from magnet.metrics import auroc, auroc_by_stratum, auroc_interval


def binormal(rng: np.random.Generator, num_positive: int, num_negative: int, shift: float):
    labels = np.repeat([1, 0], [num_positive, num_negative])
    return labels, rng.normal(size=len(labels)) + shift * labels


class TestAuroc:
    @pytest.mark.parametrize("num_values", [2, 5, 10_000])
    def test_agrees_with_scikit_learn_with_and_without_ties(self, num_values: int) -> None:
        rng = np.random.default_rng(0)
        labels, scores = rng.integers(0, 2, 200), rng.integers(0, num_values, 200)
        assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)

    def test_counts_pairs_and_half_of_the_ties(self) -> None:
        """Positives 3 and 1 against negatives 2 and 1: higher, higher, lower, equal."""
        assert auroc([1, 1, 0, 0], [3, 1, 2, 1]) == 2.5 / 4

    def test_matches_the_closed_form_of_binormal_scores(self) -> None:
        labels, scores = binormal(np.random.default_rng(1), 20_000, 20_000, shift=1.0)
        assert auroc(labels, scores) == pytest.approx(NormalDist().cdf(1 / np.sqrt(2)), abs=0.01)

    def test_constant_scores_give_one_half_in_any_order(self) -> None:
        assert auroc([0, 0, 1, 1], [0.3] * 4) == 0.5
        assert auroc([1, 1, 0, 0], [0.3] * 4) == 0.5

    def test_reversed_scores_give_one_minus_the_area(self) -> None:
        labels, scores = binormal(np.random.default_rng(2), 30, 40, shift=1.0)
        assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))

    @pytest.mark.parametrize(
        ("labels", "scores", "message"),
        [
            ([1, 1], [0.1, 0.2], "no label is 0"),
            ([0, 0], [0.1, 0.2], "no label is 1"),
            ([0, 2], [0.1, 0.2], r"\[2\]: want 0 or 1"),
            ([0, 1], [0.1, np.nan], "1 scores are not finite"),
            ([0, 1], [0.1], "one row of each"),
        ],
    )
    def test_rejects_invalid_labels_and_scores(self, labels: list[int], scores: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            auroc(labels, scores)


class TestInterval:
    def test_covers_the_true_area_at_the_given_confidence(self) -> None:
        """Binormal, area 0.86, 20 against 25 slides, 1,000 draws: 95 % within three standard errors."""
        rng, truth, num_covered = np.random.default_rng(3), NormalDist().cdf(1.5 / np.sqrt(2)), 0
        for _ in range(1000):
            low, high = auroc_interval(*binormal(rng, 20, 25, shift=1.5))
            num_covered += low <= truth <= high
        assert 0.93 <= num_covered / 1000 <= 0.985

    def test_has_the_width_of_hanley_and_mcneil(self) -> None:
        """The paper's test set: 22 macro against 80 negatives at about .95 spans .89 to 1.0."""
        labels, scores = binormal(np.random.default_rng(6), 22, 80, shift=2.33)
        low, high = auroc_interval(labels, scores)
        assert auroc(labels, scores) == pytest.approx(0.95, abs=0.02)
        assert 0.08 < high - low < 0.20

    @pytest.mark.parametrize(("num_positive", "num_negative"), [(1, 1), (3, 3), (10, 10), (50, 100), (200, 30)])
    def test_perfect_scores_have_the_uncertainty_of_the_smaller_class(
        self, num_positive: int, num_negative: int
    ) -> None:
        """Clopper and Pearson's bound for n hits in n trials is 0.025 ** (1 / n)."""
        labels = np.repeat([1, 0], [num_positive, num_negative])
        low, high = auroc_interval(labels, labels)
        assert high == 1
        assert low == pytest.approx(0.025 ** (1 / min(num_positive, num_negative)), abs=0.1)
        assert auroc_interval(labels, -labels) == (0, pytest.approx(1 - low))

    def test_narrows_with_more_slides_and_widens_with_more_confidence(self) -> None:
        def width(num: int, confidence: float) -> float:
            low, high = auroc_interval(*binormal(np.random.default_rng(4), num, num, 1.0), confidence=confidence)
            return high - low

        assert width(2000, 0.95) < width(200, 0.95) < width(20, 0.95)
        assert width(50, 0.5) < width(50, 0.95) < width(50, 0.99)

    def test_contains_the_area(self) -> None:
        rng = np.random.default_rng(5)
        for _ in range(100):
            labels, scores = binormal(rng, 3, 4, shift=1.0)
            low, high = auroc_interval(labels, scores)
            assert 0 <= low <= auroc(labels, scores) <= high <= 1

    def test_rejects_a_confidence_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="confidence 95"):
            auroc_interval([0, 1], [0, 1], confidence=95)


class TestByStratum:
    @pytest.fixture
    def scored(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rng = np.random.default_rng(7)
        strata = ["negative"] * 40 + ["macro"] * 11 + ["micro"] * 9 + ["itc"] * 18
        labels = np.array([int(s != "negative") for s in strata])
        shift = np.array([{"negative": 0, "macro": 2.5, "micro": 1, "itc": 0.3}[s] for s in strata])
        order = rng.permutation(len(strata))
        return labels[order], (rng.normal(size=len(strata)) + shift)[order], [strata[k] for k in order]

    def test_the_area_of_a_union_is_the_weighted_mean_of_its_groups(self, scored: tuple) -> None:
        areas = auroc_by_stratum(*scored)
        assert list(areas) == ["itc", "macro", "micro", "macro+micro", "all"]
        macro, micro, itc = (areas[name].auroc for name in ("macro", "micro", "itc"))
        assert areas["macro+micro"].auroc == pytest.approx((11 * macro + 9 * micro) / 20, abs=1e-12)
        assert areas["all"].auroc == pytest.approx((11 * macro + 9 * micro + 18 * itc) / 38, abs=1e-12)

    def test_every_group_is_compared_with_all_negatives(self, scored: tuple) -> None:
        labels, scores, strata = scored
        areas = auroc_by_stratum(labels, scores, strata)
        assert {name: group.num_positive for name, group in areas.items()} == {
            "itc": 18,
            "macro": 11,
            "micro": 9,
            "macro+micro": 20,
            "all": 38,
        }
        assert {group.num_negative for group in areas.values()} == {40}
        members = np.isin(strata, ["negative", "micro"])
        assert areas["micro"].auroc == pytest.approx(roc_auc_score(labels[members], scores[members]))
        assert areas["all"].auroc == pytest.approx(roc_auc_score(labels, scores))
        assert all(group.low <= group.auroc <= group.high for group in areas.values())

    def test_without_strata_there_is_one_group(self) -> None:
        areas = auroc_by_stratum([0, 1, 1], [0.1, 0.2, 0.0], [None, None, None])
        assert list(areas) == ["all"]
        assert areas["all"].auroc == 0.5

    def test_one_of_macro_and_micro_is_enough_for_their_union(self) -> None:
        areas = auroc_by_stratum([0, 1], [0.1, 0.2], ["negative", "micro"])
        assert list(areas) == ["micro", "macro+micro", "all"]

    def test_rejects_a_wrong_number_of_strata(self) -> None:
        with pytest.raises(ValueError, match="1 strata for 2 labels"):
            auroc_by_stratum([0, 1], [0, 1], ["macro"])
