"""One optimizer step: the same on one worker and on two, the same for the same seed, none where there is no number."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet.presets import PRESETS
from ray_jobs.training.learner import Learner, NotFiniteError

WORKER = Path(__file__).with_name("learner_worker.py")
_spec = importlib.util.spec_from_file_location("learner_worker", WORKER)
assert _spec is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)  # type: ignore[union-attr]  # a file has a loader

EACH_PRESET = pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.slow] if name == "paper" else []) for name in sorted(PRESETS)]
)
"""The paper's preset has the larger network of the two."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def train(learner: Learner, pool: ThreadPoolExecutor, first: int, last: int) -> list[float]:
    """Losses of steps `first` to `last` - 1."""
    return [
        learner.step(k, [worker.micro_batch(k, i) for i in range(worker.MICRO_BATCHES)], pool)["loss"]
        for k in range(first, last)
    ]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """What one worker left in this process, and what each of two left in theirs."""
    folder = tmp_path_factory.mktemp("group")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(folder / "store"), str(out)],
            env=environment,
            cwd=WORKER.parents[3],
        )
        for rank, out in enumerate(outs)
    ]
    try:
        alone = {preset: worker.steps(preset, 0, 1) for preset in sorted(PRESETS)}
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return alone, [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.slow
@EACH_PRESET
def test_losses_of_two_workers_add_up_to_those_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [one[preset] for one in group[1]]
    for step in range(worker.NUM_STEPS):
        for name, value in alone[f"sums {step}"].items():
            each = [one[f"sums {step}"][name] for one in both]
            if "norm" in name:
                assert each == pytest.approx([value] * 2, rel=1e-3), name
            else:
                assert sum(each) == pytest.approx(value, rel=1e-5, abs=1e-5), name
        assert [one[f"sums {step}"]["slides"] for one in both] == [4, 2]


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_gradients_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [one[preset] for one in group[1]]
    largest = max(float(gradient.abs().max()) for gradient in alone["gradients"][0].values())
    assert largest > 0.01
    for one in both:
        assert one["gradients"][0].keys() == alone["gradients"][0].keys()
        for name, expected in alone["gradients"][0].items():
            torch.testing.assert_close(one["gradients"][0][name], expected, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_same_weights_and_those_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [one[preset] for one in group[1]]
    for step in range(worker.NUM_STEPS):
        for name, weight in both[0][f"weights {step}"].items():
            assert torch.equal(weight, both[1][f"weights {step}"][name])
    for name, expected in alone["weights 0"].items():
        # Adam's first step is the gradient's sign: what is zero but for rounding may go either way.
        sure = alone["gradients"][0][name].abs() > 1e-4
        torch.testing.assert_close(both[0]["weights 0"][name][sure], expected[sure], rtol=1e-4, atol=1e-6, msg=name)
    assert both[0]["counts"] == both[1]["counts"] == alone["counts"]


@pytest.mark.slow
def test_two_workers_calibrate_on_the_negative_slides_of_both(group: Any) -> None:
    alone, both = group[0]["evidence"], [one["evidence"] for one in group[1]]
    assert math.isfinite(alone["threshold"])
    assert [float(one["threshold"]) for one in both] == pytest.approx([float(alone["threshold"])] * 2, abs=1e-3)


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_running_statistics_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [one[preset] for one in group[1]]
    assert any(name.endswith("running_var") for name in alone["buffers"])
    for name, expected in alone["buffers"].items():
        assert torch.equal(both[0]["buffers"][name], both[1]["buffers"][name]), name
        torch.testing.assert_close(both[0]["buffers"][name], expected, rtol=1e-4, atol=1e-6, msg=name)


# -------------------------------------------------------------------------------------------------------- one process


@EACH_PRESET
def test_same_seed_same_losses_and_weights(preset: str, pool: ThreadPoolExecutor) -> None:
    first, again, other = (worker.learner(preset, seed=seed) for seed in (1, 1, 2))
    losses = train(first, pool, 0, 3)
    assert losses == train(again, pool, 0, 3)
    assert losses[0] != train(other, pool, 0, 1)[0]
    for name, weight in weights(first).items():
        assert torch.equal(weight, weights(again)[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"checkpointing": True},
        {"channels_last": False},
        {"train_encoder": False},
        pytest.param(
            {"precision": "bf16", "checkpointing": True, "channels_last": True, "compile": True}, marks=pytest.mark.long
        ),
    ],
    ids=lambda options: " ".join(options),
)
def test_a_step_with_each_way_of_computing_is_the_plain_step(
    options: dict[str, Any], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # compiled as on any machine, but for the last stage, which needs a C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, other = worker.learner("evidence"), worker.learner("evidence", **options)
    before = weights(plain)
    told = [one.step(0, [worker.micro_batch(0, 0)], pool) for one in (plain, other)]
    if options.get("train_encoder", True):
        assert told[1]["loss"] == pytest.approx(told[0]["loss"], rel=0.02)
        assert told[1]["gradient_norm_rest"] == pytest.approx(told[0]["gradient_norm_rest"], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in weights(other).values())
    moved = {name for name, weight in weights(other).items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) is options.get("train_encoder", True)


@pytest.mark.slow
def test_a_step_goes_downhill(pool: ThreadPoolExecutor) -> None:
    learner = worker.learner("paper", learning_rate=1e-3, theta_gradient="off")
    fixed = [worker.micro_batch(0, i) for i in range(worker.MICRO_BATCHES)]
    losses = [learner.step(k, fixed, pool)["classifier"] for k in range(4)]
    assert losses[-1] < 0.95 * losses[0]


def test_micro_batches_add_up_to_their_batch(pool: ThreadPoolExecutor) -> None:
    """Without batch statistics and chance, two slides twice are four slides at once."""
    results = []
    for size, num in ((4, 1), (2, 2)):
        learner = worker.learner("paper", batch=4, micro_batch=size, theta_gradient="off")
        learner.model.early = learner.model.late = None
        learner.model.encoder.trained = False
        whole = worker.micro_batch(0, 0, size=4)
        halves = [_part(whole, i * size, size) for i in range(num)]
        gradients: list[torch.Tensor] = []
        learner.optimizer.register_step_pre_hook(
            lambda *_, it=learner, out=gradients: out.extend(p.grad.clone() for p in it.model.head.parameters())
        )
        results.append((learner.step(0, halves, pool), gradients))
    (whole_sums, whole_gradients), (sums, found) = results
    assert sums == pytest.approx(whole_sums, rel=1e-4)
    for a, b in zip(found, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def _part(whole: Any, first: int, size: int) -> Any:
    """Some of a micro-batch's slides, as one of its own."""
    _, sides, fetch, label_B = whole
    chosen = slice(first, first + size)

    def fetch_part(ask: Any) -> Any:
        return fetch(type(ask)(ask.layer, ask.slide + first, ask.region, ask.out_px, ask.margin_px))

    return first, sides[chosen], fetch_part, label_B[chosen]


@EACH_PRESET
def test_a_loss_that_is_no_number_leaves_everything_as_it_was(preset: str, pool: ThreadPoolExecutor) -> None:
    spoilt, straight = worker.learner(preset), worker.learner(preset)
    for learner in (spoilt, straight):
        train(learner, pool, 0, 1)
    before, state = weights(spoilt), spoilt.state_dict()
    index, sides, fetch, label_B = worker.micro_batch(1, 0)
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan, .* the weights are as before"):
        spoilt.step(1, [(index, sides, fetch, label_B * torch.nan)], pool)
    for name, weight in weights(spoilt).items():
        assert torch.equal(weight, before[name]), name
    assert torch.equal(spoilt.negatives.value, straight.negatives.value)
    for key, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, straight.optimizer.state_dict()["state"][key][name])
    # and nothing of it is left for the next step
    assert train(spoilt, pool, 1, 2) == train(straight, pool, 1, 2)


def test_learning_rates_follow_the_cosine(pool: ThreadPoolExecutor) -> None:
    learner = worker.learner("evidence", learning_rate=1e-3, locator_learning_rate=4e-3)
    assert type(learner.optimizer) is torch.optim.Adam
    assert {(group["betas"], group["weight_decay"]) for group in learner.optimizer.param_groups} == {((0.9, 0.999), 0)}
    for step, share in ((0, 1.0), (2, (1 + math.sqrt(0.5)) / 2), (4, 0.5), (6, (1 - math.sqrt(0.5)) / 2)):
        train(learner, pool, step, step + 1)
        locators, rest = (group["lr"] for group in learner.optimizer.param_groups)
        assert (locators, rest) == pytest.approx((4e-3 * share, 1e-3 * share))


def test_locators_and_the_rest_are_clipped_apart(pool: ThreadPoolExecutor) -> None:
    learner, norms = worker.learner("paper", clip_norm=1e-3), {}
    groups = learner.model.parameter_groups()

    def measure(*_: Any) -> None:
        for name, group in groups.items():
            norms[name] = float(torch.stack([p.grad.norm() for p in group]).norm())

    learner.optimizer.register_step_pre_hook(measure)
    told = learner.step(0, [worker.micro_batch(0, i) for i in range(3)], pool)
    assert norms == pytest.approx({"locators": 1e-3, "rest": 1e-3}, rel=1e-2)
    assert min(told["gradient_norm_locators"], told["gradient_norm_rest"]) > 1e-3  # before clipping


@pytest.mark.slow
def test_a_training_goes_on_from_its_state(pool: ThreadPoolExecutor) -> None:
    whole, first = worker.learner("evidence"), worker.learner("evidence")
    losses = train(whole, pool, 0, 3)
    train(first, pool, 0, 2)
    later = worker.learner("evidence", seed=0)
    later.model.load_state_dict(first.model.state_dict())
    later.load_state_dict(first.state_dict())
    assert train(later, pool, 2, 3) == losses[2:]


def test_sums_count_slides_and_parts(pool: ThreadPoolExecutor) -> None:
    sums = worker.learner("paper").step(0, [worker.micro_batch(0, i) for i in range(3)], pool)
    assert sums["slides"] == 6
    parts = ("classifier", "early", "late", "paradoxical")
    assert sums["loss"] == pytest.approx(sum(sums[name] for name in parts))
