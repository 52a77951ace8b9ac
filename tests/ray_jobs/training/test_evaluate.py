"""Scores of labelled slides and what is made of them: threshold, metrics, the same on any number of workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.windows import drive
from magnet.zoom import MagNet
from ray_jobs.training.evaluate import Evaluation, evaluate
from service.cohort.manifest import Slide
from service.storage.counters import ReadCounters

SCORES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40)


def evaluation(
    labels: Sequence[int], probabilities: Sequence[float], strata: Sequence[str] | None = None
) -> Evaluation:
    names = strata or ["macro" if label else "negative" for label in labels]
    return Evaluation(np.array(labels), np.array(probabilities, dtype=np.float64), list(names))


@given(SCORES)
def test_the_threshold_separates_as_well_as_any_could(scores: list[tuple[int, int]]) -> None:
    labels, probabilities = [label for label, _ in scores], [p / 20 for _, p in scores]
    found = evaluation(labels, probabilities)
    if not found.both_classes:
        assert found.threshold == 0.5
        return
    positive, called = np.array(labels) == 1, np.array(probabilities) >= found.threshold
    youden = called[positive].mean() - called[~positive].mean()
    false_rate, true_rate, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    if len(set(probabilities)) > 1:
        cuts = [t - f for f, t in zip(false_rate, true_rate, strict=True) if 0 < f + t < 2]  # neither none nor all
        assert youden == pytest.approx(max(cuts))


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    assert evaluation([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]).threshold == pytest.approx(0.4)
    assert evaluation([0, 1], [0.3, 0.3]).threshold == pytest.approx(0.3)


def test_metrics_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    probabilities = np.clip(labels * 0.2 + rng.uniform(0, 0.8, 60), 0.01, 0.99)
    strata = [("negative" if not label else ("macro", "micro")[i % 2]) for i, label in enumerate(labels)]
    metrics = evaluation(labels.tolist(), probabilities.tolist(), strata).metrics("val")
    assert metrics["val/loss"] == pytest.approx(log_loss(labels, probabilities))
    assert metrics["val/auroc"] == pytest.approx(roc_auc_score(labels, probabilities))
    for stratum in ("macro", "micro"):
        chosen = np.array([s in ("negative", stratum) for s in strata])
        expected = roc_auc_score(labels[chosen], probabilities[chosen])
        assert metrics[f"val/auroc_{stratum}"] == pytest.approx(expected)
    for name in ("val/auroc", "val/auroc_macro", "val/auroc_micro"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert all("+" not in name for name in metrics)  # MLflow takes none


def test_models_are_chosen_by_auroc_then_by_loss() -> None:
    sharp, blunt = evaluation([0, 1], [0.1, 0.9]), evaluation([0, 1], [0.4, 0.6])
    wrong = evaluation([0, 1], [0.51, 0.49])
    selection = [one.metrics("val")["val/selection"] for one in (sharp, blunt, wrong)]
    assert selection[0] > selection[1] > selection[2]
    # a better loss never outweighs a better order of as many slides as there are
    labels, num = [0] * 50 + [1] * 50, 100
    first = evaluation(labels, np.linspace(0.999, 1.0, num).tolist())  # a perfect order, a terrible loss
    almost = np.linspace(0, 1, num)
    almost[[49, 50]] = almost[[50, 49]]
    assert first.metrics("v")["v/auroc"] > evaluation(labels, almost.tolist()).metrics("v")["v/auroc"]


def test_one_class_has_a_loss_and_no_auroc() -> None:
    metrics = evaluation([1, 1], [0.5, 0.25]).metrics("val")
    assert metrics == {
        "val/loss": pytest.approx((math.log(2) + math.log(4)) / 2),
        "val/selection": pytest.approx(-(math.log(2) + math.log(4)) / 2),
        "val/bytes_per_slide": 0.0,
    }


def test_no_slides_have_no_metrics() -> None:
    assert evaluation([], []).metrics("val") == {}
    assert math.isnan(evaluation([], []).loss)


def test_a_sure_mistake_costs_much_and_not_infinitely_much() -> None:
    assert evaluation([1], [0.0]).loss == pytest.approx(-math.log(1e-7))


class Slides:
    """A reader whose slides are formulas, by the number in their URI; slide n takes 100 n bytes."""

    def batch(self, uris: Sequence[str]) -> Any:
        rng = np.random.default_rng(int(uris[0]))
        colours = [waves(rng.uniform(-2, 2, (3, 2)).tolist(), rng.uniform(0, 6, 3).tolist())]
        sides = [4096.0]
        fetch = staticmethod(formula_fetch(colours, sides))
        counters = [ReadCounters(bytes=100 * int(uris[0]))]
        return type("Batch", (), {"side_px": np.array(sides), "fetch": fetch, "counters": counters})


def network() -> MagNet:
    torch.manual_seed(0)
    return MagNet(
        ModelConfig(
            zoom=ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32, grey_tolerance=None),
            locator=LocatorConfig(channels=2),
            classifier=ClassifierConfig(encoder="test_resnet", hidden=8),
            auxiliary=AuxiliaryConfig(encoder=None),
        ),
        to_be_loaded=True,
    )


def slides(num: int) -> list[Slide]:
    return [
        Slide(row=n, slide_id=f"s{n}", uri=str(n), patient_id="", label=n % 2, stratum=("negative", "itc")[n % 2])
        for n in range(num)
    ]


def test_each_slide_is_scored_once_as_by_itself() -> None:
    model, reader = network(), Slides()
    model.train()
    found = evaluate(model, slides(7), reader, "fp32")  # type: ignore[arg-type]  # all that it uses of a reader
    assert not model.training
    expected = []
    with torch.inference_mode():
        for slide in slides(7):
            batch = reader.batch([slide.uri])
            logit = float(drive(model.zoom(batch.side_px), batch.fetch).logit_B)
            expected.append((slide.label, 1 / (1 + math.exp(-logit)), slide.stratum))
    for (label, probability, stratum), row in zip(
        zip(found.labels, found.probabilities, found.strata, strict=True), sorted(expected), strict=True
    ):
        assert (label, stratum) == (row[0], row[2])
        assert probability == pytest.approx(row[1], abs=1e-6)
    assert found.metrics("val")["val/bytes_per_slide"] == 100 * (0 + 1 + 2 + 3 + 4 + 5 + 6) / 7


def test_the_order_of_slides_and_who_has_them_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reader = network(), Slides()
    alone = evaluate(model, slides(6), reader, "fp32")  # type: ignore[arg-type]
    shares: list[Any] = []

    def gather(everyone: list[Any], mine: Any) -> None:
        shares.append(mine)
        everyone[:] = shares if len(shares) == 2 else [mine, ([], {})]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    evaluate(model, slides(6)[1::2], reader, "fp32", num_workers=2)  # type: ignore[arg-type]
    both = evaluate(model, slides(6)[0::2], reader, "fp32", num_workers=2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(both.labels, alone.labels)
    np.testing.assert_array_equal(both.probabilities, alone.probabilities)
    assert both.strata == alone.strata


def test_what_is_no_fault_of_a_slide_stops_an_evaluation() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        evaluate(network(), [*slides(2), Slide(row=9, slide_id="x", uri="x", patient_id="")], Slides(), "fp32")  # type: ignore[arg-type]
