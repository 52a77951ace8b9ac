"""The cohort as a stream: Ray Data reads root views on the cluster's CPUs, ahead of the training steps.

Each training worker streams its own share of the order (`Order.share`), so that the stream starts at any step, with any
number of workers. The regions below the root depend on the model and are asked for during the step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from magnet.config import ZoomConfig
from magnet.regions import ROOT
from magnet.windows import Ask, Windows
from ray_jobs.order import Order
from service.reader import RegionReader

MICRO_BATCHES_PER_BLOCK = 4
"""Micro-batches that one Ray Data task reads."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Slides of one forward pass, their root views read already."""

    step: int
    index: int
    slides: NDArray[np.int64]
    """(B,) places in the list of training slides."""
    frames: NDArray[np.int64]
    """(B,) mirrored or rotated frames."""
    roots: Windows
    """Windows of layer 0, in the slides' own frame."""


def stream(
    uris: Sequence[str], order: Order, zoom: ZoomConfig, *, first_step: int, rank: int, num_workers: int
) -> Iterator[MicroBatch]:
    """A worker's micro-batches from a step on.

    Args:
        uris: of the training slides, as `order` counts them.
        order: of the training.
        zoom: what the root's windows must serve.
        first_step: where to start.
        rank: of this worker.
        num_workers: of the group.
    """
    share = order.share(first_step, rank, num_workers)
    if not share:
        return
    options = ray.data.DataContext.get_current()
    options.execution_options.preserve_order = True
    options.enable_progress_bars = False
    read = functools.partial(_read_roots, uris=tuple(uris), order=order, zoom=zoom, share=share)
    num_blocks = -(-len(share) // MICRO_BATCHES_PER_BLOCK)
    rows = ray.data.range(len(share), override_num_blocks=num_blocks).map_batches(read, batch_size=1)
    for k, columns in enumerate(rows.iter_batches(batch_size=order.micro_batch, batch_format="numpy")):
        step, index = share[k]
        positions = columns["position"]
        if not np.array_equal(positions, order.micro_batch_of(step, index)):
            raise RuntimeError(f"step {step}: the stream came out of order, at positions {positions}")
        roots = Windows(pixels=columns["pixels"], place=columns["place"], level=columns["level"])
        yield MicroBatch(step, index, order.slides(positions), order.frames(positions), roots)


def root_ask(num_slides: int, zoom: ZoomConfig) -> Ask:
    """What a zoom into `num_slides` slides asks first."""
    return Ask(0, np.arange(num_slides), np.tile(ROOT, (num_slides, 1)), zoom.view_px, zoom.margin_px)


def _read_roots(
    numbers: dict[str, NDArray[np.int64]],
    *,
    uris: tuple[str, ...],
    order: Order,
    zoom: ZoomConfig,
    share: list[tuple[int, int]],
) -> dict[str, Any]:
    """Ray Data: root windows of the micro-batches whose numbers come in."""
    positions = np.concatenate([order.micro_batch_of(*share[k]) for k in numbers["id"]])
    batch = _reader().batch([uris[i] for i in order.slides(positions)])
    windows = batch.fetch(root_ask(len(positions), zoom))
    return {"position": positions, "pixels": windows.pixels, "place": windows.place, "level": windows.level}


@functools.cache
def _reader() -> RegionReader:
    """One per Ray worker process, which serves many tasks: headers stay parsed."""
    return RegionReader(tile_cache_bytes=32 << 20, num_threads=8)
