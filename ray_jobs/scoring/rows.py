"""From slides to rows of the score table: several zooms run at once, and a failed slide fails alone.

A slide passes three stages, each with its own type: `OpenedSlide`, `SlideZoom` and `ScoredSlide`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magnet.regions import NUM_FRAMES
from magnet.windows import Fetch, WindowRequest, Windows, drive_many, wrap_in_frames
from magnet.zoom import MagNet, ZoomOptions, ZoomResult
from ray_jobs.scoring.region_rows import to_region_rows
from service.cohort.manifest import Slide
from service.errors import MagnetError
from service.results.early_stopping import has_settled
from service.results.scores import empty_row
from service.settings.score import ZoomSettings
from service.slides.quality import Quality, SlideRefusedError, inspect
from service.slides.reader_protocol import Batch, Reader
from service.slides.slide import SlideInfo

SOFTWARE = ", ".join(f"{name} {version(name)}" for name in ("magnifying-networks", "torch", "timm", "imagecodecs"))
"""Versions of the packages that decide over a score, for the table."""


@dataclass(frozen=True, slots=True)
class OpenedSlide:
    """First stage: a slide whose header is read and whose quality is checked."""

    slide: Slide
    """Row of the manifest."""
    batch: Batch | None
    """The open slide, once per frame; None if it cannot be opened."""
    quality: Quality | None
    """Result of the quality gate; None without a gate, and if the slide did not pass."""
    error: MagnetError | None = None
    """Why the slide is not scored; None if it is."""

    def total(self, counter: str) -> Any:
        """Return a counter of `ReadCounters`, summed over the frames and the quality gate."""
        counters = [] if self.batch is None else list(self.batch.counters)
        if self.quality is not None:
            counters.append(self.quality.counters)
        return sum(getattr(count, counter) for count in counters)


class SlideZoom:
    """Second stage: the zoom into an opened slide, with its clock and the reason why it ended.

    Args:
        opened: the slide.
        settings: settings of the zoom.
    """

    def __init__(self, opened: OpenedSlide, settings: ZoomSettings) -> None:
        self.opened = opened
        self.ended = "complete"
        """Why the zoom ended: "complete", "settled" or "bytes"."""
        self.compute_s = 0.0
        """Seconds that the network computed, without waiting for windows."""
        self._settings = settings
        self._started_s = 0.0
        self._fetch: Fetch | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the zoom started."""
        return time.perf_counter() - self._started_s

    def fetch(self, request: WindowRequest) -> Windows:
        """Answer a request of this zoom."""
        assert self._fetch is not None  # `run` sets it before its first request
        return self._fetch(request)

    # A decorator on the generator, and not a context around the loop in `score_slides`: the consumer of that loop would
    # run in inference mode too.
    @torch.inference_mode()
    def run(self, model: MagNet, *, keep_views: bool) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Zoom into the slide. Several frames are several slides of one zoom.

        Raises:
            MagnetError: the slide cannot be read or was refused.
        """
        self._started_s = time.perf_counter()
        if self.opened.error is not None:
            raise self.opened.error
        batch = self.opened.batch
        assert batch is not None
        self._fetch = wrap_in_frames(batch.fetch, np.arange(self._settings.frames) % NUM_FRAMES)
        should_stop = self._may_end if self._settings.may_end_early else None
        zoom = model.zoom(batch.side_px, ZoomOptions(keep_views=keep_views, should_stop=should_stop))
        windows, started_s = None, time.perf_counter()
        while True:
            try:
                request = next(zoom) if windows is None else zoom.send(windows)
            except StopIteration as end:
                return end.value
            finally:
                self.compute_s += time.perf_counter() - started_s
            windows = yield request
            started_s = time.perf_counter()

    def _may_end(self, running_BN: Tensor) -> bool:
        """Return whether the zoom may end after these patches, and remember why."""
        settings = self._settings
        if settings.stop_when_settled is not None and has_settled(
            _to_probabilities(running_BN), settings.stop_when_settled
        ):
            self.ended = "settled"
        elif settings.max_bytes_per_slide is not None and self.opened.total("bytes") >= settings.max_bytes_per_slide:
            self.ended = "bytes"
        return self.ended != "complete"


@dataclass(frozen=True, slots=True)
class ScoredSlide:
    """Third stage: the row of a slide, and what its pictures are drawn from."""

    row: dict[str, Any]
    """Row of the score table, without model and pictures."""
    opened: OpenedSlide
    """The slide."""
    zoomed: ZoomResult | None
    """Result of the zoom, with the trace in the slide's own frame; None if the slide failed or was refused."""


