"""Sampler: values and slopes compared with closed forms, scipy, least squares and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from magnet import sampler
from magnet.affine import clamp_scale, compose, limit_centre, limit_scale, moments
from magnet.sampler import MARGIN_PX, NUM_SAMPLES, sample, to_window
from magnet.sparsemax import normalise_maps, spatial_sparsemax

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_image(num: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=seeded(seed), dtype=F64)


def centres(left: float, px: float, side: int) -> torch.Tensor:
    """Return the root coordinates of the centres of a window's pixels along one axis."""
    return left + px * (torch.arange(side, dtype=F64) + 0.5)


PLACE = torch.tensor([[0.1, -0.4, 0.01, 0.008]], dtype=F64)  # 40 px: x 0.1 to 0.5, y -0.4 to -0.08
REGION = torch.tensor([[0.1, 0.28, -0.25]], dtype=F64)
SIDE, OUT = 40, 16


def wave(x_slope: float, y_slope: float) -> torch.Tensor:
    """Return an image at `PLACE` that is linear in root coordinates."""
    x, y = centres(0.1, 0.01, SIDE), centres(-0.4, 0.008, SIDE)
    return (x_slope * x[None, :] + y_slope * y[:, None] + 0.3)[None, None]


def output_centres() -> tuple[torch.Tensor, torch.Tensor]:
    s, tx, ty = REGION[0]
    unit = (2 * torch.arange(OUT, dtype=F64) + 1) / OUT - 1
    return tx + s * unit, ty + s * unit


