"""Conv stacks: small convolutional networks that map a view to one score per position.

Shape letters: B slides, N parents, P children per parent, G independent stacks, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Share = Literal["node", "slot", "layer"]
Padding = Literal["zeros", "replicate"]

_POOL = 3  # side of the pooled branch's window, as in Inception-v3


class _Mixed(nn.Module):
    """Convolutions of several kernel sizes and an average-pooled branch, for G stacks at once.

    All branches are linear in the input, so that one grouped convolution computes them: their kernels are padded with
    zeros to the largest size and concatenated (or added). Channels are ordered by stack, then by branch.

    Args:
        num_groups: G.
        in_channels: input channels per stack.
        channels: output channels per branch and stack.
        kernels: odd kernel sizes; the pooled branch averages 3 x 3 pixels and mixes their channels.
        stride: stride of all branches.
        add: whether the branches are added instead of concatenated.
        padding: zeros, or the pixels of the border.
    """

    def __init__(
        self,
        num_groups: int,
        in_channels: int,
        channels: int,
        kernels: Sequence[int],
        *,
        stride: int,
        add: bool,
        padding: Padding,
    ) -> None:
        super().__init__()
        self.num_groups, self.stride, self.add, self.padding = num_groups, stride, add, padding
        self.size = max(*kernels, _POOL)
        shape = (num_groups, channels, in_channels)
        self.kernels = nn.ParameterList(torch.empty(*shape, k, k) for k in (*kernels, 1))  # the last is the pooled one
        num_branches = len(self.kernels)
        self.bias = nn.Parameter(torch.zeros(num_groups * channels * (1 if add else num_branches)))
        for kernel in self.kernels:
            fan_in = in_channels * kernel.shape[-1] ** 2 * (num_branches if add else 1)
            nn.init.normal_(kernel, std=(2 / fan_in) ** 0.5)  # He et al. 2015: keeps the spread through ReLUs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, G * in_channels, H, W) to (B, G * out, H / stride, W / stride)."""
        *sized, pooling = self.kernels
        branches = [self._pad(k) for k in (*sized, (pooling / _POOL**2).expand(-1, -1, -1, _POOL, _POOL))]
        kernel = torch.stack(branches).sum(dim=0) if self.add else torch.cat(branches, dim=1)
        weight = kernel.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        reach = self.size // 2
        if self.padding == "replicate":
            x, reach = F.pad(x, [reach] * 4, mode="replicate"), 0
        return F.conv2d(x, weight, self.bias, stride=self.stride, padding=reach, groups=self.num_groups)

    def _pad(self, kernel: Tensor) -> Tensor:
        """Pad a kernel with zeros to the largest size."""
        return F.pad(kernel, [(self.size - kernel.shape[-1]) // 2] * 4)


class ConvStacks(nn.Module):
    """G independent stacks of inception-like layers, run as grouped convolutions without a loop over stacks.

    Each layer except the last concatenates its branches, normalises and rectifies; the last adds one channel from each
    branch. Stacks share no parameter. Each view and stack is normalised separately, so that a slide's regions do not
    depend on the other slides of its batch.

    Args:
        num_groups: G, the number of stacks.
        in_channels: channels of a view.
        channels: channels of each branch; a layer has ``(len(kernels) + 1) * channels`` per stack.
        kernels: odd kernel sizes of the convolutional branches.
        num_layers: layers per stack, including the last; at least 2.
        inner_stride: 1 or 2; 2 computes at half resolution and interpolates the map: a quarter of the work.
        padding: padding of the convolutions. With "zeros" the border itself is a feature, by which maps learn to prefer
            corners.

    Raises:
        ValueError: an argument has another value.

    Source: the paper, section 3.1, "Convolutional layers"; kernels and channels are in an appendix that is not
    available.
    """

    def __init__(
        self,
        num_groups: int,
        *,
        in_channels: int = 3,
        channels: int = 4,
        kernels: Sequence[int] = (1, 3, 5, 7),
        num_layers: int = 3,
        inner_stride: int = 1,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        if num_layers < 2 or inner_stride not in (1, 2) or any(k % 2 == 0 for k in kernels):
            raise ValueError(
                f"num_layers {num_layers}, inner_stride {inner_stride}, kernels {tuple(kernels)}: "
                "must be at least 2, 1 or 2, and odd"
            )
        self.num_groups, self.in_channels = num_groups, in_channels
        width = (len(kernels) + 1) * channels
        inputs = [in_channels] + [width] * (num_layers - 2)
        self.layers = nn.ModuleList(
            _Mixed(num_groups, n, channels, kernels, stride=inner_stride if i == 0 else 1, add=False, padding=padding)
            for i, n in enumerate(inputs)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(num_groups, num_groups * width) for _ in inputs)
        self.last = _Mixed(num_groups, width, 1, kernels, stride=1, add=True, padding=padding)

    def forward(self, view_BGCHW: Tensor) -> Tensor:
        """Return the maps (B, G, H, W) of views (B, G, C, H, W), or of views (B, 1, C, H, W) that all stacks see."""
        size = view_BGCHW.shape[-2:]
        x = view_BGCHW.expand(-1, self.num_groups, -1, -1, -1).flatten(1, 2)  # B (G C) H W
        x = x.contiguous(memory_format=torch.channels_last)  # grouped convolutions with few channels: 3 times faster
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        map_BGHW = self.last(x)
        if map_BGHW.shape[-2:] == size:
            return map_BGHW
        return F.interpolate(map_BGHW, size=size, mode="bilinear", align_corners=False)


class StackOptions(TypedDict, total=False):
    """Keyword arguments of `ConvStacks` that a `Locator` passes on."""

    channels: int
    """Channels of each branch."""
    inner_stride: int
    """Stride of the first layer, 1 or 2."""
    padding: Padding
    """Padding of the convolutions."""


class Locator(nn.Module):
    """The conv stacks of one layer of the tree, which give one map per parent and child.

    Args:
        num_parents: N, nodes of the layer above.
        num_children: P, children per parent.
        share: sharing of stacks. "node": none is shared, N * P stacks (the paper's); "slot": one for the same child of
            all parents, P stacks; "layer": one for all, with one map per parent for all its children.
        **stack: keyword arguments of `ConvStacks`.

    Raises:
        ValueError: unknown sharing.
    """

    def __init__(
        self, num_parents: int, num_children: int, share: Share = "node", **stack: Unpack[StackOptions]
    ) -> None:
        super().__init__()
        if share not in ("node", "slot", "layer"):
            raise ValueError(f"share {share!r}: must be 'node', 'slot' or 'layer'")
        self.num_children, self.share = num_children, share
        num_groups = {"node": num_parents * num_children, "slot": num_children, "layer": 1}[share]
        self.stacks = ConvStacks(num_groups, **stack)

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        """Return the maps (B, N, P, H, W) of views (B, N, C, H, W)."""
        batch, num_parents = view_BNCHW.shape[:2]
        if self.share == "node":
            view_BGCHW = view_BNCHW.repeat_interleave(self.num_children, dim=1)  # G = N P, a view for each child
            return self.stacks(view_BGCHW).view(batch, num_parents, self.num_children, *view_BNCHW.shape[-2:])
        map_BNGHW = self.stacks(view_BNCHW.flatten(0, 1)[:, None]).unflatten(0, (batch, num_parents))
        return map_BNGHW.expand(-1, -1, self.num_children, -1, -1)
