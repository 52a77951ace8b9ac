"""Value targets of small trees computed by hand, and the calibration on negative slides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magnet.evidence import NegativeQuantile, interpolate_at_patches, interpolate_map, value_loss, value_targets

POSITIVE, NEGATIVE = 1, 0


def test_targets_equal_those_of_a_small_tree_computed_by_hand() -> None:
    # schedule (2, 3): parents a, b with three patches each; the threshold is 1
    patches = torch.tensor(
        [
            [0.0, 2.0, 0.5, -1.0, 0.9, 1.0],  # evidence in a's second patch; 1.0 itself does not exceed it
            [0.0, 0.0, 0.0, 0.0, 0.0, 5.0],  # in b's third
            [9.0, 9.0, 9.0, 9.0, 9.0, 9.0],  # a negative slide has no evidence, also with high logits
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # positive, but without evidence
        ]
    )
    first, second = value_targets(patches, torch.tensor([POSITIVE, POSITIVE, NEGATIVE, POSITIVE]), (2, 3), 1.0)
    assert first.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    assert second.tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6, [0] * 6]


def test_children_of_one_parent_are_adjacent_at_every_depth() -> None:
    patches = torch.zeros(1, 12)
    patches[0, 7] = 1  # of (2, 3, 2): 7 = (1 * 3 + 0) * 2 + 1
    targets = value_targets(patches, torch.tensor([POSITIVE]), (2, 3, 2), 0.5)
    assert [t[0].nonzero().flatten().tolist() for t in targets] == [[1], [3], [7]]
    assert [t.shape for t in targets] == [(1, 2), (1, 6), (1, 12)]


def test_a_schedule_that_does_not_match_the_patches_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"5 patches: schedule \(2, 3\) has 6"):
        value_targets(torch.zeros(1, 5), torch.tensor([POSITIVE]), (2, 3), 0.0)


def test_no_patch_is_evidence_before_the_first_negative_slide() -> None:
    quantile = NegativeQuantile()
    quantile.update(torch.full((2, 4), 3.0), torch.tensor([POSITIVE, POSITIVE]))
    (targets,) = value_targets(torch.full((1, 4), 1e6), torch.tensor([POSITIVE]), (4,), quantile.value)
    assert targets.sum() == 0


def test_the_quantile_is_a_moving_average_over_negative_slides() -> None:
    generator = torch.Generator().manual_seed(0)
    quantile = NegativeQuantile(0.9, momentum=0.25)
    expected = None
    for _ in range(5):
        logits = torch.randn(6, 10, generator=generator)
        labels = torch.tensor([POSITIVE, NEGATIVE] * 3)
        quantile.update(logits, labels)
        new = np.quantile(logits[1::2].double().numpy(), 0.9)
        expected = new if expected is None else 0.75 * expected + 0.25 * new
    assert quantile.value.item() == pytest.approx(expected, abs=1e-6)


def test_the_quantile_converges_to_that_of_the_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    quantile = NegativeQuantile(0.98, momentum=0.02)
    for _ in range(600):
        logits = torch.randn(8, 18, generator=generator) + torch.tensor([[5.0], [0.0]]).repeat(4, 1)
        quantile.update(logits, torch.tensor([POSITIVE, NEGATIVE] * 4))
    share = (torch.randn(100_000, generator=generator) > quantile.value).float().mean().item()
    assert share == pytest.approx(0.02, abs=0.01)  # 72 patches a batch: the sample quantile is a little low


def test_the_quantile_is_part_of_the_state() -> None:
    quantile, other = NegativeQuantile(), NegativeQuantile()
    quantile.update(torch.tensor([[1.5, 1.5]]), torch.tensor([NEGATIVE]))
    other.load_state_dict(quantile.state_dict())
    assert other.value.item() == 1.5


def test_a_calibrated_threshold_gives_no_target_to_patches_without_information() -> None:
    # measured probabilities: lesion .98, a patch without information .4, decoy .17
    logit = torch.logit(torch.tensor([0.98, 0.40, 0.17]))
    quantile = NegativeQuantile()
    negatives = torch.cat([torch.full((1, 49), float(logit[1])), torch.full((1, 49), float(logit[2]))], dim=1)
    quantile.update(negatives, torch.tensor([NEGATIVE]))
    (targets,) = value_targets(logit[None], torch.tensor([POSITIVE]), (3,), quantile.value)
    assert targets.tolist() == [[1, 0, 0]]


def test_values_are_interpolated_at_the_given_points() -> None:
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    maps = torch.stack([10 * y + x, 100 + 10 * y + x])  # (2, 4, 8)
    centres = torch.tensor([[13 / 8 - 1, 3 / 4 - 1], [0.0, 0.0]])  # pixel (x 6, y 1); between the four middle ones
    torch.testing.assert_close(interpolate_map(maps, centres[:, None])[:, 0], torch.tensor([16.0, 100 + 15 + 3.5]))
    corner = torch.tensor([[1.0, 1.0]])  # beyond the centre of the corner pixel, whose value continues
    torch.testing.assert_close(interpolate_map(maps[0], corner), torch.tensor([37.0]))


def test_the_gradient_of_a_value_reaches_the_map_and_not_the_point() -> None:
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    centre = torch.tensor([[[-0.75, 0.25]]], requires_grad=True)
    interpolate_map(maps, centre[:, None]).sum().backward()
    assert maps.grad is not None
    assert maps.grad[0, 0].nonzero().tolist() == [[2, 0]]
    assert centre.grad is None


def test_values_at_patches_come_from_the_map_of_their_branch() -> None:
    side = 40
    x_HW = ((2 * torch.arange(side) + 1) / side - 1).expand(side, side)
    # two parents with one child each, whose maps are ramps of slope 1 and 10; two patches below each
    maps = torch.stack([x_HW, 10 * x_HW])[None, :, None]
    parents = torch.tensor([[[0.5, 0.2, 0.0], [0.25, -0.5, 0.0]]])
    patches = torch.tensor([[[0.1, 0.2, 0.0], [0.1, 0.45, 0.3], [0.1, -0.5, 0.0], [0.1, -0.625, 0.1]]])
    # relative to their parents: 0, half a half-side to the right; 0, half a half-side to the left
    torch.testing.assert_close(interpolate_at_patches(maps, parents, patches), torch.tensor([[0.0, 0.5, 0.0, -5.0]]))


def test_the_value_loss_is_a_mean_over_nodes_of_weight_one() -> None:
    value = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    weight = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    entropy = np.log1p(np.exp(np.where(target == 1, -value.numpy(), value.numpy())))
    np.testing.assert_allclose(value_loss(value, target), entropy.mean(1), atol=1e-6)
    np.testing.assert_allclose(value_loss(value, target, weight), [entropy[0, 1:].mean(), 0], atol=1e-6)


def test_a_quantile_out_of_range_is_rejected() -> None:
    with pytest.raises(ValueError, match="quantile 98"):
        NegativeQuantile(98)
