"""Scores of labelled slides, their threshold and metrics; the same with any number of workers."""

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


def make_evaluation(
    labels: Sequence[int], probabilities: Sequence[float], strata: Sequence[str] | None = None
) -> Evaluation:
    names = strata or ["macro" if label else "negative" for label in labels]
    return Evaluation(np.array(labels), np.array(probabilities, dtype=np.float64), list(names))


@given(SCORES)
def test_the_threshold_separates_the_classes_as_well_as_any_other(scores: list[tuple[int, int]]) -> None:
    labels, probabilities = [label for label, _ in scores], [p / 20 for _, p in scores]
    evaluation = make_evaluation(labels, probabilities)
    if not evaluation.both_classes:
        assert evaluation.threshold == 0.5
        return
    positive, called = np.array(labels) == 1, np.array(probabilities) >= evaluation.threshold
    youden = called[positive].mean() - called[~positive].mean()
    false_rate, true_rate, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    if len(set(probabilities)) > 1:
        cuts = [
            t - f for f, t in zip(false_rate, true_rate, strict=True) if 0 < f + t < 2
        ]  # not those that call no slide positive, or all
        assert youden == pytest.approx(max(cuts))


def test_the_threshold_is_in_the_middle_between_two_scores() -> None:
    assert make_evaluation([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]).threshold == pytest.approx(0.4)
    assert make_evaluation([0, 1], [0.3, 0.3]).threshold == pytest.approx(0.3)


def test_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    probabilities = np.clip(labels * 0.2 + rng.uniform(0, 0.8, 60), 0.01, 0.99)
    strata = [("negative" if not label else ("macro", "micro")[i % 2]) for i, label in enumerate(labels)]
    metrics = make_evaluation(labels.tolist(), probabilities.tolist(), strata).metrics("val")
    assert metrics["val/loss"] == pytest.approx(log_loss(labels, probabilities))
    assert metrics["val/auroc"] == pytest.approx(roc_auc_score(labels, probabilities))
    for stratum in ("macro", "micro"):
        in_group = np.array([s in ("negative", stratum) for s in strata])
        expected = roc_auc_score(labels[in_group], probabilities[in_group])
        assert metrics[f"val/auroc_{stratum}"] == pytest.approx(expected)
    for name in ("val/auroc", "val/auroc_macro", "val/auroc_micro"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert all("+" not in name for name in metrics)  # MLflow does not accept it


def test_models_are_selected_by_auroc_and_then_by_loss() -> None:
    sharp, blunt = make_evaluation([0, 1], [0.1, 0.9]), make_evaluation([0, 1], [0.4, 0.6])
    wrong = make_evaluation([0, 1], [0.51, 0.49])
    selection = [evaluation.metrics("val")["val/selection"] for evaluation in (sharp, blunt, wrong)]
    assert selection[0] > selection[1] > selection[2]
    # a smaller loss never outweighs a better AUROC, even one that differs by a single pair of slides
    labels, num = [0] * 50 + [1] * 50, 100
    perfect = make_evaluation(labels, np.linspace(0.999, 1.0, num).tolist())  # in perfect order, with a large loss
    almost = np.linspace(0, 1, num)
    almost[[49, 50]] = almost[[50, 49]]
    assert perfect.metrics("v")["v/auroc"] > make_evaluation(labels, almost.tolist()).metrics("v")["v/auroc"]


def test_slides_of_one_class_have_a_loss_and_no_auroc() -> None:
    metrics = make_evaluation([1, 1], [0.5, 0.25]).metrics("val")
    assert metrics == {
        "val/loss": pytest.approx((math.log(2) + math.log(4)) / 2),
        "val/selection": pytest.approx(-(math.log(2) + math.log(4)) / 2),
        "val/bytes_per_slide": 0.0,
    }


def test_no_slides_have_no_metrics() -> None:
    assert make_evaluation([], []).metrics("val") == {}
    assert math.isnan(make_evaluation([], []).loss)


def test_a_confident_mistake_has_a_large_finite_loss() -> None:
    assert make_evaluation([1], [0.0]).loss == pytest.approx(-math.log(1e-7))


class FormulaReader:
    """Reads slides that are formulas, by the number in their URI; slide n takes 100 n bytes."""

    def batch(self, uris: Sequence[str]) -> Any:
        rng = np.random.default_rng(int(uris[0]))
        colours = [waves(rng.uniform(-2, 2, (3, 2)).tolist(), rng.uniform(0, 6, 3).tolist())]
        sides = [4096.0]
        fetch = staticmethod(formula_fetch(colours, sides))
        counters = [ReadCounters(bytes=100 * int(uris[0]))]
        return type("Batch", (), {"side_px": np.array(sides), "fetch": fetch, "counters": counters})


def make_network() -> MagNet:
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


def make_slides(num: int) -> list[Slide]:
    return [
        Slide(row=n, slide_id=f"s{n}", uri=str(n), patient_id="", label=n % 2, stratum=("negative", "itc")[n % 2])
        for n in range(num)
    ]


def test_each_slide_has_the_score_of_a_zoom_into_it_alone() -> None:
    model, reader = make_network(), FormulaReader()
    model.train()
    evaluation = evaluate(model, make_slides(7), reader, "fp32")  # type: ignore[arg-type]  # a fake with what evaluate uses
    assert not model.training
    expected = []
    with torch.inference_mode():
        for slide in make_slides(7):
            batch = reader.batch([slide.uri])
            logit = float(drive(model.zoom(batch.side_px), batch.fetch).logit_B)
            expected.append((slide.label, 1 / (1 + math.exp(-logit)), slide.stratum))
    for (label, probability, stratum), row in zip(
        zip(evaluation.labels, evaluation.probabilities, evaluation.strata, strict=True), sorted(expected), strict=True
    ):
        assert (label, stratum) == (row[0], row[2])
        assert probability == pytest.approx(row[1], abs=1e-6)
    assert evaluation.metrics("val")["val/bytes_per_slide"] == 100 * (0 + 1 + 2 + 3 + 4 + 5 + 6) / 7


def test_scores_do_not_depend_on_how_slides_are_shared_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reader = make_network(), FormulaReader()
    alone = evaluate(model, make_slides(6), reader, "fp32")  # type: ignore[arg-type]
    shares: list[Any] = []

    def gather(values: list[Any], value: Any) -> None:
        shares.append(value)
        values[:] = shares if len(shares) == 2 else [value, ([], {})]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    evaluate(model, make_slides(6)[1::2], reader, "fp32", num_workers=2)  # type: ignore[arg-type]
    both = evaluate(model, make_slides(6)[0::2], reader, "fp32", num_workers=2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(both.labels, alone.labels)
    np.testing.assert_array_equal(both.probabilities, alone.probabilities)
    assert both.strata == alone.strata


def test_an_error_that_is_not_about_a_slide_stops_the_evaluation() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        evaluate(
            make_network(),
            [*make_slides(2), Slide(row=9, slide_id="x", uri="x", patient_id="")],
            FormulaReader(),
            "fp32",
        )  # type: ignore[arg-type]
