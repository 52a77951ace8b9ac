"""One optimizer step: the same on one worker and on two, the same for the same seed, none for a non-finite loss."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet.presets import PRESETS
from magnet.windows import WindowRequest, Windows
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.learner import Learner, NotFiniteError

WORKER = Path(__file__).with_name("learner_worker.py")
_spec = importlib.util.spec_from_file_location("learner_worker", WORKER)
assert _spec is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)  # type: ignore[union-attr]  # a file has a loader

EACH_PRESET = pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.slow] if name == "paper" else []) for name in sorted(PRESETS)]
)
"""The preset "paper" has the larger network, so that its tests are slow."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def train(learner: Learner, pool: ThreadPoolExecutor, first: int, last: int) -> list[float]:
    """Take steps `first` to `last` - 1; return their losses."""
    return [
        learner.step(k, [worker.make_input(k, i) for i in range(worker.MICRO_BATCHES)], pool)["loss"]
        for k in range(first, last)
    ]


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """Return the results of a single worker in this process, and those of each of two workers in separate ones."""
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
        alone = {preset: worker.take_steps(preset, 0, 1) for preset in sorted(PRESETS)}
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return alone, [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.slow
@EACH_PRESET
def test_losses_of_two_workers_add_up_to_those_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [results[preset] for results in group[1]]
    for step in range(worker.NUM_STEPS):
        for name, value in alone[f"sums {step}"].items():
            each = [results[f"sums {step}"][name] for results in both]
            if "norm" in name:
                assert each == pytest.approx([value] * 2, rel=1e-3), name
            else:
                assert sum(each) == pytest.approx(value, rel=1e-5, abs=1e-5), name
        assert [results[f"sums {step}"]["slides"] for results in both] == [4, 2]


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_gradients_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [results[preset] for results in group[1]]
    largest = max(float(gradient.abs().max()) for gradient in alone["gradients"][0].values())
    assert largest > 0.01
    for results in both:
        assert results["gradients"][0].keys() == alone["gradients"][0].keys()
        for name, expected in alone["gradients"][0].items():
            torch.testing.assert_close(
                results["gradients"][0][name], expected, rtol=1e-3, atol=1e-5 * largest, msg=name
            )


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_same_weights_and_those_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [results[preset] for results in group[1]]
    for step in range(worker.NUM_STEPS):
        for name, weight in both[0][f"weights {step}"].items():
            assert torch.equal(weight, both[1][f"weights {step}"][name])
    for name, expected in alone["weights 0"].items():
        # The first step of Adam is the sign of the gradient, and rounding decides it where the gradient is zero.
        certain = alone["gradients"][0][name].abs() > 1e-4
        torch.testing.assert_close(
            both[0]["weights 0"][name][certain], expected[certain], rtol=1e-4, atol=1e-6, msg=name
        )
    assert both[0]["counts"] == both[1]["counts"] == alone["counts"]


@pytest.mark.slow
def test_two_workers_calibrate_on_the_negative_slides_of_both(group: Any) -> None:
    alone, both = group[0]["evidence"], [results["evidence"] for results in group[1]]
    assert math.isfinite(alone["threshold"])
    assert [float(results["threshold"]) for results in both] == pytest.approx([float(alone["threshold"])] * 2, abs=1e-3)


@pytest.mark.slow
@EACH_PRESET
def test_two_workers_have_the_running_statistics_of_one(group: Any, preset: str) -> None:
    alone, both = group[0][preset], [results[preset] for results in group[1]]
    assert any(name.endswith("running_var") for name in alone["buffers"])
    for name, expected in alone["buffers"].items():
        assert torch.equal(both[0]["buffers"][name], both[1]["buffers"][name]), name
        torch.testing.assert_close(both[0]["buffers"][name], expected, rtol=1e-4, atol=1e-6, msg=name)


# -------------------------------------------------------------------------------------------------------- one process


@EACH_PRESET
def test_same_seed_same_losses_and_weights(preset: str, pool: ThreadPoolExecutor) -> None:
    first, again, other = (worker.make_learner(preset, seed=seed) for seed in (1, 1, 2))
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
def test_a_step_with_each_option_of_computing_agrees_with_the_plain_step(
    options: dict[str, Any], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without the last stage of the compiler, which needs a C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, other = worker.make_learner("evidence"), worker.make_learner("evidence", **options)
    before = weights(plain)
    plain_sums, sums = (learner.step(0, [worker.make_input(0, 0)], pool) for learner in (plain, other))
    if options.get("train_encoder", True):
        assert sums["loss"] == pytest.approx(plain_sums["loss"], rel=0.02)
        assert sums["gradient_norm_rest"] == pytest.approx(plain_sums["gradient_norm_rest"], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in weights(other).values())
    moved = {name for name, weight in weights(other).items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) is options.get("train_encoder", True)


@pytest.mark.slow
def test_steps_reduce_the_loss(pool: ThreadPoolExecutor) -> None:
    learner = worker.make_learner("paper", learning_rate=1e-3, theta_gradient="off")
    fixed = [worker.make_input(0, i) for i in range(worker.MICRO_BATCHES)]
    losses = [learner.step(k, fixed, pool)["classifier"] for k in range(4)]
    assert losses[-1] < 0.95 * losses[0]


def test_a_batch_has_the_same_gradients_in_one_micro_batch_and_in_two(pool: ThreadPoolExecutor) -> None:
    """Without batch statistics and random regions."""
    results = []
    for size, num in ((4, 1), (2, 2)):
        learner = worker.make_learner("paper", batch=4, micro_batch=size, theta_gradient="off")
        learner.model.early = learner.model.late = None
        learner.model.encoder.trained = False
        whole = worker.make_input(0, 0, size=4)
        halves = [_part(whole, i * size, size) for i in range(num)]
        gradients: list[torch.Tensor] = []
        learner.optimizer.register_step_pre_hook(
            lambda *_, head=learner.model.head, out=gradients: out.extend(p.grad.clone() for p in head.parameters())
        )
        results.append((learner.step(0, halves, pool), gradients))
    (whole_sums, whole_gradients), (sums, gradients) = results
    assert sums == pytest.approx(whole_sums, rel=1e-4)
    for a, b in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def _part(whole: StepInput, first: int, size: int) -> StepInput:
    """Return some slides of a micro-batch as a separate one."""
    rows = slice(first, first + size)

    def fetch(request: WindowRequest) -> Windows:
        return whole.fetch(replace(request, slide=request.slide + first))

    return StepInput(index=first, side_px_B=whole.side_px_B[rows], fetch=fetch, label_B=whole.label_B[rows])


@EACH_PRESET
def test_a_non_finite_loss_leaves_weights_and_optimizer_unchanged(preset: str, pool: ThreadPoolExecutor) -> None:
    interrupted, plain = worker.make_learner(preset), worker.make_learner(preset)
    for learner in (interrupted, plain):
        train(learner, pool, 0, 1)
    before, state = weights(interrupted), interrupted.state_dict()
    step_input = worker.make_input(1, 0)
    step_input = replace(step_input, label_B=step_input.label_B * torch.nan)
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan, .* the weights are as before"):
        interrupted.step(1, [step_input], pool)
    for name, weight in weights(interrupted).items():
        assert torch.equal(weight, before[name]), name
    assert torch.equal(interrupted.negatives.value, plain.negatives.value)
    for key, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, plain.optimizer.state_dict()["state"][key][name])
    # nor are gradients left for the next step
    assert train(interrupted, pool, 1, 2) == train(plain, pool, 1, 2)


def test_learning_rates_follow_the_cosine(pool: ThreadPoolExecutor) -> None:
    learner = worker.make_learner("evidence", learning_rate=1e-3, locator_learning_rate=4e-3)
    assert type(learner.optimizer) is torch.optim.Adam
    assert {(group["betas"], group["weight_decay"]) for group in learner.optimizer.param_groups} == {((0.9, 0.999), 0)}
    for step, share in ((0, 1.0), (2, (1 + math.sqrt(0.5)) / 2), (4, 0.5), (6, (1 - math.sqrt(0.5)) / 2)):
        train(learner, pool, step, step + 1)
        locators, rest = (group["lr"] for group in learner.optimizer.param_groups)
        assert (locators, rest) == pytest.approx((4e-3 * share, 1e-3 * share))


def test_gradients_of_locators_and_of_the_rest_are_clipped_separately(pool: ThreadPoolExecutor) -> None:
    learner, norms = worker.make_learner("paper", clip_norm=1e-3), {}
    groups = learner.model.parameter_groups()

    def measure(*_: Any) -> None:
        for name, group in groups.items():
            norms[name] = float(torch.stack([p.grad.norm() for p in group]).norm())

    learner.optimizer.register_step_pre_hook(measure)
    sums = learner.step(0, [worker.make_input(0, i) for i in range(3)], pool)
    assert norms == pytest.approx({"locators": 1e-3, "rest": 1e-3}, rel=1e-2)
    assert min(sums["gradient_norm_locators"], sums["gradient_norm_rest"]) > 1e-3  # before clipping


@pytest.mark.slow
def test_a_training_continues_from_its_state_with_the_same_losses(pool: ThreadPoolExecutor) -> None:
    uninterrupted, first = worker.make_learner("evidence"), worker.make_learner("evidence")
    losses = train(uninterrupted, pool, 0, 3)
    train(first, pool, 0, 2)
    second = worker.make_learner("evidence", seed=0)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    assert train(second, pool, 2, 3) == losses[2:]


def test_the_loss_is_the_sum_of_its_parts(pool: ThreadPoolExecutor) -> None:
    sums = worker.make_learner("paper").step(0, [worker.make_input(0, i) for i in range(3)], pool)
    assert sums["slides"] == 6
    parts = ("classifier", "early", "late", "paradoxical")
    assert sums["loss"] == pytest.approx(sum(sums[name] for name in parts))
