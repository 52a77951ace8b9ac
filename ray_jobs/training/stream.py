"""The cohort as a stream: Ray Data reads root views on the cluster's CPUs, ahead of the training steps.

Each training worker streams its own share of the order (`Order.share`), so that the stream starts at any step, with any
number of workers. The regions below the root depend on the model and are asked for during the step. A slide whose root
cannot be read comes without one, and with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from magnet.config import ZoomConfig
from magnet.regions import ROOT
from magnet.windows import WindowRequest, Windows, window_side_px
from ray_jobs.training.order import Order
from ray_jobs.training.quarantine import SlideLostError, losses_of
from ray_jobs.training.throttle import unhurried
from service import environment
from service.slides.reader import RegionReader
from service.slides.reader_protocol import Reader

MICRO_BATCHES_PER_BLOCK = 4
"""Micro-batches that one Ray Data task reads."""

STORE_PATIENCE_S = 300.0
"""Seconds that a training's reads wait for a store that fails or hangs, well below the 1800 s of a collective."""


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
    lost: Mapping[int, str] = field(default_factory=dict)
    """Why a slide's root could not be read, by the slide's place in the list; its windows are black."""

    def without(self, slides: Container[int]) -> MicroBatch:
        """The same without these slides."""
        kept = [n for n, slide in enumerate(self.slides.tolist()) if slide not in slides]
        if len(kept) == len(self.slides):
            return self
        roots = Windows(pixels=self.roots.pixels[kept], place=self.roots.place[kept], level=self.roots.level[kept])
        return replace(self, slides=self.slides[kept], frames=self.frames[kept], roots=roots, lost={})

    def pieces(self, size: int) -> list[MicroBatch]:
        """The same in micro-batches of `size` slides, which divides it, numbered as if the step were cut into such."""
        num = len(self.slides) // size
        if num <= 1:
            return [self]
        found = []
        for k in range(num):
            part = slice(k * size, (k + 1) * size)
            roots = Windows(pixels=self.roots.pixels[part], place=self.roots.place[part], level=self.roots.level[part])
            slides = self.slides[part]
            lost = {i: reason for i, reason in self.lost.items() if i in slides}
            found.append(MicroBatch(self.step, self.index * num + k, slides, self.frames[part], roots, lost))
        return found


def store_patience_s() -> float:
    """How long a training's reads wait for the store: long enough for a minute's outage, or what the user set."""
    return max(STORE_PATIENCE_S, environment.storage_deadline_s())


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
    unhurried()
    read = functools.partial(_read_roots, uris=tuple(uris), order=order, zoom=zoom, share=share)
    num_blocks = -(-len(share) // MICRO_BATCHES_PER_BLOCK)
    rows = ray.data.range(len(share), override_num_blocks=num_blocks).map_batches(read, batch_size=1)
    for k, columns in enumerate(rows.iter_batches(batch_size=order.micro_batch, batch_format="numpy")):
        step, index = share[k]
        positions = columns["position"]
        if not np.array_equal(positions, order.micro_batch_of(step, index)):
            raise RuntimeError(f"step {step}: the stream came out of order, at positions {positions}")
        roots = Windows(pixels=columns["pixels"], place=columns["place"], level=columns["level"])
        slides = order.slides(positions)
        lost = {int(i): reason for i, reason in zip(slides, columns["lost"], strict=True) if reason}
        yield MicroBatch(step, index, slides, order.frames(positions), roots, lost)


def root_ask(num_slides: int, zoom: ZoomConfig) -> WindowRequest:
    """What a zoom into `num_slides` slides asks first."""
    return WindowRequest(0, np.arange(num_slides), np.tile(ROOT, (num_slides, 1)), zoom.view_px, zoom.margin_px)


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
    windows, lost = read_roots(_reader(), [uris[i] for i in order.slides(positions)], zoom)
    columns = {"pixels": windows.pixels, "place": windows.place, "level": windows.level}
    return columns | {"position": positions, "lost": np.array(lost, dtype=object)}


def read_roots(reader: Reader, uris: Sequence[str], zoom: ZoomConfig) -> tuple[Windows, list[str]]:
    """Root windows of slides, black where a slide cannot be read, and why: a reason for each slide, or ""."""
    reasons = [""] * len(uris)
    while True:
        rows = [n for n, reason in enumerate(reasons) if not reason]
        try:
            with losses_of(uris):
                found = reader.batch([uris[n] for n in rows]).fetch(root_ask(len(rows), zoom))
        except SlideLostError as error:
            reasons = [error.reason if uri == error.uri else reason for uri, reason in zip(uris, reasons, strict=True)]
            continue
        if len(rows) == len(uris):
            return found, reasons
        side = window_side_px(zoom.view_px, zoom.margin_px)
        windows = Windows(
            pixels=np.zeros((len(uris), side, side, 3), dtype=np.uint8),
            place=np.ones((len(uris), 4)),
            level=np.ones(len(uris)),
        )
        windows.pixels[rows], windows.place[rows], windows.level[rows] = found.pixels, found.place, found.level
        return windows, reasons


@functools.cache
def _reader() -> RegionReader:
    """One per Ray worker process, which serves many tasks: headers stay parsed."""
    return RegionReader(tile_cache_bytes=32 << 20, num_threads=8, deadline_s=store_patience_s())
