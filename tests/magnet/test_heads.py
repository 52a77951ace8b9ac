"""Heads: the logit of every prefix, and pooling compared with float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magnet.heads import EvidenceHead, MeanHead, RecurrentHead, running_log_mean_exp


def features(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def gru_by_hand(gru: torch.nn.GRU, sequence: np.ndarray) -> np.ndarray:
    """Return the states of a GRU over one sequence (N, D) by its published equations in float64."""
    w_in, w_state, b_in, b_state = (p.detach().double().numpy() for p in gru.parameters())
    state = np.zeros(gru.hidden_size)
    states = []
    for x in sequence:
        r_in, z_in, n_in = np.split(w_in @ x + b_in, 3)
        r_state, z_state, n_state = np.split(w_state @ state + b_state, 3)
        reset, update = 1 / (1 + np.exp(-(r_in + r_state))), 1 / (1 + np.exp(-(z_in + z_state)))
        state = (1 - update) * np.tanh(n_in + reset * n_state) + update * state
        states.append(state)
    return np.stack(states)


def test_the_recurrent_head_is_a_gru_with_layers_of_512_256_and_1_units() -> None:
    torch.manual_seed(0)
    head = RecurrentHead(6, hidden=5)
    assert [tuple(m.weight.shape) for m in head.fc if isinstance(m, torch.nn.Linear)] == [
        (512, 5),
        (256, 512),
        (1, 256),
    ]
    x = features(2, 4, 6)
    logits = head(x).running_BN
    for b in range(2):
        out = gru_by_hand(head.gru, x[b].double().numpy())
        for layer in (m for m in head.fc if isinstance(m, torch.nn.Linear)):
            out = out @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
            out = np.maximum(out, 0) if layer.out_features > 1 else out
        np.testing.assert_allclose(logits[b].detach().numpy(), out[:, 0], atol=1e-6)


def test_the_recurrent_logit_of_a_prefix_does_not_depend_on_later_patches() -> None:
    head = RecurrentHead(6, hidden=8)
    x = features(2, 5, 6)
    for n in range(1, 6):
        torch.testing.assert_close(head(x).running_BN[:, :n], head(x[:, :n]).running_BN)


def test_the_evidence_head_pools_each_prefix() -> None:
    head = EvidenceHead(6)
    x = features(2, 5, 6)
    evidence = head(x)
    patch = (x.double() @ head.patch.weight.double().T + head.patch.bias.double())[..., 0].detach()
    torch.testing.assert_close(evidence.patch_BN.double(), patch, rtol=0, atol=1e-6)
    running = torch.stack([patch[:, : n + 1].exp().mean(1).log() for n in range(5)], dim=1)
    torch.testing.assert_close(evidence.running_BN.double(), running, rtol=0, atol=1e-6)


def test_the_evidence_head_ignores_the_order_of_patches() -> None:
    head = EvidenceHead(6)
    x = features(2, 5, 6)
    torch.testing.assert_close(head(x).running_BN[:, -1], head(x.flip(1)).running_BN[:, -1])


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_log_mean_exp_does_not_overflow_or_underflow(shift: float) -> None:
    logits = features(3, 7) + shift
    expected = np.log(np.exp(logits.double().numpy() - shift).mean(1)) + shift
    np.testing.assert_allclose(running_log_mean_exp(logits)[:, -1].numpy(), expected, atol=5e-5)


def test_log_mean_exp_is_between_mean_and_maximum() -> None:
    logits = features(50, 7) * 3
    pooled = running_log_mean_exp(logits)[:, -1]
    assert (pooled > logits.mean(1)).all()
    assert (pooled < logits.amax(1)).all()
    torch.testing.assert_close(running_log_mean_exp(torch.full((1, 9), 1.5)), torch.full((1, 9), 1.5))


def test_the_gradient_of_pooling_is_the_softmax_of_the_logits() -> None:
    logits = features(2, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(running_log_mean_exp, logits)
    (grad,) = torch.autograd.grad(running_log_mean_exp(logits)[:, -1].sum(), logits)
    torch.testing.assert_close(grad, logits.softmax(1).detach())


def test_evidence_is_pooled_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert EvidenceHead(6)(features(2, 5, 6)).running_BN.dtype == torch.float32


def test_the_mean_head_is_linear_in_the_mean_feature() -> None:
    head = MeanHead(6)
    x = features(2, 5, 6)
    torch.testing.assert_close(head(x), x.mean(1) @ head.fc.weight[0] + head.fc.bias)
