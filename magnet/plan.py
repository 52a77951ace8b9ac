"""What a schedule costs, and how a batch is cut to fit a card. Needs no torch; `magnet.memory` measures.

A tree with P regions per parent has P^L last patches: the encoder, and with it memory, time and bytes, follows the
last layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from magnet.config import ZoomConfig
from magnet.windows import window_side_px

USABLE_SHARE = 0.9
"""Of a card's memory that a plan may fill; the rest is for its context, workspaces and fragmentation."""

MANY_PATCHES = 100
"""Last patches above which a schedule is warned about: the paper's largest, (3, 2, 3, 3), has 54."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileGuess:
    """The slides that bytes and requests are expected for."""

    side_px: int = 256
    """Of a tile."""
    bytes_per_pixel: float = 0.3
    """JPEG of stained tissue at quality 80."""
    opening_requests: int = 2
    """Header and directory, once per slide and machine."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What one zoom into one slide reads, expected for regions at random places, no tile shared."""

    windows: int
    """Regions read, the root included."""
    tiles: float
    """Tiles that they touch."""
    requests: float
    """Byte ranges: the tiles of a window's row lie one after the other in the file. Opening included."""
    size_bytes: float
    """Of those tiles."""
    window_bytes: int
    """Pixels that go to the device."""


def expected_reads(zoom: ZoomConfig, guess: TileGuess | None = None) -> Reads:
    """Windows, tiles, requests and bytes per slide.

    A pyramid whose levels halve is read at 1 to 2 level pixels per output pixel; with all scales equally likely on a
    logarithmic axis that is 1 / ln 2 = 1.44 on average. A window of w pixels at a random place touches
    ``1 + (w - 1) / side`` tiles along each axis.
    """
    guess = guess or TileGuess()
    windows, tiles, requests, sent = 0, 0.0, float(guess.opening_requests), 0
    for layer, nodes in enumerate(zoom.num_nodes):
        out_px = zoom.out_px(layer)
        side = out_px / math.log(2) + 2 * zoom.margin_px
        along = 1 + (side - 1) / guess.side_px
        windows += nodes
        tiles += nodes * along**2
        requests += nodes * along
        sent += nodes * 3 * window_side_px(out_px, zoom.margin_px) ** 2
    return Reads(windows, tiles, requests, tiles * guess.side_px**2 * guess.bytes_per_pixel, sent)


@dataclass(frozen=True, slots=True)
class Cut:
    """A way to cut a step's batch."""

    micro_batch: int
    """Slides of a forward pass."""
    per_worker: int
    """Micro-batches of the busiest worker in a step."""


def cuts(batch: int, num_workers: int) -> list[Cut]:
    """All ways to cut a batch into equal micro-batches of which no worker lacks one, the largest first."""
    sizes = [size for size in range(batch // num_workers, 0, -1) if batch % size == 0]
    return [Cut(size, math.ceil(batch // size / num_workers)) for size in sizes]


def largest_that_fits(options: list[Cut], fits: Callable[[Cut], bool]) -> Cut | None:
    """The largest micro-batch that fits and lets zooms overlap; None if none fits.

    A worker with a single micro-batch a step computes nothing while it waits for pixels, so that comes last: it is
    taken only where the batch is too small for anything else.

    Args:
        options: of `cuts`.
        fits: whether one does; asked for one after the other, until the first that does.
    """
    overlapping = [cut for cut in options if cut.per_worker > 1]
    return next((cut for cut in overlapping or options if fits(cut)), None)


def warnings(zoom: ZoomConfig) -> list[str]:
    """What to think about before a schedule is trained."""
    if zoom.num_patches <= MANY_PATCHES:
        return []
    product = " x ".join(map(str, zoom.schedule))
    less = math.prod(max(1, p - 1) for p in zoom.schedule)
    return [
        f"{product} = {zoom.num_patches} last patches per slide: the encoder sees each of them in every step, and "
        f"memory, time and bytes follow their number. One region less per parent would make it {less}"
    ]


def smaller(micro_batch: int) -> int | None:
    """The next size to try after one that ran out of memory: half, or the nearest divisor below; None after 1."""
    return next((size for size in range(micro_batch // 2, 0, -1) if micro_batch % size == 0), None)
