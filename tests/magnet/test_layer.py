"""A magnifying layer: regions of given maps computed by hand, exploration, inhibition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magnet.config import LocatorConfig
from magnet.layer import MagnifyingLayer, Placement

SIDE = 20
CENTRES = (2 * torch.arange(SIDE) + 1) / SIDE - 1


class FixedMaps(nn.Module):
    """Conv stacks whose maps (B, N, P, H, W) are given and do not depend on the views."""

    def __init__(self, map_BNPHW: Tensor) -> None:
        super().__init__()
        self.map = nn.Parameter(map_BNPHW)

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.map


def peaks_at(*places: tuple[int, int, float]) -> Tensor:
    """Return a map that is 0 except for peaks at (column, row, height)."""
    result = torch.zeros(SIDE, SIDE)
    for column, row, height in places:
        result[row, column] = height
    return result


def place(
    maps: list[list[Tensor]] | Tensor,
    tissue: Tensor | None = None,
    *,
    frozen: bool = False,
    exploration: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Placement:
    """Place the children of one slide's nodes by given maps, one per node and child."""
    map_BNPHW = maps if isinstance(maps, Tensor) else torch.stack([torch.stack(node) for node in maps])[None]
    b, n, p = map_BNPHW.shape[:3]
    layer = MagnifyingLayer(n, p, frozen_first=frozen, config=LocatorConfig(**settings))
    layer.locator = FixedMaps(map_BNPHW)
    tissue_BNHW = torch.ones(b, n, SIDE, SIDE, dtype=torch.bool) if tissue is None else tissue.expand(b, n, -1, -1)
    view_BNCHW = torch.zeros(b, n, 3, SIDE, SIDE)
    return layer(view_BNCHW, tissue_BNHW, exploration, torch.Generator().manual_seed(seed))


def test_one_high_peak_gives_the_smallest_region_around_it() -> None:
    placement = place([[peaks_at((3, 16, 50.0))]])
    x, y = math.tanh(CENTRES[3]), math.tanh(CENTRES[16])
    torch.testing.assert_close(placement.theta_BNP3[0, 0, 0], torch.tensor([0.05, x, y]))
    assert placement.sparse_BNPHW[0, 0, 0, 16, 3] == 1
    assert placement.sparse_BNPHW.sum() == 1


def test_a_flat_map_gives_a_wide_region_in_the_middle() -> None:
    theta = place([[torch.zeros(SIDE, SIDE)]]).theta_BNP3[0, 0, 0]
    rms = math.sqrt((1 - 1 / SIDE**2) / 3)  # of SIDE equal weights at the centres of pixels that tile [-1, 1]
    torch.testing.assert_close(theta, torch.tensor([rms, 0.0, 0.0]))


def test_two_peaks_give_a_region_between_them_as_wide_as_their_distance() -> None:
    theta = place([[peaks_at((4, 9, 50.0), (13, 9, 50.0))]]).theta_BNP3[0, 0, 0]
    apart = float(CENTRES[13] - CENTRES[4])
    expected = [apart / 2 / math.sqrt(2), math.tanh((CENTRES[13] + CENTRES[4]) / 2), math.tanh(CENTRES[9])]
    torch.testing.assert_close(theta, torch.tensor(expected))


def test_each_node_and_child_has_a_separate_map() -> None:
    placement = place(
        [[peaks_at((1, 2, 50.0)), peaks_at((3, 4, 50.0))], [peaks_at((5, 6, 50.0)), peaks_at((7, 8, 50.0))]]
    )
    centre_NP2 = placement.theta_BNP3[0, ..., 1:].atanh()
    expected = torch.stack([CENTRES[[1, 2]], CENTRES[[3, 4]], CENTRES[[5, 6]], CENTRES[[7, 8]]])
    torch.testing.assert_close(centre_NP2.flatten(0, 1), expected)


def test_a_frozen_first_child_is_its_parent_and_the_others_come_from_maps() -> None:
    placement = place([[peaks_at((1, 2, 50.0)), peaks_at((3, 4, 50.0))]] * 3, frozen=True)
    assert placement.theta_BNP3[0, :, 0].tolist() == [[1.0, 0.0, 0.0]] * 3
    assert (placement.sparse_BNPHW[:, :, 0] == 0).all()
    torch.testing.assert_close(placement.theta_BNP3[0, :, 1, 1].atanh(), CENTRES[[3, 3, 3]])


def test_with_the_tissue_mask_only_tissue_is_chosen_if_there_is_any() -> None:
    tissue = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    tissue[:, :10] = True
    two = [[peaks_at((4, 4, 30.0), (15, 15, 60.0))]]
    torch.testing.assert_close(place(two, tissue).theta_BNP3[0, 0, 0, 1:].atanh(), CENTRES[[15, 15]])
    torch.testing.assert_close(place(two, tissue, tissue_mask=True).theta_BNP3[0, 0, 0, 1:].atanh(), CENTRES[[4, 4]])
    none = place(two, torch.zeros_like(tissue), tissue_mask=True)
    torch.testing.assert_close(none.theta_BNP3[0, 0, 0, 1:].atanh(), CENTRES[[15, 15]])


