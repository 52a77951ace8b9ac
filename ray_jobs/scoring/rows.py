"""From slides to rows: zooms with several slides in flight, each slide's failure its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magnet.regions import NUM_FRAMES
from magnet.windows import Fetch, WindowRequest, Windows, drive_many, in_frames
from magnet.zoom import MagNet, Zoomed
from ray_jobs.scoring.region_rows import regions_of
from service.cohort.manifest import Slide
from service.errors import MagnetError
from service.results.early_stopping import has_settled
from service.results.scores import empty_row
from service.settings.score import ZoomSettings
from service.slides.quality import Quality, SlideRefusedError, inspect
from service.slides.reader_protocol import Batch, Reader
from service.slides.slide import SlideInfo

SOFTWARE = ", ".join(f"{name} {version(name)}" for name in ("magnifying-networks", "torch", "timm", "imagecodecs"))


@dataclass(slots=True)
class Scored:
    """A slide's row, and what was found of it if it was scored."""

    slide: Slide
    row: dict[str, Any]
    quality: Quality | None = None
    zoomed: Zoomed | None = None
    """Of the frame as the slide lies; the trace is what the picture is drawn from."""
    batch: Batch | None = None
    fetch: Fetch | None = None
    ended: str = "complete"
    started_s: float = field(default_factory=time.perf_counter)
    compute_s: float = 0.0

    def answer(self, ask: WindowRequest) -> Windows:
        """Answer the slide's zoom."""
        assert self.fetch is not None
        return self.fetch(ask)


def score_slides(
    model: MagNet,
    slides: Sequence[Slide],
    reader: Reader,
    settings: ZoomSettings | None = None,
    *,
    in_flight: int = 16,
    keep_views: bool = False,
) -> Iterator[Scored]:
    """Score slides, several at once.

    Args:
        model: in evaluation mode.
        slides: need `slide_id` and `uri`.
        reader: of their pixels.
        settings: which slides are refused and when a zoom ends; None: the defaults.
        in_flight: slides whose zooms run at once; as many are opened ahead.
        keep_views: keep what the model saw in the traces, for pictures.

    Yields:
        One `Scored` per slide, in their order but that a slide that cannot be read or is refused ends early: it has
        status "failed" or "refused" and the reason.
    """
    settings = settings or ZoomSettings()
    with ThreadPoolExecutor(2 * in_flight, thread_name_prefix="fetch") as pool:
        zooms = (
            (scored, _zoom(model, scored, opened, settings, keep_views), scored.answer)
            for scored, opened in _opened_ahead(slides, reader, settings, pool, in_flight)
        )
        for scored, end in drive_many(zooms, pool, in_flight, catch=MagnetError):
            _fill(scored, end, model, settings)
            yield scored


def _opened_ahead(
    slides: Sequence[Slide], reader: Reader, settings: ZoomSettings, pool: Executor, num: int
) -> Iterator[tuple[Scored, Future[None]]]:
    """The slides, the next `num` being opened and judged; errors show when the slide has its turn."""

    def look_at(scored: Scored) -> None:
        scored.batch = reader.batch([scored.slide.uri] * settings.frames)
        if settings.gate is not None:
            scored.quality = inspect(reader, scored.slide.uri, settings.gate)

    def begin(slide: Slide) -> tuple[Scored, Future[None]]:
        scored = Scored(slide, empty_row(slide))
        return scored, pool.submit(look_at, scored)

    coming = deque(map(begin, slides[:num]))
    for k in range(len(slides)):
        scored, opened = coming.popleft()
        opened.exception()  # waits
        if k + num < len(slides):
            coming.append(begin(slides[k + num]))
        yield scored, opened


