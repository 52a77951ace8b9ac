"""From slides to rows: zooms with several slides in flight, each slide's failure its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from magnet.regions import to_level0
from magnet.windows import Ask, Fetch, Windows, drive_many
from magnet.zoom import MagNet, Trace, Zoomed
from service.errors import MagnetError
from service.manifest import Slide
from service.reader import RegionReader, SlideBatch
from service.scores import empty_row

OPENED_AHEAD = 4
"""Slides whose headers are read before their turn."""


@dataclass(slots=True)
class Scored:
    """A slide's row, and its trace if it was scored."""

    slide: Slide
    row: dict[str, Any]
    trace: Trace | None = None
    batch: SlideBatch | None = None
    started_s: float = field(default_factory=time.perf_counter)

    def fetch(self, ask: Ask) -> Windows:
        """Answer the slide's zoom, which opened it."""
        assert self.batch is not None
        return self.batch.fetch(ask)


def score_slides(
    model: MagNet, slides: Sequence[Slide], reader: RegionReader, *, in_flight: int = 4, keep_views: bool = False
) -> Iterator[Scored]:
    """Score slides, several at once.

    Args:
        model: in evaluation mode.
        slides: need `slide_id` and `uri`.
        reader: of their pixels.
        in_flight: slides whose zooms run at once.
        keep_views: keep what the model saw in the traces, for pictures.

    Yields:
        One `Scored` per slide, in their order but that a slide that cannot be read ends early: it has status "failed"
        and the reason.
    """
    with ThreadPoolExecutor(in_flight + OPENED_AHEAD, thread_name_prefix="fetch") as pool:
        zooms = _begin(model, _opened_ahead(slides, reader, pool), reader, keep_views)
        for scored, end in drive_many(zooms, pool, in_flight, catch=MagnetError):
            _fill(scored, end, model)
            yield scored


def _opened_ahead(slides: Sequence[Slide], reader: RegionReader, pool: Executor) -> Iterator[Slide]:
    """The slides, the headers of the next ones on their way; errors show when the slide has its turn."""
    opening = deque(pool.submit(reader.info, slide.uri) for slide in slides[:OPENED_AHEAD])
    for k, slide in enumerate(slides):
        opening.popleft().exception()
        if k + OPENED_AHEAD < len(slides):
            opening.append(pool.submit(reader.info, slides[k + OPENED_AHEAD].uri))
        yield slide


def _begin(
    model: MagNet, slides: Iterator[Slide], reader: RegionReader, keep_views: bool
) -> Iterator[tuple[Scored, Generator[Ask, Windows, Zoomed], Fetch]]:
    for slide in slides:
        scored = Scored(slide, empty_row(slide))
        yield scored, _zoom(model, scored, reader, keep_views), scored.fetch


@torch.inference_mode()  # here and not around the loop above, whose consumer would find itself in it
def _zoom(model: MagNet, scored: Scored, reader: RegionReader, keep_views: bool) -> Generator[Ask, Windows, Zoomed]:
    """A zoom that opens its slide first."""
    scored.started_s = time.perf_counter()
    scored.batch = reader.batch([scored.slide.uri])
    return (yield from model.zoom(scored.batch.side_px, keep_views=keep_views))


def _fill(scored: Scored, end: Zoomed | MagnetError, model: MagNet) -> None:
    """Complete a row with the zoom's end."""
    row = scored.row
    row["schedule"] = ",".join(map(str, model.config.zoom.schedule))
    row["total_s"] = time.perf_counter() - scored.started_s
    if scored.batch is not None:
        counters = scored.batch.counters[0]
        row |= {"bytes_read": counters.bytes, "requests": counters.requests, "read_s": counters.wait_s}
        row |= {"etag": scored.batch.info[0].etag, "size_bytes": scored.batch.info[0].size_bytes}
    if isinstance(end, MagnetError):
        row |= {"status": "failed", "reason": str(end)}
        return
    assert scored.batch is not None
    running = end.running_BN[0].double().sigmoid().cpu().tolist()
    regions = list(_regions(end.trace, scored.batch.info[0].size_px))
    row |= {"status": "scored", "probability": running[-1], "running": running}
    row |= {"regions": regions, "num_regions": len(regions)}
    scored.trace = end.trace


def _regions(trace: Trace, size_px: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Every region of a trace in level-0 pixels."""
    for layer, (region_BN3, level_BN) in enumerate(zip(trace.regions, trace.levels, strict=True)):
        for (x, y, side), downsample in zip(to_level0(region_BN3[0], size_px), level_BN[0], strict=True):
            place = {"x_l0": float(x), "y_l0": float(y), "side_l0": float(side)}
            yield {"layer": layer, **place, "downsample": float(np.float32(downsample))}