def test_a_linear_image_is_reproduced_at_the_regions_pixel_centres() -> None:
    x, y = output_centres()
    expected = 2 * x[None, :] - 3 * y[:, None] + 0.3
    torch.testing.assert_close(sample(wave(2, -3), PLACE, REGION, OUT)[0, 0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("region", [(0.1, 0.28, -0.25), (0.3, 0.15, -0.1), (0.02, 0.4971, -0.3)])
def test_bilinear_sampling_equals_that_of_scipy_and_is_black_outside(region: tuple[float, float, float]) -> None:
    image = noise_image(1, SIDE)
    s, tx, ty = region
    unit = (2 * np.arange(OUT) + 1) / OUT - 1
    column, row = (tx + s * unit - 0.1) / 0.01 - 0.5, (ty + s * unit + 0.4) / 0.008 - 0.5
    where = np.meshgrid(row, column, indexing="ij")
    expected = np.stack([map_coordinates(c, where, order=1, mode="grid-constant") for c in image[0].numpy()])
    out = sample(image, PLACE, torch.tensor([region], dtype=F64), OUT)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-12)


def test_the_gradient_of_bilinear_matches_finite_differences() -> None:
    image = noise_image(1, SIDE)[:, :1].requires_grad_()
    # no point on a pixel's centre, where bilinear interpolation has a kink
    region = torch.tensor([[0.0973, 0.2811, -0.2529]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pixels, at: sample(pixels, PLACE, at, 3), (image, region))


@pytest.mark.parametrize(("scale_limit", "centre_limit"), [("hard", "tanh"), ("softplus", "tanh")])
@pytest.mark.parametrize("spread", ["rms", "l2"])
def test_the_gradient_from_pixels_through_two_layers_to_maps_matches_finite_differences(
    scale_limit: Any, centre_limit: Any, spread: Any
) -> None:
    image = noise_image(1, 64)[:, :1]
    place = torch.tensor([[-1.0, -1.0, 2 / 64, 2 / 64]], dtype=F64)

    def theta(map_HW: torch.Tensor) -> torch.Tensor:
        mean, size = moments(spatial_sparsemax(normalise_maps(map_HW, 0.3)), spread)
        scale = limit_scale(size, scale_limit)
        return torch.cat([scale[..., None], limit_centre(mean, scale, centre_limit)], dim=-1)

    def view(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        region = compose(theta(first), theta(second)).flatten(0, 2)
        return sample(image, place, clamp_scale(region, torch.tensor([1e-3])), 2)

    maps = torch.randn(2, 1, 1, 5, 5, generator=seeded(1), dtype=F64)
    first, second = maps[0].clone().requires_grad_(), maps[1][:, :, None].clone().requires_grad_()
    assert torch.autograd.gradcheck(view, (first, second))


@pytest.mark.parametrize("method", ["bilinear", "lms"])
def test_the_slopes_of_a_linear_image_are_on_the_right_axes(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "RIDGE", 0.0)
    region = REGION.clone().requires_grad_()
    x_slope, y_slope = 2.0, -3.0
    out = sample(wave(x_slope, y_slope), PLACE, region, OUT, method=method, generator=seeded(0))[0, 0]
    unit = (2 * torch.arange(OUT, dtype=F64) + 1) / OUT - 1
    for row, column in [(2, 3), (7, 12), (15, 0)]:
        (grad,) = torch.autograd.grad(out[row, column], region, retain_graph=True)
        along_s = x_slope * unit[column] + y_slope * unit[row]
        torch.testing.assert_close(grad[0], torch.tensor([along_s, x_slope, y_slope]), rtol=0, atol=1e-9)


def test_the_gradient_predicts_the_effect_of_moving_the_region_on_a_smooth_image() -> None:
    x, y = centres(0.1, 0.01, SIDE), centres(-0.4, 0.008, SIDE)
    image = (torch.sin(6 * x)[None, :] + torch.cos(4 * y)[:, None])[None, None]
    region = REGION.clone().requires_grad_()
    base = sample(image, PLACE, region, OUT, method="lms", generator=seeded(0))
    for axis in range(3):
        step = torch.zeros(1, 3, dtype=F64)
        step[0, axis] = 0.02  # two pixels
        moved = sample(image, PLACE, REGION + step, OUT)
        weight = (moved - base).detach()
        (grad,) = torch.autograd.grad((base * weight).sum(), region, retain_graph=True)
        predicted = grad[0, axis].item() * 0.02
        assert predicted == pytest.approx(weight.square().sum().item(), rel=0.15)


def test_the_slopes_of_lms_are_the_least_squares_fit_through_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "RIDGE", 0.0)
    image, out_px = noise_image(1, SIDE), 3
    region = REGION.clone().requires_grad_()
    out = sample(image, PLACE, region, out_px, method="lms", generator=seeded(5))

    # noise: 0.5 output pixels and 1 window pixel, both in root coordinates
    spread = np.hypot(0.5 * 2 * 0.1 / out_px, np.array([0.01, 0.008]))
    same = seeded(5)
    delta = np.stack(
        [torch.randn(1, out_px, out_px, 2, generator=same, dtype=F64).numpy()[0] for _ in range(NUM_SAMPLES - 1)]
    )
    delta = delta * spread  # samples, rows, columns, (x, y)
    unit = (2 * np.arange(out_px) + 1) / out_px - 1
    for row in range(out_px):
        for column in range(out_px):
            point = np.array([0.28, -0.25]) + 0.1 * unit[[column, row]]
            at = np.concatenate([point[None], point + delta[:, row, column]])
            index = (at - np.array([0.1, -0.4])) / np.array([0.01, 0.008]) - 0.5
            y = map_coordinates(image[0, 1].numpy(), index[:, ::-1].T, order=1, mode="grid-constant")
            design = np.concatenate([delta[:, row, column], np.ones((NUM_SAMPLES - 1, 1))], axis=1)
            slope_x, slope_y, _ = np.linalg.lstsq(design, y[1:] - y[0], rcond=None)[0]
            (grad,) = torch.autograd.grad(out[0, 1, row, column], region, retain_graph=True)
            along_s = slope_x * unit[column] + slope_y * unit[row]
            np.testing.assert_allclose(grad[0].numpy(), [along_s, slope_x, slope_y], rtol=1e-7, atol=1e-7)


def test_the_mean_slope_of_a_quadratic_image_is_its_derivative() -> None:
    x, y = centres(0.1, 0.01, SIDE), centres(-0.4, 0.008, SIDE)
    image = ((10 * (x - 0.2) ** 2)[None, :] + (y * 5 * (y + 0.3))[:, None])[None, None]
    repeats = 400
    region = torch.tensor([[0.005, 0.305, -0.236]], dtype=F64).expand(repeats, 3).clone().requires_grad_()
    out = sample(
        image.expand(repeats, 1, SIDE, SIDE), PLACE.expand(repeats, 4), region, 1, method="lms", generator=seeded(0)
    )
    (grad,) = torch.autograd.grad(out.sum(), region)
    expected = torch.tensor([20 * (0.305 - 0.2), 5 * (2 * -0.236 + 0.3)], dtype=F64)
    error = (grad[:, 1:].mean(0) - expected).abs()
    assert (error < 4 * grad[:, 1:].std(0) / repeats**0.5 + 2e-3 * expected.abs()).all()  # the ridge pulls by 0.2 %


def test_the_default_ridge_changes_slopes_by_less_than_a_per_cent() -> None:
    region = REGION.clone().requires_grad_()
    out = sample(wave(2, -3), PLACE, region, OUT, method="lms", generator=seeded(0))
    (grad,) = torch.autograd.grad(out.mean(), region)
    torch.testing.assert_close(grad[0, 1:], torch.tensor([2.0, -3.0], dtype=F64), rtol=0.01, atol=0)


def test_lms_and_bilinear_have_the_same_value_and_gradient_to_the_pixels() -> None:
    image = noise_image(2, SIDE).float()
    place, region = PLACE.expand(2, 4), REGION.float().expand(2, 3)
    results = []
    for method in ("bilinear", "lms"):
        pixels = image.clone().requires_grad_()
        out = sample(pixels, place, region.clone().requires_grad_(), OUT, method=method, generator=seeded(0))
        results.append((out, torch.autograd.grad(out.square().sum(), pixels)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_without_gradient_lms_draws_no_random_number() -> None:
    generator = seeded(0)
    before = generator.get_state()
    out = sample(noise_image(1, SIDE), PLACE, REGION, OUT, method="lms", generator=generator)
    with torch.no_grad():
        sample(noise_image(1, SIDE), PLACE, REGION.clone().requires_grad_(), OUT, method="lms", generator=generator)
    torch.testing.assert_close(out, sample(noise_image(1, SIDE), PLACE, REGION, OUT))
    assert torch.equal(generator.get_state(), before)


def test_the_same_seed_gives_the_same_gradient() -> None:
    grads = []
    for seed in (1, 1, 2):
        region = REGION.clone().requires_grad_()
        out = sample(noise_image(1, SIDE), PLACE, region, OUT, method="lms", generator=seeded(seed))
        grads.append(torch.autograd.grad(out.square().sum(), region)[0])
    assert torch.equal(grads[0], grads[1])
    assert not torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("side_px", [1_000, 30_000, 1_000_000])
def test_slopes_in_float32_are_exact_at_any_zoom(side_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In root coordinates the normal equations of the deepest zoom would have entries of 1e-12."""
    monkeypatch.setattr(sampler, "RIDGE", 0.0)
    px, window_px, out_px = 2 / side_px, 72, 24
    ramp = torch.arange(window_px, dtype=torch.float32)
    image = (0.01 * ramp[None, :] - 0.003 * ramp[:, None])[None, None]  # per window pixel
    place = torch.tensor([[0.3, -0.2, px, px]], dtype=F64)
    region = torch.tensor([[20 * px, 0.3 + 36 * px, -0.2 + 36 * px]], dtype=F64, requires_grad=True)
    out = sample(image, place, region, out_px, method="lms", generator=seeded(0))
    assert out.dtype == torch.float32
    for row, column in [(0, 0), (11, 12), (23, 5)]:
        (grad,) = torch.autograd.grad(out[0, 0, row, column], region, retain_graph=True)
        torch.testing.assert_close(grad[0, 1:] * px, torch.tensor([0.01, -0.003], dtype=F64), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "limit_px"), [(torch.float32, 0.01), (F64, 1e-4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_are_exact_to_a_hundredth_of_a_pixel_on_a_gigapixel_slide(
    dtype: torch.dtype, limit_px: float, axis: int
) -> None:
    side_px, window_px, out_px = 110_000, 115, 56
    px = 2 / side_px
    unit = (2 * torch.arange(out_px, dtype=F64) + 1) / out_px - 1
    ramp = torch.arange(window_px, dtype=torch.float32).expand(window_px, window_px)  # value is the pixel's index
    image = (ramp if axis == 0 else ramp.T)[None, None]
    for first in (0, 31_337, 98_765, side_px - window_px):
        place = torch.tensor([[first * px - 1, first * px - 1, px, px]], dtype=F64)
        region = torch.tensor([[50 * px, (first + 57.3) * px - 1, (first + 57.3) * px - 1]], dtype=F64)
        sampled = sample(image, place, region.to(dtype), out_px)[0, 0]
        index = sampled[3] if axis == 0 else sampled[:, 3]
        assert (index.double() - (57.3 + 50 * unit - 0.5)).abs().max() < limit_px


def test_the_sampler_computes_in_float32_under_autocast() -> None:
    image, region = noise_image(1, SIDE).float(), REGION.float().requires_grad_()
    plain = sample(image, PLACE, region, OUT, method="lms", generator=seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sample(image, PLACE, region, OUT, method="lms", generator=seeded(0))
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(plain.mean(), region)
    (grad_inside,) = torch.autograd.grad(inside.mean(), region)
    torch.testing.assert_close(grad_inside, grad, rtol=0, atol=0)


def test_a_region_is_converted_to_window_coordinates() -> None:
    scale, centre = to_window(PLACE, REGION, (SIDE, SIDE))
    torch.testing.assert_close(scale, torch.tensor([[0.1 / 0.2, 0.1 / 0.16]], dtype=F64))
    torch.testing.assert_close(centre, torch.tensor([[(0.28 - 0.3) / 0.2, (-0.25 + 0.24) / 0.16]], dtype=F64))


def test_margins_contain_all_but_a_ten_thousandth_of_the_samples() -> None:
    # the widest noise, in window pixels: 0.5 output pixels at 2 window pixels each, and one window pixel
    assert MARGIN_PX["lms"] >= 4 * np.hypot(0.5 * 2, 1.0)
    assert MARGIN_PX["bilinear"] >= 1


def pink(num: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Return images whose spectrum decreases as that of natural images."""
    spectrum = torch.fft.rfft2(torch.randn(num, 3, side, side, generator=generator))
    radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    radius[0, 0] = 1
    return torch.fft.irfft2(spectrum / radius, s=(side, side))


@pytest.mark.slow
def test_lms_points_to_a_distant_target_more_reliably_than_bilinear() -> None:
    side, out_px, scale, num = 370, 56, 0.3, 48  # 1.98 window pixels per output pixel, the most a window has
    generator = seeded(0)
    image = pink(num, side, generator)
    place = torch.tensor([[-1.0, -1.0, 2 / side, 2 / side]], dtype=F64).expand(num, 4)
    target = torch.cat([torch.full((num, 1), scale), torch.rand(num, 2, generator=generator) * 0.6 - 0.3], dim=1)
    offset = torch.nn.functional.normalize(torch.randn(num, 2, generator=generator)) * 0.4 * scale
    goal = sample(image, place, target, out_px)
    cosine = {}
    for method in ("bilinear", "lms"):
        start = (target + torch.nn.functional.pad(offset, (1, 0))).requires_grad_()
        view = sample(image, place, start, out_px, method=method, generator=generator)
        (grad,) = torch.autograd.grad((view - goal).square().mean((1, 2, 3)).sum(), start)
        # The start is the target plus the offset, so that the negative gradient should point against the offset.
        cosine[method] = torch.cosine_similarity(grad[:, 1:], offset)
    assert cosine["lms"].mean() > 0.8
    assert cosine["lms"].mean() > cosine["bilinear"].mean() + 0.15
    assert (cosine["lms"] > 0).float().mean() >= (cosine["bilinear"] > 0).float().mean() + 0.05


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match=r"method 'nearest': must be one of \['bilinear', 'lms'\]"):
        sample(noise_image(1, SIDE), PLACE, REGION, OUT, method="nearest")  # type: ignore[arg-type]
