"""Cost of a schedule, and the split of a batch into micro-batches that fit a GPU.

A tree with P regions per parent has P^L last patches: the encoder, and with it memory, time and bytes, depends almost
only on the last layer. This module needs no torch; `magnet.memory` predicts the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from magnet.config import ZoomConfig
from magnet.windows import window_side_px

USABLE_SHARE = 0.9
"""Share of a GPU's memory that a plan may use; the rest is for its context, workspaces and fragmentation."""

MANY_PATCHES = 100
"""Number of last patches above which a schedule causes a warning; the paper's largest, (3, 2, 3, 3), has 54."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileAssumptions:
    """Assumptions about the slides' tiles, for the expected bytes and requests."""

    side_px: int = 256
    """Side of a tile in pixels."""
    bytes_per_pixel: float = 0.3
    """Compressed size in bytes per pixel; 0.3 is that of stained tissue as JPEG of quality 80."""
    opening_requests: int = 2
    """Requests that open a slide (header and directory), once per slide and machine."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Expected reads of one zoom into one slide, for regions at random places that share no tile."""

    windows: int
    """Number of regions read, including the root."""
    tiles: float
    """Number of tiles that the regions touch."""
    requests: float
    """Number of byte ranges, including those that open the slide."""
    size_bytes: float
    """Compressed size of the tiles in bytes."""
    window_bytes: int
    """Size of the pixels that are copied to the GPU, in bytes."""


def estimate_reads(zoom: ZoomConfig, guess: TileAssumptions | None = None) -> Reads:
    """Estimate windows, tiles, requests and bytes per slide.

    A pyramid whose levels halve is read at 1 to 2 level pixels per output pixel; if all scales are equally likely on a
    logarithmic axis, the average is 1 / ln 2 = 1.44. A window of w pixels at a random place touches
    ``1 + (w - 1) / side`` tiles along each axis.

    Args:
        zoom: settings of the tree.
        guess: assumptions about the tiles; None: the defaults.
    """
    guess = guess or TileAssumptions()
    windows, tiles, requests, window_bytes = 0, 0.0, float(guess.opening_requests), 0
    for layer, nodes in enumerate(zoom.num_nodes):
        out_px = zoom.out_px(layer)
        side = out_px / math.log(2) + 2 * zoom.margin_px
        along = 1 + (side - 1) / guess.side_px
        windows += nodes
        tiles += nodes * along**2
        # The tiles of one row are adjacent in the file, so that one range reads a window's whole row of tiles.
        requests += nodes * along
        window_bytes += nodes * 3 * window_side_px(out_px, zoom.margin_px) ** 2
    return Reads(windows, tiles, requests, tiles * guess.side_px**2 * guess.bytes_per_pixel, window_bytes)


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """A split of a step's batch into equal micro-batches."""

    micro_batch: int
    """Number of slides of a forward pass."""
    per_worker: int
    """Number of micro-batches per step of the worker that has most."""


def list_batch_splits(batch: int, num_workers: int) -> list[BatchSplit]:
    """List all splits of a batch into equal micro-batches that give every worker at least one, the largest first.

    Args:
        batch: slides per optimizer step.
        num_workers: workers that share them.
    """
    sizes = [size for size in range(batch // num_workers, 0, -1) if batch % size == 0]
    return [BatchSplit(size, math.ceil(batch // size / num_workers)) for size in sizes]


def find_largest_split(options: list[BatchSplit], fits: Callable[[BatchSplit], bool]) -> BatchSplit | None:
    """Find the largest micro-batch that fits and lets zooms overlap.

    A worker with a single micro-batch per step computes nothing while it waits for pixels. Such a split is used only
    if the batch is too small for any other.

    Args:
        options: result of `list_batch_splits`.
        fits: returns whether a split fits; called for one split after the other, until the first that does.

    Returns:
        The split; None if none fits.
    """
    # Splits come in order of size, so that the first that fits is the largest.
    overlapping = [cut for cut in options if cut.per_worker > 1]
    return next((cut for cut in overlapping or options if fits(cut)), None)


def list_schedule_warnings(zoom: ZoomConfig) -> list[str]:
    """List what a user should know before training a schedule, as sentences for the screen."""
    if zoom.num_patches <= MANY_PATCHES:
        return []
    product = " x ".join(map(str, zoom.schedule))
    smaller_product = math.prod(max(1, p - 1) for p in zoom.schedule)
    return [
        f"{product} = {zoom.num_patches} last patches per slide: the encoder processes each of them in every step, and "
        f"memory, time and bytes grow with their number. One region less per parent would give {smaller_product}"
    ]


def next_smaller_micro_batch(micro_batch: int) -> int | None:
    """Return the size to try after a micro-batch that ran out of memory: half, or the nearest divisor below.

    Returns:
        The number of slides; None after 1.
    """
    return next((size for size in range(micro_batch // 2, 0, -1) if micro_batch % size == 0), None)
