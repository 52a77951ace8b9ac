"""What a zoom asks for and what it is sent: regions out, windows in.

A zoom never reads from storage. It is a generator: it yields a `WindowRequest`, receives the `Windows` that answer it,
and returns its result at the end. The caller decides where the pixels come from. This module needs only numpy.
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
"""Level pixels per output pixel stay below this: a reader halves the levels of coarser pyramids."""


def window_side_px(out_px: int, margin_px: int) -> int:
    """Side of the array in which a window for `out_px` output pixels arrives, whatever level it comes from.

    A window covers its region at 1 to `MAX_STEP` level pixels per output pixel, `margin_px` more on each side, and up
    to one pixel on each side from snapping to whole pixels. One side for all keeps the model's shapes static.
    """
    return int(np.ceil(MAX_STEP * out_px)) + 2 * margin_px + 2


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """Regions that a zoom wants to see next, N over all slides of its batch."""

    layer: int
    """0 for the root, L for the last patches."""
    slide: NDArray[np.int64]
    """(N,) place of each region's slide in the batch."""
    region: NDArray[np.float64]
    """(N, 3) regions in root coordinates."""
    out_px: int
    """Side in pixels that the model will sample from each window."""
    margin_px: int
    """Level pixels wanted around each region."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Snapped rectangles of level pixels, one for each region of an `WindowRequest`, in its order.

    Which pixels the model sees does not depend on batching, caching or who read them: resampling to the region is
    left to the model's sampler. Black outside the slide.
    """

    pixels: NDArray[np.uint8]
    """(N, K, K, 3) RGB, K = `window_side_px`; black to the right and below where a window is smaller."""
    place: NDArray[np.float64]
    """(N, 4) left, top, and width and height of one pixel, in root coordinates."""
    level: NDArray[np.float64]
    """(N,) level-0 pixels per window pixel (the downsample of the level read), 1 at native resolution."""

    def __post_init__(self) -> None:
        num, high, wide, bands = self.pixels.shape
        if self.pixels.dtype != np.uint8 or high != wide or bands != 3:
            raise ValueError(f"windows: pixels are {self.pixels.dtype} {self.pixels.shape}, want uint8 (N, K, K, 3)")
        if self.place.shape != (num, 4) or self.level.shape != (num,):
            raise ValueError(f"windows: {num} of pixels, place {self.place.shape}, level {self.level.shape}")


Key = TypeVar("Key")
Result = TypeVar("Result")
Caught = TypeVar("Caught", bound=Exception)

Fetch = Callable[[WindowRequest], Windows]
"""Answers one `WindowRequest`."""


def drive(zoom: Generator[WindowRequest, Windows, Result], fetch: Fetch) -> Result:
    """Run a zoom to its end, answering each of its questions by `fetch`."""
    try:
        ask = next(zoom)
        while True:
            ask = zoom.send(fetch(ask))
    except StopIteration as end:
        return end.value


def drive_many(
    zooms: Iterable[tuple[Key, Generator[WindowRequest, Windows, Result], Fetch]],
    pool: Executor,
    num_in_flight: int,
    catch: type[Caught] | tuple[()] = (),
) -> Iterator[tuple[Key, Result | Caught]]:
    """Run zooms to their ends, `num_in_flight` at a time: while one computes, the others wait for their windows.

    Turns are taken in a fixed order, not in that of arriving windows: results come in the same order in every run, that
    of `zooms` where all ask equally often, and a sum over them is the same too. Before each turn of the oldest, those
    that have asked less than it have one, the youngest first, if enough others have ended since they asked. So zooms
    spread evenly over the layers, and what each of them waits for is read while older ones compute their ends. If all
    asked at the same time, nobody would compute while they wait.

    Args:
        zooms: each with a key, which comes back with its result, and what answers it; taken when there is room.
        pool: threads that fetch; as many as `num_in_flight` serve best.
        num_in_flight: zooms begun and not ended; `ZoomConfig.num_in_flight` hides reads that take no longer than the
            end of a zoom computes, n times as many those that take n times as long.
        catch: an error of this kind ends its own zoom alone and comes in place of the result; others are raised.
    """
    coming = iter(zooms)
    begun: list[_Begun[Key, Result]] = []
    num_ended = most_asked = 0
    while True:
        while len(begun) < num_in_flight and (new := next(coming, None)) is not None:
            begun.append(_Begun(*new))
        if not begun:
            return
        oldest = begun[0]
        rest = (num_in_flight - 1) // most_asked if most_asked else 0
        behind = [one for one in reversed(begun) if one.num_asked < oldest.num_asked and one.may_turn(num_ended, rest)]
        for one in (*behind, oldest):
            try:
                one.turn(pool, num_ended)
                continue
            except StopIteration as end:
                result: Result | Caught = end.value
            except catch as error:
                one.zoom.close()
                result = error
            begun.remove(one)
            num_ended += 1
            most_asked = max(most_asked, one.num_asked)
            yield one.key, result


@dataclass(slots=True, eq=False)
class _Begun(Generic[Key, Result]):
    """A zoom on its way."""

    key: Key
    zoom: Generator[WindowRequest, Windows, Result]
    fetch: Fetch
    answer: Future[Windows] | None = None
    num_asked: int = 0
    asked_after: int = 0
    """How many zooms had ended when it asked last."""

    def may_turn(self, num_ended: int, rest: int) -> bool:
        """Whether enough zooms have ended since it asked; nothing is waited for before the first question."""
        return self.num_asked == 0 or num_ended - self.asked_after >= rest

    def turn(self, pool: Executor, num_ended: int) -> None:
        """Wait for the windows, compute, ask for the next. Raises StopIteration with the result at the end."""
        windows, self.answer = self.answer, None  # they are let go of as soon as the zoom does
        ask = next(self.zoom) if windows is None else self.zoom.send(windows.result())
        self.num_asked, self.asked_after = self.num_asked + 1, num_ended
        self.answer = pool.submit(self.fetch, ask)


def in_frames(fetch: Fetch, frames: NDArray[np.int64]) -> Fetch:
    """A `Fetch` for a model that sees slide b of its batch in the mirrored or rotated frame ``frames[b]``.

    `fetch` itself goes on speaking the slides' own frame. Source: the paper, section 4.2 (mirroring and rotation).
    """

    def fetch_in_frames(ask: WindowRequest) -> Windows:
        frame = frames[ask.slide]
        region = ask.region.copy()
        for f in np.unique(frame):
            region[frame == f] = to_slide_frame(ask.region[frame == f], int(f))
        windows = fetch(replace(ask, region=region))
        return turned(windows, frame)

    return fetch_in_frames


def turned(windows: Windows, frame: NDArray[np.int64]) -> Windows:
    """Windows of the slides' own frame as they look in each row's mirrored or rotated frame."""
    pixels, place = windows.pixels.copy(), windows.place.copy()
    side = pixels.shape[1]
    for n, f in enumerate(frame):
        if not 0 <= f < NUM_FRAMES:
            raise ValueError(f"frame {f}: must be 0 to {NUM_FRAMES - 1}")
        left, top, px_w, px_h = windows.place[n]
        for _ in range(f % 4):  # rot90 takes the point (x, y) to (y, -x)
            left, top, px_w, px_h = top, -(left + side * px_w), px_h, px_w
        image = np.rot90(windows.pixels[n], f % 4)
        if f >= 4:
            left, image = -(left + side * px_w), image[:, ::-1]
        pixels[n], place[n] = image, (left, top, px_w, px_h)
    return Windows(pixels=pixels, place=place, level=windows.level)
