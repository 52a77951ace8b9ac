"""Sparsemax compared with entmax, closed forms and finite differences."""

from __future__ import annotations

import entmax
import pytest
import torch

from magnet.sparsemax import NUM_LARGEST, normalise_maps, sparsemax, spatial_sparsemax

# spreads at which the support is wide (beyond the largest entries that are searched first), middling and narrow
SPREADS = (0.0, 0.001, 0.01, 0.1, 1.0, 30.0)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("spread", SPREADS)
def test_value_and_gradient_equal_those_of_entmax(spread: float) -> None:
    z = (noise(5, 3136, dtype=torch.float64) * spread).requires_grad_()
    other = z.detach().clone().requires_grad_()
    weight = noise(5, 3136, seed=1, dtype=torch.float64)
    p, q = sparsemax(z), entmax.sparsemax(other, dim=-1)
    (p * weight).sum().backward()
    (q * weight).sum().backward()
    assert z.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread", SPREADS)
def test_float32_is_within_rounding_of_float64(spread: float) -> None:
    z = noise(20, 3136) * spread + 100
    p = sparsemax(z)
    torch.testing.assert_close(p.double(), entmax.sparsemax(z.double(), dim=-1), rtol=0, atol=2e-6)
    torch.testing.assert_close(p.sum(-1), torch.ones(20), rtol=0, atol=1e-5)


def test_the_result_of_a_row_does_not_depend_on_the_other_rows() -> None:
    z = noise(len(SPREADS), 3136) * torch.tensor(SPREADS)[:, None]
    rows = torch.stack([sparsemax(row) for row in z])
    torch.testing.assert_close(sparsemax(z), rows, rtol=0, atol=0)
    sizes = (rows > 0).sum(-1).tolist()
    assert min(sizes) < NUM_LARGEST < max(sizes) == 3136


def test_small_rows_match_closed_forms() -> None:
    torch.testing.assert_close(sparsemax(torch.tensor([0.6, 0.1, -3.0])), torch.tensor([0.75, 0.25, 0.0]))
    torch.testing.assert_close(sparsemax(torch.tensor([2.0, 0.5, 0.0])), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(sparsemax(torch.full((7,), 1e6)), torch.full((7,), 1 / 7))
    torch.testing.assert_close(sparsemax(torch.tensor([5.0])), torch.tensor([1.0]))


def test_minus_infinity_becomes_exactly_zero_and_has_no_gradient() -> None:
    z = torch.tensor([0.0, -torch.inf, 0.2], requires_grad=True)
    p = sparsemax(z)
    (p * torch.tensor([1.0, 5.0, 2.0])).sum().backward()
    torch.testing.assert_close(p.detach(), torch.tensor([0.4, 0.0, 0.6]))
    torch.testing.assert_close(z.grad, torch.tensor([-0.5, 0.0, 0.5]))


def test_a_row_with_nan_gives_nan_and_terminates() -> None:
    z = noise(2, 200) * 1e-3
    z[0, 3] = torch.nan
    p = sparsemax(z)
    assert p[0].isnan().any()
    assert p[1].isfinite().all()


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_gradient_matches_finite_differences(dim: int) -> None:
    z = noise(3, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sparsemax(x, dim=dim), z)


def test_the_gradient_of_a_wide_support_matches_finite_differences() -> None:
    z = (noise(2, 2 * NUM_LARGEST, dtype=torch.float64) * 1e-3).requires_grad_()
    assert int((sparsemax(z) > 0).sum(-1).min()) == 2 * NUM_LARGEST
    assert torch.autograd.gradcheck(sparsemax, z)


def test_the_result_is_float32_under_autocast() -> None:
    z = noise(4, 3136).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = sparsemax(z)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.double(), entmax.sparsemax(z.double(), dim=-1), rtol=0, atol=1e-6)


def test_spatial_sparsemax_runs_over_both_axes() -> None:
    map_HW = noise(2, 3, 4, 5)
    torch.testing.assert_close(
        spatial_sparsemax(map_HW), entmax.sparsemax(map_HW.reshape(2, 3, 20), dim=-1).reshape(2, 3, 4, 5)
    )


def test_normalised_maps_have_zero_mean_and_the_temperature_as_spread() -> None:
    out = normalise_maps(noise(2, 3, 8, 8, dtype=torch.float64) * 50 + 7, temperature=0.3)
    torch.testing.assert_close(out.mean((-2, -1)), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.std((-2, -1), correction=0), torch.full((2, 3), 0.3, dtype=torch.float64))


def test_masked_positions_have_no_probability() -> None:
    scores = noise(2, 3, 6, 6)
    scores[..., :3] += 100  # by far the largest, but masked
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[..., 3:] = True
    out = normalise_maps(scores, temperature=0.5, mask_HW=mask)
    p = spatial_sparsemax(out)
    assert (p[..., :3] == 0).all()
    torch.testing.assert_close(p.sum((-2, -1)), torch.ones(2, 3))
    torch.testing.assert_close(out[..., 3:].std((-2, -1), correction=0), torch.full((2, 3), 0.5))


def test_an_empty_mask_has_no_effect() -> None:
    scores = noise(2, 6, 6)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[1, 0, 0] = True
    out = normalise_maps(scores, mask_HW=mask)
    torch.testing.assert_close(out[0], normalise_maps(scores[0]))
    assert (spatial_sparsemax(out)[1] > 0).nonzero().tolist() == [[0, 0]]


def test_a_flat_map_stays_flat_with_a_finite_gradient() -> None:
    scores = torch.full((1, 6, 6), 3.0, requires_grad=True)
    p = spatial_sparsemax(normalise_maps(scores, mask_HW=torch.ones(1, 6, 6, dtype=torch.bool)))
    p.square().sum().backward()
    torch.testing.assert_close(p, torch.full((1, 6, 6), 1 / 36))
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_the_gradient_of_normalisation_and_sparsemax_with_a_mask_matches_finite_differences() -> None:
    scores = noise(2, 4, 4, dtype=torch.float64).requires_grad_()
    mask = noise(2, 4, 4, seed=3) > -0.5
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def p(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return spatial_sparsemax(normalise_maps(z, t, mask))

    assert torch.autograd.gradcheck(p, (scores, temperature))
