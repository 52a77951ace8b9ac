"""Reads root views of slides, and streams the micro-batches of a training from the process of its worker.

The regions below the root depend on the model and are requested during the step. A slide whose root view cannot be read
comes with black windows and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from magnet.config import ZoomConfig
from magnet.regions import ROOT
from magnet.windows import WindowRequest, Windows, window_side_px
from ray_jobs.training.input.micro_batch import MicroBatch
from ray_jobs.training.input.order import Order
from ray_jobs.training.quarantine import SlideLostError, raise_lost
from service.slides.reader_protocol import Reader


def make_root_request(num_slides: int, zoom: ZoomConfig) -> WindowRequest:
    """Return the first request of a zoom into `num_slides` slides: their root views."""
    return WindowRequest(0, np.arange(num_slides), np.tile(ROOT, (num_slides, 1)), zoom.view_px, zoom.margin_px)


def read_roots(reader: Reader, uris: Sequence[str], zoom: ZoomConfig) -> tuple[Windows, list[str]]:
    """Read the root views of slides.

    Args:
        reader: reads the slides.
        uris: URIs of the slides.
        zoom: size of a root view.

    Returns:
        Windows, black for a slide that cannot be read; and for each slide the reason, or "" if it was read.
    """
    reasons = [""] * len(uris)
    while True:
        rows = [n for n, reason in enumerate(reasons) if not reason]
        try:
            with raise_lost(uris):
                windows = reader.batch([uris[n] for n in rows]).fetch(make_root_request(len(rows), zoom))
        except SlideLostError as error:  # the others are read again, now without this slide
            reasons = [error.reason if uri == error.uri else reason for uri, reason in zip(uris, reasons, strict=True)]
            continue
        return (windows, reasons) if len(rows) == len(uris) else (_spread(windows, rows, len(uris), zoom), reasons)


def _spread(windows: Windows, rows: Sequence[int], num_slides: int, zoom: ZoomConfig) -> Windows:
    """Return windows for all slides: these in their rows, the others black."""
    side = window_side_px(zoom.view_px, zoom.margin_px)
    result = Windows(
        pixels=np.zeros((num_slides, side, side, 3), dtype=np.uint8),
        place=np.ones((num_slides, 4)),
        level=np.ones(num_slides),
    )
    result.pixels[rows], result.place[rows], result.level[rows] = windows.pixels, windows.place, windows.level
    return result


def stream_locally(
    reader: Reader, uris: Sequence[str], order: Order, zoom: ZoomConfig, *, first_step: int
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of a training with one worker; their root views are read in this process.

    Args:
        reader: reads the root views.
        uris: URIs of the training slides, in the order of their indices.
        order: order of the training.
        zoom: size of a root view.
        first_step: step to start at.
    """
    for step, index in order.share(first_step, rank=0, num_workers=1):
        positions = order.micro_batch_of(step, index)
        slides = order.slides(positions)
        roots, reasons = read_roots(reader, [uris[slide] for slide in slides], zoom)
        yield MicroBatch(
            step, index, slides, order.frames(positions), roots, select_lost_slides(slides.tolist(), reasons)
        )


def select_lost_slides(slides: Sequence[int], reasons: Sequence[str]) -> dict[int, str]:
    """Return the reasons that are not empty, by slide."""
    return {slide: reason for slide, reason in zip(slides, reasons, strict=True) if reason}
