"""The protocol of a zoom: it requests regions and is sent windows of pixels.

A zoom never reads from storage. It is a generator that yields a `WindowRequest`, receives the `Windows` that answer it,
and returns its result at the end. The caller decides where the pixels come from. This module needs only numpy.

Shape letters: N regions, K pixels per side of a window, 3 (s, tx, ty) or RGB, 4 (left, top, pixel width, pixel height).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from magnet.regions import NUM_FRAMES, to_slide_frame

MAX_STEP = 2.0
"""Upper bound of level pixels per output pixel: a reader halves the levels of coarser pyramids."""


def window_side_px(out_px: int, margin_px: int) -> int:
    """Return the side K in pixels of the array in which a window arrives, whatever level it comes from.

    A window covers its region at 1 to `MAX_STEP` level pixels per output pixel, with a margin on each side, and up to
    one more pixel on each side because it starts and ends at whole pixels. The same side for all windows keeps the
    shapes of the model's inputs static.

    Args:
        out_px: side of the view in output pixels.
        margin_px: margin on each side in level pixels.
    """
    return int(np.ceil(MAX_STEP * out_px)) + 2 * margin_px + 2


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """Regions that a zoom needs next, N over all slides of its batch."""

    layer: int
    """Layer of the regions: 0 for the root, L for the last patches."""
    slide: NDArray[np.int64]
    """(N,) position of each region's slide in the batch."""
    region: NDArray[np.float64]
    """(N, 3) regions in root coordinates."""
    out_px: int
    """Side in pixels of the view that the model will sample from each window."""
    margin_px: int
    """Margin in level pixels around each region."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Rectangles of whole level pixels, one for each region of a `WindowRequest`, in its order.

    The model's sampler resamples a window to its region, so that what the model sees does not depend on batching,
    caching or on who read the pixels. Windows are black outside the slide.
    """

    pixels: NDArray[np.uint8]
    """(N, K, K, 3) RGB, K = `window_side_px`; black to the right and below where a window is smaller."""
    place: NDArray[np.float64]
    """(N, 4) left, top, and width and height of one pixel, in root coordinates."""
    level: NDArray[np.float64]
    """(N,) level-0 pixels per window pixel (the downsample of the level that was read), 1 at native resolution."""

    def __post_init__(self) -> None:
        num, high, wide, channels = self.pixels.shape
        if self.pixels.dtype != np.uint8 or high != wide or channels != 3:
            raise ValueError(f"windows: pixels are {self.pixels.dtype} {self.pixels.shape}, want uint8 (N, K, K, 3)")
        if self.place.shape != (num, 4) or self.level.shape != (num,):
            raise ValueError(
                f"windows: {num} of pixels, but place has shape {self.place.shape} and level {self.level.shape}; "
                f"want ({num}, 4) and ({num},)"
            )


Key = TypeVar("Key")
Result = TypeVar("Result")
Caught = TypeVar("Caught", bound=Exception)

Fetch = Callable[[WindowRequest], Windows]
"""Answers one `WindowRequest`."""


def drive(zoom: Generator[WindowRequest, Windows, Result], fetch: Fetch) -> Result:
    """Run a zoom to its end and return its result.

    Args:
        zoom: a generator that was not started.
        fetch: answers each of its requests.
    """
    try:
        request = next(zoom)
        while True:
            request = zoom.send(fetch(request))
    except StopIteration as end:
        return end.value