@torch.inference_mode()  # here and not around the loop above, whose consumer would find itself in it
def _zoom(
    model: MagNet,
    scored: Scored,
    opened: Future[None],
    settings: ZoomSettings,
    keep_views: bool,
) -> Generator[WindowRequest, Windows, Zoomed]:
    """A zoom into a slide that was opened ahead. Several frames are as many slides of one zoom."""
    scored.started_s = time.perf_counter()
    opened.result()
    assert scored.batch is not None
    scored.fetch = in_frames(scored.batch.fetch, np.arange(settings.frames) % NUM_FRAMES)
    enough = _enough(scored, scored.batch, settings) if settings.may_end_early else None
    zoom = model.zoom(scored.batch.side_px, keep_views=keep_views, enough=enough)
    windows, began = None, time.perf_counter()
    while True:
        try:
            ask = next(zoom) if windows is None else zoom.send(windows)
        except StopIteration as end:
            return end.value
        finally:
            scored.compute_s += time.perf_counter() - began
        windows = yield ask
        began = time.perf_counter()


def _enough(scored: Scored, batch: Batch, settings: ZoomSettings) -> Callable[[Tensor], bool]:
    """Whether a slide's zoom may end where it is; notes why."""

    def enough(running_BN: Tensor) -> bool:
        if settings.stop_when_settled is not None and has_settled(
            _probabilities(running_BN), settings.stop_when_settled
        ):
            scored.ended = "settled"
        elif (
            settings.max_bytes_per_slide is not None and _total(scored, batch, "bytes") >= settings.max_bytes_per_slide
        ):
            scored.ended = "bytes"
        return scored.ended != "complete"

    return enough


def _fill(scored: Scored, end: Zoomed | MagnetError, model: MagNet, settings: ZoomSettings) -> None:
    """Complete a row with the zoom's end."""
    row = scored.row
    row |= {"schedule": ",".join(map(str, model.config.zoom.schedule)), "frames": settings.frames}
    row |= {"software": SOFTWARE, "compute_s": scored.compute_s}
    row["total_s"] = time.perf_counter() - scored.started_s
    if scored.batch is not None:
        row |= _slide_columns(scored.batch.info[0])
        totals = {"bytes_read": "bytes", "read_s": "wait_s"}
        totals |= {name: name for name in ("requests", "windows", "tiles", "cache_hits", "disk_hits", "decode_s")}
        row |= {column: _total(scored, scored.batch, name) for column, name in totals.items()}
    if scored.quality is not None:
        row |= {name: getattr(scored.quality, name) for name in ("tissue", "stain", "pen", "sharpness")}
    if isinstance(end, MagnetError):
        row |= {"status": "refused" if isinstance(end, SlideRefusedError) else "failed", "reason": str(end)}
        return
    assert scored.batch is not None
    info, running = scored.batch.info[0], end.trace.running.mean(axis=0).tolist()  # over the frames
    regions = regions_of(end, info, running, model.config.zoom.schedule)
    row |= {"status": "scored", "probability": running[-1], "running": running, "regions": regions}
    row |= {"num_regions": len(regions), "levels": sorted({region["level"] for region in regions})}
    row["ended"] = scored.ended if len(running) < model.config.zoom.num_patches else "complete"
    row["flags"] = ["no_pixel_size"] if info.mpp_xy is None else []
    scored.zoomed = end


def _slide_columns(info: SlideInfo) -> dict[str, Any]:
    mpp_x, mpp_y = info.mpp_xy or (None, None)
    known = {"etag": info.etag, "size_bytes": info.size_bytes, "mpp_x": mpp_x, "mpp_y": mpp_y}
    return known | {"width_l0": info.size_px[0], "height_l0": info.size_px[1]}


def _total(scored: Scored, batch: Batch, name: str) -> Any:
    """A count over all frames and the quality gate."""
    all_counters = [*batch.counters, *([scored.quality.counters] if scored.quality is not None else [])]
    return sum(getattr(counters, name) for counters in all_counters)


def _probabilities(running_BN: Tensor) -> list[float]:
    """The running probability, its mean over the frames."""
    return running_BN.double().sigmoid().mean(dim=0).cpu().tolist()
