"""Grouped stacks compared with a loop over stacks, and their independence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from magnet.stacks import ConvStacks, Locator

F64 = torch.float64


def views(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def randomise(module: torch.nn.Module) -> Any:
    """Return the module in float64 with all parameters random, also biases and norms."""
    generator = torch.Generator().manual_seed(3)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return module


def one_stack(stacks: Any, g: int, view: torch.Tensor, stride: int) -> torch.Tensor:
    """Apply stack g to views (B, C, H, W), branch by branch, with the same parameters."""
    num = stacks.num_groups
    x = view
    for i, layer in enumerate([*stacks.layers, stacks.last]):
        step = stride if i == 0 else 1
        *sized, pooled = [kernel[g] for kernel in layer.kernels]
        branches = [F.conv2d(x, k, stride=step, padding=k.shape[-1] // 2) for k in sized]
        branches.append(F.conv2d(F.avg_pool2d(x, 3, stride=step, padding=1), pooled))
        bias = layer.bias.view(num, -1)[g].view(1, -1, 1, 1)
        if layer is stacks.last:
            return torch.stack(branches).sum(0)[:, 0] + bias[0, 0]
        x = torch.cat(branches, dim=1) + bias
        norm = stacks.norms[i]
        weight, shift = norm.weight.view(num, -1)[g], norm.bias.view(num, -1)[g]
        x = F.relu(F.group_norm(x, 1, weight, shift))
    raise AssertionError("unreachable")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("kernels", [(1, 3, 5, 7), (1,)])
def test_grouped_stacks_equal_a_loop_over_stacks(stride: int, num_layers: int, kernels: tuple[int, ...]) -> None:
    stacks = randomise(ConvStacks(5, channels=2, kernels=kernels, num_layers=num_layers, inner_stride=stride))
    view = views(2, 5, 3, 16, 16)
    maps = stacks(view)
    for g in range(5):
        expected = one_stack(stacks, g, view[:, g], stride)[:, None]
        if stride == 2:
            expected = F.interpolate(expected, size=(16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(maps[:, g], expected[:, 0], rtol=0, atol=1e-11)


def test_stacks_share_no_parameters_and_no_inputs() -> None:
    stacks = randomise(ConvStacks(3, channels=2))
    view = views(2, 3, 3, 12, 12).requires_grad_()
    stacks(view)[:, 1].square().sum().backward()
    assert view.grad is not None
    assert view.grad[:, 1].abs().sum() > 0
    assert view.grad[:, [0, 2]].abs().sum() == 0
    for name, parameter in stacks.named_parameters():
        grad = parameter.grad.reshape(3, -1)
        assert grad[[0, 2]].abs().sum() == 0, name
        assert grad[1].abs().sum() > 0, name


def test_a_slides_maps_do_not_depend_on_its_batch() -> None:
    stacks = randomise(ConvStacks(2, channels=2))
    view = views(4, 2, 3, 12, 12)
    torch.testing.assert_close(stacks(view)[1:2], stacks(view[1:2]), rtol=0, atol=1e-12)


def test_with_replicated_borders_a_constant_view_gives_a_constant_map() -> None:
    plain = torch.full((1, 1, 3, 24, 24), 0.6)
    spread = {}
    for padding in ("zeros", "replicate"):
        torch.manual_seed(0)
        spread[padding] = float(ConvStacks(1, padding=padding)(plain).std().detach())
    assert spread["replicate"] < 1e-5
    assert spread["zeros"] > 1e-2


def test_one_view_can_be_shown_to_all_stacks() -> None:
    stacks = randomise(ConvStacks(3, channels=2))
    view = views(2, 1, 3, 12, 12)
    torch.testing.assert_close(stacks(view), stacks(view.expand(-1, 3, -1, -1, -1)))


@pytest.mark.parametrize(("share", "num_stacks"), [("node", 6), ("slot", 2), ("layer", 1)])
def test_sharing_determines_which_nodes_have_the_same_stack(share: Any, num_stacks: int) -> None:
    locator = randomise(Locator(3, 2, share, channels=2))
    assert locator.stacks.num_groups == num_stacks
    view = views(2, 1, 3, 12, 12).expand(-1, 3, -1, -1, -1)  # the same view at all three parents
    maps = locator(view)
    assert maps.shape == (2, 3, 2, 12, 12)
    same_for_parents = torch.allclose(maps[:, 0], maps[:, 1])
    same_for_children = torch.allclose(maps[:, :, 0], maps[:, :, 1])
    assert (same_for_parents, same_for_children) == (share != "node", share == "layer")


@pytest.mark.parametrize("share", ["node", "slot", "layer"])
def test_each_map_comes_from_its_own_parents_view(share: Any) -> None:
    locator = randomise(Locator(3, 2, share, channels=2))
    view = views(2, 3, 3, 12, 12).requires_grad_()
    locator(view)[0, 1].square().sum().backward()
    assert view.grad is not None
    touched = view.grad.abs().sum((2, 3, 4)) > 0
    assert touched.tolist() == [[False, True, False], [False, False, False]]


def test_stacks_of_a_node_tree_are_ordered_by_parent_then_child() -> None:
    locator = randomise(Locator(2, 3, "node", channels=2))
    view = views(1, 2, 3, 12, 12)
    expected = one_stack(locator.stacks, 1 * 3 + 2, view[:, 1], 1)
    torch.testing.assert_close(locator(view)[:, 1, 2], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{"num_layers": 1}, {"inner_stride": 4}, {"kernels": (1, 4)}], ids=str)
def test_invalid_options_are_rejected_with_the_allowed_values(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ConvStacks(1, **options)
    with pytest.raises(ValueError, match="must be 'node'"):
        Locator(1, 1, "tree")  # type: ignore[arg-type]