def drive_many(
    zooms: Iterable[tuple[Key, Generator[WindowRequest, Windows, Result], Fetch]],
    pool: Executor,
    num_in_flight: int,
    catch: type[Caught] | tuple[()] = (),
) -> Iterator[tuple[Key, Result | Caught]]:
    """Run zooms to their ends, several at a time: while one computes, the others wait for their windows.

    Zooms take turns in a fixed order, which does not depend on when windows arrive. So results come in the same order
    in every run (that of `zooms` if all make equally many requests), and so does a sum over them.

    Before each turn of the oldest zoom, the zooms that have made fewer requests than it take a turn, the youngest
    first, provided that enough other zooms have ended since their last request. This spreads the zooms evenly over the
    layers, so that the windows of each are read while older zooms compute their ends. If all zooms made their requests
    at the same time, nothing would be computed while they wait.

    Args:
        zooms: for each zoom a key, which is returned with its result, the generator, and what answers its requests; a
            zoom is taken from the iterable when there is room for it.
        pool: threads that fetch; `num_in_flight` of them are best.
        num_in_flight: number of zooms that have started and not ended. `ZoomConfig.num_in_flight` hides reads that take
            no longer than the end of a zoom computes; n times as many hide reads that take n times as long.
        catch: an error of this type ends only its own zoom and is yielded in place of the result; others are raised.

    Yields:
        Key and result of each zoom.
    """
    pending = iter(zooms)
    active: list[_ActiveZoom[Key, Result]] = []
    num_ended = max_requests = 0
    while True:
        while len(active) < num_in_flight and (entry := next(pending, None)) is not None:
            active.append(_ActiveZoom(*entry))
        if not active:
            return
        oldest = active[0]
        # With this distance between the requests of one zoom, those in flight spread evenly over the layers.
        min_ended = (num_in_flight - 1) // max_requests if max_requests else 0
        behind = [
            zoom
            for zoom in reversed(active)
            if zoom.num_requests < oldest.num_requests and zoom.may_advance(num_ended, min_ended)
        ]
        for zoom in (*behind, oldest):
            try:
                zoom.advance(pool, num_ended)
                continue
            except StopIteration as end:
                result: Result | Caught = end.value
            except catch as error:
                zoom.zoom.close()  # runs what its `finally` blocks do now, and not when it is collected
                result = error
            active.remove(zoom)
            num_ended += 1
            max_requests = max(max_requests, zoom.num_requests)
            yield zoom.key, result


@dataclass(slots=True, eq=False)
class _ActiveZoom(Generic[Key, Result]):
    """A zoom that has been taken and has not ended."""

    key: Key
    zoom: Generator[WindowRequest, Windows, Result]
    fetch: Fetch
    answer: Future[Windows] | None = None
    """Windows that are being fetched; None before the first request."""
    num_requests: int = 0
    """Number of requests made so far."""
    ended_at_request: int = 0
    """Number of zooms that had ended when this one made its last request."""

    def may_advance(self, num_ended: int, min_ended: int) -> bool:
        """Return whether enough zooms have ended since the last request; before the first one none needs to."""
        return self.num_requests == 0 or num_ended - self.ended_at_request >= min_ended

    def advance(self, pool: Executor, num_ended: int) -> None:
        """Wait for the windows, compute, and make the next request.

        Raises:
            StopIteration: with the result, at the end of the zoom.
        """
        # Nothing here may keep the windows: they are large, and the zoom releases them as soon as it has sampled them.
        windows, self.answer = self.answer, None
        request = next(self.zoom) if windows is None else self.zoom.send(windows.result())
        self.num_requests, self.ended_at_request = self.num_requests + 1, num_ended
        self.answer = pool.submit(self.fetch, request)


def wrap_in_frames(fetch: Fetch, frames: NDArray[np.int64]) -> Fetch:
    """Return a `Fetch` for a model that sees each slide in a mirrored or rotated frame.

    Source: the paper, section 4.2 (mirroring and rotation).

    Args:
        fetch: answers requests in the slides' own frame.
        frames: frame of each slide of the batch, 0 to 7; see `magnet.regions.to_slide_frame`.
    """

    def fetch_in_frames(request: WindowRequest) -> Windows:
        frame_N = frames[request.slide]
        region_N3 = request.region.copy()
        for frame in np.unique(frame_N):
            rows = frame_N == frame
            region_N3[rows] = to_slide_frame(request.region[rows], int(frame))
        return turn_windows(fetch(replace(request, region=region_N3)), frame_N)

    return fetch_in_frames


def turn_windows(windows: Windows, frame_N: NDArray[np.int64]) -> Windows:
    """Return windows of the slides' own frame as they look in a mirrored or rotated frame.

    Args:
        windows: N windows.
        frame_N: frame of each window, 0 to 7.
    """
    pixels, place = windows.pixels.copy(), windows.place.copy()
    side = pixels.shape[1]
    for n, frame in enumerate(frame_N):
        if not 0 <= frame < NUM_FRAMES:
            raise ValueError(f"frame {frame}: must be 0 to {NUM_FRAMES - 1}")
        left, top, px_w, px_h = windows.place[n]
        for _ in range(frame % 4):  # rot90 takes the point (x, y) to (y, -x)
            left, top, px_w, px_h = top, -(left + side * px_w), px_h, px_w
        image = np.rot90(windows.pixels[n], frame % 4)
        if frame >= 4:
            left, image = -(left + side * px_w), image[:, ::-1]
        pixels[n], place[n] = image, (left, top, px_w, px_h)
    return Windows(pixels=pixels, place=place, level=windows.level)
