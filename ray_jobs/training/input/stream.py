"""The training slides as a stream: Ray Data reads root views on the cluster's CPUs, ahead of the training steps.

Each worker streams its own share of the order (`Order.share`), so that the stream can start at any step and with any
number of workers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from magnet.config import ZoomConfig
from magnet.windows import Windows
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.micro_batch import MicroBatch
from ray_jobs.training.input.order import Order
from ray_jobs.training.input.roots import read_roots, select_lost_slides
from ray_jobs.training.input.throttle import throttle_datasets
from service.slides.reader import RegionReader

MICRO_BATCHES_PER_BLOCK = 4
"""Micro-batches that one Ray Data task reads."""


def stream(
    uris: Sequence[str], order: Order, zoom: ZoomConfig, *, first_step: int, rank: int, num_workers: int
) -> Iterator[MicroBatch]:
    """Yield a worker's micro-batches from a step on.

    Args:
        uris: URIs of the training slides, in the order of their indices.
        order: order of the training.
        zoom: size of a root view.
        first_step: step to start at.
        rank: rank of this worker.
        num_workers: number of workers in the group.
    """
    share = order.share(first_step, rank, num_workers)
    if not share:
        return
    options = ray.data.DataContext.get_current()
    options.execution_options.preserve_order = True  # blocks that finish early wait for their turn
    options.enable_progress_bars = False  # they would hide the lines of the training
    throttle_datasets()
    read = functools.partial(_read_roots, uris=tuple(uris), order=order, zoom=zoom, share=share)
    num_blocks = -(-len(share) // MICRO_BATCHES_PER_BLOCK)
    rows = ray.data.range(len(share), override_num_blocks=num_blocks).map_batches(read, batch_size=1)
    for k, columns in enumerate(rows.iter_batches(batch_size=order.micro_batch, batch_format="numpy")):
        step, index = share[k]
        positions = columns["position"]
        # A block out of order would train on other slides without any sign of it.
        if not np.array_equal(positions, order.micro_batch_of(step, index)):
            raise RuntimeError(f"step {step}: the stream came out of order, at positions {positions}")
        roots = Windows(pixels=columns["pixels"], place=columns["place"], level=columns["level"])
        slides = order.slides(positions)
        lost = select_lost_slides(slides.tolist(), columns["lost"].tolist())
        yield MicroBatch(step, index, slides, order.frames(positions), roots, lost)


def _read_roots(
    rows: dict[str, NDArray[np.int64]],
    *,
    uris: tuple[str, ...],
    order: Order,
    zoom: ZoomConfig,
    share: list[tuple[int, int]],
) -> dict[str, Any]:
    """Read the root views of some micro-batches of a share, in a task of Ray Data."""
    positions = np.concatenate([order.micro_batch_of(*share[k]) for k in rows["id"]])
    windows, reasons = read_roots(_reader(), [uris[slide] for slide in order.slides(positions)], zoom)
    columns = {"pixels": windows.pixels, "place": windows.place, "level": windows.level}
    return columns | {"position": positions, "lost": np.array(reasons, dtype=object)}


@functools.cache
def _reader() -> RegionReader:
    """Return the reader of this Ray worker process; it serves many tasks, so that headers stay parsed."""
    return RegionReader(tile_cache_bytes=32 << 20, num_threads=8, deadline_s=get_store_deadline_s())