def score_slides(
    model: MagNet,
    slides: Sequence[Slide],
    reader: Reader,
    settings: ZoomSettings | None = None,
    *,
    in_flight: int = 16,
    keep_views: bool = False,
) -> Iterator[ScoredSlide]:
    """Score slides, several at a time.

    Args:
        model: network in evaluation mode.
        slides: slides with `slide_id` and `uri`.
        reader: reads their pixels.
        settings: which slides are refused and when a zoom ends; None: the defaults.
        in_flight: number of zooms that run at once; the same number of slides is opened ahead.
        keep_views: keep what the model saw in the traces, for pictures.

    Yields:
        One `ScoredSlide` per slide. A slide that cannot be read or is refused has the status "failed" or "refused"
        and a reason; it comes early, the others come in the order of `slides`.
    """
    settings = settings or ZoomSettings()
    with ThreadPoolExecutor(2 * in_flight, thread_name_prefix="fetch") as pool:
        zooms = (
            (zoom, zoom.run(model, keep_views=keep_views), zoom.fetch)
            for zoom in (
                SlideZoom(opened, settings) for opened in _open_ahead(slides, reader, settings, pool, in_flight)
            )
        )
        for zoom, end in drive_many(zooms, pool, in_flight, catch=MagnetError):
            zoomed = None if isinstance(end, MagnetError) else end
            yield ScoredSlide(_to_row(zoom, end, model, settings), zoom.opened, zoomed)


def _open_ahead(
    slides: Sequence[Slide], reader: Reader, settings: ZoomSettings, pool: Executor, num: int
) -> Iterator[OpenedSlide]:
    """Yield the slides in order, while the next `num` are being opened."""

    def submit(slide: Slide) -> Future[OpenedSlide]:
        return pool.submit(_open_slide, slide, reader, settings)

    pending = deque(map(submit, slides[:num]))
    for k in range(len(slides)):
        opened = pending.popleft().result()
        if k + num < len(slides):
            pending.append(submit(slides[k + num]))
        yield opened


def _open_slide(slide: Slide, reader: Reader, settings: ZoomSettings) -> OpenedSlide:
    batch = quality = None
    try:
        # The same slide once per frame: the frames are zoomed together, and each has its own counters.
        batch = reader.batch([slide.uri] * settings.frames)
        if settings.gate is not None:
            quality = inspect(reader, slide.uri, settings.gate)
    except MagnetError as error:
        return OpenedSlide(slide, batch, quality, error)
    return OpenedSlide(slide, batch, quality)


def _to_row(zoom: SlideZoom, end: ZoomResult | MagnetError, model: MagNet, settings: ZoomSettings) -> dict[str, Any]:
    """Return the row of a slide whose zoom has ended, without model and pictures."""
    opened = zoom.opened
    row = empty_row(opened.slide)
    row |= {"schedule": ",".join(map(str, model.config.zoom.schedule)), "frames": settings.frames}
    row |= {"software": SOFTWARE, "compute_s": zoom.compute_s, "total_s": zoom.elapsed_s}
    if opened.batch is not None:
        row |= _slide_columns(opened.batch.info[0]) | _cost_columns(opened)
    if opened.quality is not None:
        row |= {name: getattr(opened.quality, name) for name in ("tissue", "stain", "pen", "sharpness")}
    if isinstance(end, MagnetError):
        return row | {"status": "refused" if isinstance(end, SlideRefusedError) else "failed", "reason": str(end)}
    assert opened.batch is not None
    return row | _result_columns(end, opened.batch.info[0], model, zoom.ended)


def _slide_columns(info: SlideInfo) -> dict[str, Any]:
    mpp_x, mpp_y = info.mpp_xy or (None, None)
    columns = {"etag": info.etag, "size_bytes": info.size_bytes, "mpp_x": mpp_x, "mpp_y": mpp_y}
    return columns | {"width_l0": info.size_px[0], "height_l0": info.size_px[1]}


def _cost_columns(opened: OpenedSlide) -> dict[str, Any]:
    counter_of_column = {"bytes_read": "bytes", "read_s": "wait_s"}
    names = ("requests", "windows", "tiles", "cache_hits", "disk_hits", "decode_s")
    counter_of_column |= {name: name for name in names}
    return {column: opened.total(counter) for column, counter in counter_of_column.items()}


def _result_columns(zoomed: ZoomResult, info: SlideInfo, model: MagNet, ended: str) -> dict[str, Any]:
    running = zoomed.trace.running_BN.mean(axis=0).tolist()  # over the frames
    regions = to_region_rows(zoomed, info, running, model.config.zoom.schedule)
    return {
        "status": "scored",
        "probability": running[-1],
        "running": running,
        "regions": regions,
        "num_regions": len(regions),
        "levels": sorted({region["level"] for region in regions}),
        # A reason that was found at the last patch did not shorten the zoom.
        "ended": ended if len(running) < model.config.zoom.num_patches else "complete",
        "flags": ["no_pixel_size"] if info.mpp_xy is None else [],
    }


def _to_probabilities(running_BN: Tensor) -> list[float]:
    """Return the running probability after each patch, averaged over the frames."""
    return running_BN.double().sigmoid().mean(dim=0).cpu().tolist()