def test_with_a_peak_radius_a_second_peak_does_not_move_the_region() -> None:
    peaks = [[peaks_at((4, 9, 50.0), (15, 9, 49.9))]]
    far = place(peaks).theta_BNP3[0, 0, 0]
    near = place(peaks, peak_radius=0.3).theta_BNP3[0, 0, 0]
    assert CENTRES[5] < far[1].atanh() < CENTRES[14]
    torch.testing.assert_close(near, torch.tensor([0.05, math.tanh(CENTRES[4]), math.tanh(CENTRES[9])]))


def test_normalised_maps_give_the_same_regions_at_any_scale_and_offset() -> None:
    raw = torch.randn(2, 3, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    plain, scaled = (place(m, normalise_maps=True, temperature=0.1).theta_BNP3 for m in (raw, 1000 * raw + 7))
    torch.testing.assert_close(plain, scaled, atol=1e-4, rtol=1e-4)
    assert (place(raw).theta_BNP3 - place(1000 * raw).theta_BNP3).abs().max() > 0.01


def test_a_small_temperature_gives_wide_regions() -> None:
    raw = torch.randn(1, 4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    scales = [place(raw, temperature=t).theta_BNP3[..., 0].mean() for t in (1e-3, 0.1, 10.0)]
    assert scales[0] > scales[1] > scales[2]


def test_value_is_the_map_at_the_centre_of_the_region() -> None:
    y_HW, x_HW = torch.meshgrid(CENTRES, CENTRES, indexing="ij")
    ramp = 0.3 + 0.5 * x_HW - 0.2 * y_HW
    placement = place([[ramp, ramp * 2]], temperature=0.05)
    _, x_NP, y_NP = placement.theta_BNP3[0].unbind(dim=-1)
    expected = (0.3 + 0.5 * x_NP - 0.2 * y_NP) * torch.tensor([1.0, 2.0])
    torch.testing.assert_close(placement.value_BNP[0], expected)


def test_inhibited_siblings_choose_the_peaks_in_order_of_height() -> None:
    peaks = peaks_at((3, 3, 30.0), (15, 4, 25.0), (9, 16, 20.0))
    placement = place([[peaks] * 3], inhibit_siblings=True, scale_min=0.2, scale_max=0.3, peak_radius=0.25)
    expected = torch.stack([CENTRES[[3, 3]], CENTRES[[15, 4]], CENTRES[[9, 16]]])
    torch.testing.assert_close(placement.theta_BNP3[0, 0, :, 1:].atanh(), expected)
    alone = place([[peaks] * 3], scale_min=0.2, scale_max=0.3, peak_radius=0.25)
    assert (alone.theta_BNP3[0, 0] == alone.theta_BNP3[0, 0, 0]).all()


def test_the_inhibition_radius_keeps_siblings_further_apart_than_their_size() -> None:
    peaks = peaks_at((3, 10, 30.0), (7, 10, 29.0), (15, 10, 20.0))  # the second is 0.4 from the first
    options: dict[str, Any] = {"inhibit_siblings": True, "scale_min": 0.1, "scale_max": 0.1, "peak_radius": 0.25}
    near, apart = (place([[peaks] * 2], inhibit_radius=radius, **options) for radius in (0.0, 0.45))
    torch.testing.assert_close(near.theta_BNP3[0, 0, 1, 1].atanh(), CENTRES[7])
    torch.testing.assert_close(apart.theta_BNP3[0, 0, 1, 1].atanh(), CENTRES[15])


@pytest.mark.parametrize("seed", range(5))
def test_a_sibling_has_no_weight_inside_an_earlier_one(seed: int) -> None:
    raw = torch.randn(2, 3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"scale_min": 0.1, "scale_max": 0.2, "peak_radius": 0.25, "centre": "bounded"}
    placement = place(raw, inhibit_siblings=True, **options)
    y_HW, x_HW = torch.meshgrid(CENTRES, CENTRES, indexing="ij")
    for later in range(1, 4):
        for earlier in range(later):
            s, x, y = placement.theta_BNP3[:, :, earlier, :, None, None].unbind(dim=2)
            inside = ((x_HW - x).abs() <= s) & ((y_HW - y).abs() <= s)
            assert placement.sparse_BNPHW[:, :, later][inside].sum() == 0


@pytest.mark.parametrize("centre", ["tanh", "bounded"])
def test_exploration_covers_all_tissue_and_nothing_else(centre: Any) -> None:
    tissue = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    tissue[2:5, 14:19] = True
    flat = torch.zeros(4, 50, 1, SIDE, SIDE)
    options: dict[str, Any] = {"centre": centre, "scale_min": 0.05, "scale_max": 0.05}
    placement = place(flat, tissue, exploration=1.0, **options)
    s, x, y = placement.theta_BNP3.detach().flatten(0, 2).unbind(dim=-1)
    assert (s == 0.05).all()
    column, row = ((c + 1) / 2 * SIDE for c in (x, y))
    assert tissue[row.floor().long(), column.floor().long()].all()
    assert len({(float(a), float(b)) for a, b in zip(x, y, strict=True)}) == 15  # each of its 3 x 5 positions


def test_explored_regions_stay_inside_their_parent_and_contain_the_drawn_position() -> None:
    tissue = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    tissue[0, 19] = True
    s, x, y = place([[torch.zeros(SIDE, SIDE)]], tissue, exploration=1.0).theta_BNP3[0, 0, 0].tolist()
    assert s == pytest.approx(math.sqrt((1 - 1 / SIDE**2) / 3))
    assert (x, y) == pytest.approx((1 - s, s - 1))


def test_exploration_moves_the_expected_share_of_regions() -> None:
    flat = torch.zeros(1, 400, 1, SIDE, SIDE)
    stayed = place(flat, exploration=0.25).theta_BNP3[..., 1:].abs().sum(dim=-1) < 1e-6
    assert 0.66 < stayed.float().mean() < 0.84  # four standard deviations around 0.75


def test_exploration_depends_only_on_the_generator() -> None:
    flat = torch.zeros(2, 3, 2, SIDE, SIDE)
    first, again, other = (place(flat, exploration=0.7, seed=seed).theta_BNP3 for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_exploration_no_random_number_is_drawn() -> None:
    layer = MagnifyingLayer(1, 2, frozen_first=False, config=LocatorConfig())
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    layer(torch.rand(1, 1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool), 0.0, generator)
    assert torch.equal(generator.get_state(), before)


def test_an_explored_child_has_no_gradient_to_its_map() -> None:
    raw = torch.randn(1, 1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.01
    layer = MagnifyingLayer(1, 1, frozen_first=False, config=LocatorConfig())
    layer.locator = maps = FixedMaps(raw)
    view, tissue = torch.zeros(1, 1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    for exploration, follows in ((1.0, False), (0.0, True)):
        theta = layer(view, tissue, exploration, torch.Generator().manual_seed(0)).theta_BNP3
        (gradient,) = torch.autograd.grad(theta.sum(), maps.map)
        assert gradient.abs().max().item() > 0 if follows else not gradient.any()


def test_moments_are_float32_under_autocast() -> None:
    layer = MagnifyingLayer(1, 2, frozen_first=False, config=LocatorConfig())
    view, tissue = torch.rand(1, 1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        placement = layer(view, tissue, 0.0, None)
    assert placement.theta_BNP3.dtype == placement.sparse_BNPHW.dtype == placement.value_BNP.dtype == torch.float32
    torch.testing.assert_close(placement.sparse_BNPHW.sum(dim=(-2, -1)), torch.ones(1, 1, 2))


@pytest.mark.parametrize("spread", ["rms", "l2", "expected"])
@pytest.mark.parametrize("scale_clamp", ["hard", "straight_through", "softplus"])
@pytest.mark.parametrize("centre", ["tanh", "bounded"])
def test_every_interpretation_of_the_papers_theta_matches_its_formula(
    spread: Any, scale_clamp: Any, centre: Any
) -> None:
    # Weights .6 and .4 at two pixels: sparsemax keeps them as they are.
    placement = place([[peaks_at((4, 9, 0.6), (13, 9, 0.4))]], spread=spread, scale_clamp=scale_clamp, centre=centre)
    x = CENTRES[[4, 13]]
    mean = 0.6 * x[0] + 0.4 * x[1]
    size = {
        "rms": math.sqrt((0.6 * (x[0] - mean) ** 2 + 0.4 * (x[1] - mean) ** 2) / 2),
        "l2": float(0.6 * (mean - x[0]) + 0.4 * (x[1] - mean)),
        "expected": 0.6**2 + 0.4**2,
    }[spread]
    scale = 0.05 + 0.05 * math.log1p(math.exp((size - 0.05) / 0.05)) if scale_clamp == "softplus" else size
    limited = torch.tanh if centre == "tanh" else torch.clone  # both regions are inside the parent
    expected = torch.stack([torch.tensor(scale), limited(mean), limited(CENTRES[9])])
    torch.testing.assert_close(placement.theta_BNP3[0, 0, 0], expected)
    flat = place([[peaks_at((4, 9, 50.0))]], spread=spread, scale_clamp=scale_clamp, centre=centre, scale_max=0.5)
    s, *t = flat.theta_BNP3[0, 0, 0].tolist()
    assert 0.05 <= s <= 0.5
    assert centre == "tanh" or max(map(abs, t)) <= 1 - s


@pytest.mark.parametrize("masked", [False, True])
def test_the_scale_can_be_the_expected_value_of_the_map(masked: bool) -> None:
    tissue = torch.ones(SIDE, SIDE, dtype=torch.bool)
    if masked:  # forbidden positions have a score of minus infinity
        tissue[:, SIDE // 2 :] = False
    # Two peaks of .6 and .4 over zeros: sparsemax keeps both as they are, so that the expected value is .36 + .16.
    placement = place([[peaks_at((3, 4, 0.6), (7, 4, 0.4))]], tissue, tissue_mask=masked, spread="expected")
    assert placement.theta_BNP3[0, 0, 0, 0].item() == pytest.approx(0.52)
