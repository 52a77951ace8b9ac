"""Contrastive pretraining: drawn regions, changed views and the loss, compared with formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magnet.config import LocatorConfig, ModelConfig, ZoomConfig
from magnet.pretraining import MIN_CROP, blur, contrastive_loss, crop, draw_regions, patch_scale_range, restain, turn

LOCATOR = LocatorConfig(scale_min=0.12, scale_max=0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(schedule: tuple[int, ...], *, frozen_patch: bool = False) -> ModelConfig:
    return ModelConfig(zoom=ZoomConfig(schedule=schedule, patch_px=64, frozen_patch=frozen_patch), locator=LOCATOR)


# ----------------------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize(
    ("config", "side_px", "smallest", "largest"),
    [
        (model((3, 2)), 8192, 0.0144, 0.09),
        (model((3, 2)), 1024, 0.0625, 0.09),  # 64 of 1,024 px: no finer than native
        (model((3, 2)), 256, 0.25, 0.25),
        (model((3, 2, 3)), 100_000, 0.001728, 0.027),
        (model((3, 2), frozen_patch=True), 8192, 0.0144, 0.3),  # the frozen patch is magnified once, not twice
    ],
)
def test_regions_are_drawn_at_the_sizes_that_last_patches_can_have(
    config: ModelConfig, side_px: float, smallest: float, largest: float
) -> None:
    assert patch_scale_range(config, side_px) == pytest.approx((smallest, largest), rel=1e-12)


def test_regions_are_on_tissue_and_within_the_root_square() -> None:
    tissue = np.zeros((8, 8), dtype=bool)
    tissue[1, 6] = tissue[0, 0] = True  # from -0.75 to -0.5 down and 0.5 to 0.75 across; and a corner
    s, x, y = draw_regions(tissue, (0.01, 0.16), 4000, np.random.default_rng(0)).T
    assert np.all(np.abs(x) + s <= 1 + 1e-12)
    assert np.all(np.abs(y) + s <= 1 + 1e-12)
    first = x > 0
    assert 0.45 < first.mean() < 0.55
    assert np.all((x[first] > 0.5) & (x[first] < 0.75) & (y[first] > -0.75) & (y[first] < -0.5))
    assert np.median(s) == pytest.approx(0.04, rel=0.1)  # the geometric mean of the bounds
    assert 0.01 <= s.min() < 0.011
    assert 0.15 < s.max() <= 0.16


def test_crops_are_within_their_regions_and_cover_all_parts_of_them() -> None:
    region = torch.tensor([[0.25, 0.5, -0.5]], dtype=torch.float64).expand(4000, 3)
    s, x, y = crop(region, generator()).T
    assert 0.25 * MIN_CROP <= s.min() < s.max() <= 0.25
    for centre, at in ((x, 0.5), (y, -0.5)):
        assert at - 0.25 <= (centre - s).min() < at - 0.249
        assert at + 0.249 < (centre + s).max() <= at + 0.25


# ------------------------------------------------------------------------------------------------------------- views


def test_views_are_transformed_to_all_eight_frames_and_no_other() -> None:
    image = np.arange(16.0).reshape(4, 4)
    frames = {np.rot90(side, k).tobytes() for side in (image, image[:, ::-1]) for k in range(4)}
    turned = turn(torch.from_numpy(image).expand(400, 1, 4, 4), generator()).numpy()
    assert {view[0].tobytes() for view in turned} == frames


def test_restaining_keeps_the_ratio_of_optical_densities() -> None:
    view = torch.rand((64, 3, 8, 8), generator=generator(), dtype=torch.float64) * 0.5 + 0.4
    once, twice = restain(view, generator(1)), restain(view**2, generator(1))
    assert (once < 1).double().mean() > 0.9  # almost nothing is clipped
    torch.testing.assert_close(twice, once**2)
    assert (once - view).abs().mean() > 0.02


def test_glass_stays_white_and_the_expected_share_of_views_loses_its_colour() -> None:
    view = torch.rand((400, 3, 4, 4), generator=generator())
    view[:, :, 0, 0] = 1.0
    restained = restain(view, generator(1))
    torch.testing.assert_close(restained[:, :, 0, 0], torch.ones(400, 3))
    assert 0 <= restained.min() < restained.max() <= 1
    grey = (restained.amax(dim=1) - restained.amin(dim=1)).amax(dim=(1, 2)) < 1e-5
    assert 0.15 < grey.float().mean() < 0.25


def test_blur_keeps_flat_views_and_reduces_the_contrast_of_others() -> None:
    flat = torch.full((5, 3, 6, 6), 0.3)
    torch.testing.assert_close(blur(flat, generator()), flat)
    noise = torch.rand((50, 3, 16, 16), generator=generator())
    spread, before = blur(noise, generator(1)).std(dim=(1, 2, 3)), noise.std(dim=(1, 2, 3))
    # Of white noise a share b mixed with its means over nine pixels keeps sqrt((1 - b)^2 + 2 b (1 - b) / 9 + b^2 / 9).
    assert torch.all(spread < before)
    assert torch.all(spread > 0.38 * before)  # b = 0.7, with some tolerance


# -------------------------------------------------------------------------------------------------------------- loss


def test_the_contrastive_loss_is_the_cross_entropy_of_the_partner_among_all_other_views() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 8))
    both = np.concatenate([first, second])
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    expected, is_correct = [], []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        partner = (i + 5) % 10
        weights = np.exp(unit[others] @ unit[i] / 0.2)
        expected.append(-np.log(np.exp(unit[partner] @ unit[i] / 0.2) / weights.sum()))
        is_correct.append(others[int(weights.argmax())] == partner)
    result = contrastive_loss(torch.from_numpy(first), torch.from_numpy(second), temperature=0.2)
    assert float(result.loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(result.accuracy) == pytest.approx(np.mean(is_correct))


def test_equal_features_cost_the_logarithm_of_the_number_of_choices() -> None:
    same = torch.ones(16, 4)
    assert float(contrastive_loss(same, same).loss) == pytest.approx(np.log(31), rel=1e-5)


def test_distinct_regions_with_equal_views_have_accuracy_one_and_almost_no_loss() -> None:
    distinct = torch.eye(16)
    result = contrastive_loss(distinct, distinct)
    assert float(result.accuracy) == 1
    assert float(result.loss) == pytest.approx(np.log(1 + 30 * np.exp(-10)), rel=1e-4)  # cosine 1 against 30 times 0
