"""Reader actors on the cluster's CPUs, for workers that should compute and not decode.

For each layer of a micro-batch, a worker sends one request to each reader that has slides of it, and receives the
windows. All requests for a slide go to the same reader, whose caches then hold it. A reader has no state that it could
not read again: if it dies, Ray restarts it and repeats the unanswered requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from zlib import crc32

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from magnet.regions import root_side_px
from magnet.windows import WindowRequest, Windows, window_side_px
from service.errors import MagnetError, SlideChangedError, StorageError
from service.settings.train import ComputeSettings
from service.slides.byte_cache import ByteCache
from service.slides.reader import RegionReader, SlideBatch
from service.slides.reader_protocol import Reader
from service.slides.slide import SlideFile, SlideInfo
from service.storage.counters import ReadCounters

MAX_CONCURRENCY = 8
"""Number of requests that a reader handles at a time: the micro-batches that a few workers have in flight."""
HEADERS_BYTES = 32 << 20
"""Memory for open slides, in the version that each zoom started with."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """Answer of a reader."""

    value: Value | None
    """Result; None after an error."""
    counters: list[ReadCounters]
    """Cost of each slide of the request."""
    error: MagnetError | None = None
    """Error of a slide. It is returned and not raised, since Ray would repeat the request."""


class ReaderActor:
    """A reader; created by `start_readers`.

    Args:
        compute: number of threads and size of the cache.
        deadline_s: seconds, including retries, until a read fails.
    """

    def __init__(self, compute: ComputeSettings, deadline_s: float) -> None:
        self._reader = RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=deadline_s)
        self._opened: ByteCache[SlideFile] = ByteCache(HEADERS_BYTES, lambda slide: slide.memory_bytes)

    def open(self, uris: list[str]) -> Answer[list[SlideInfo]]:
        """Open the current versions of slides."""

        def read_headers(counters: list[ReadCounters]) -> list[SlideInfo]:
            return [self._open_current(uri, count).info for uri, count in zip(uris, counters, strict=True)]

        return _run(len(uris), read_headers)

    def fetch(self, versions: list[tuple[str, str]], request: WindowRequest) -> Answer[Windows]:
        """Read windows of slides.

        Args:
            versions: URI and ETag of each slide.
            request: regions; `request.slide` is an index into `versions`.
        """

        def read_windows(counters: list[ReadCounters]) -> Windows:
            slides = [self._open_version(*version, count) for version, count in zip(versions, counters, strict=True)]
            return SlideBatch(self._reader, slides, counters).fetch(request)

        return _run(len(versions), read_windows)

    def thumbnail(self, uri: str, max_px: int) -> Answer[NDArray[np.uint8]]:
        """See `RegionReader.thumbnail`."""
        return _run(1, lambda counters: self._reader.thumbnail(uri, max_px, counters[0]))

    def _open_current(self, uri: str, counters: ReadCounters) -> SlideFile:
        slide = self._reader.open(uri, counters)
        self._opened.put((uri, slide.info.etag), slide)
        return slide

    def _open_version(self, uri: str, etag: str, counters: ReadCounters) -> SlideFile:
        """Return the slide in this version. A reader that was restarted during a zoom opens it again."""
        slide = self._opened.get((uri, etag)) or self._open_current(uri, counters)
        if slide.info.etag != etag:
            raise SlideChangedError("the slide was replaced while it was being read; open it again", uri=uri)
        return slide


def _run(num_slides: int, work: Callable[[list[ReadCounters]], Value]) -> Answer[Value]:
    """Run the work of an actor's method; an error of a slide becomes part of the answer."""
    counters = [ReadCounters() for _ in range(num_slides)]
    try:
        return Answer(work(counters), counters)
    except MagnetError as error:
        return Answer(None, counters, error)


class RemoteReader:
    """A `service.slides.reader_protocol.Reader` that lets reader actors do the work.

    Args:
        actors: reader actors, see `start_readers`.
        patience_s: seconds until a missing answer is an error; more than a reader's own deadline for a failing store.
    """

    def __init__(self, actors: Sequence[ActorHandle[Any]], patience_s: float) -> None:
        self._actors, self._patience_s = actors, patience_s

    def batch(self, uris: Sequence[str]) -> RemoteBatch:
        """See `service.slides.reader_protocol.Reader.batch`."""
        info: dict[int, SlideInfo] = {}
        counters = [ReadCounters() for _ in uris]
        parts = self._group_by_actor(uris, range(len(uris)))
        calls = [(self._actors[k].open, [uris[b] for b in rows]) for k, rows in parts.items()]
        for rows, infos in zip(parts.values(), self._call(calls, list(parts.values()), counters), strict=True):
            info |= dict(zip(rows, infos, strict=True))
        return RemoteBatch(self, [info[b] for b in range(len(uris))], counters)

    def info(self, uri: str) -> SlideInfo:
        """See `service.slides.reader_protocol.Reader.info`."""
        return self.batch([uri]).info[0]

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """See `service.slides.reader_protocol.Reader.thumbnail`."""
        [actor] = self._group_by_actor([uri], [0])
        cost = [ReadCounters() if counters is None else counters]
        [pixels] = self._call([(self._actors[actor].thumbnail, uri, max_px)], [[0]], cost)
        return np.array(pixels)  # a copy: arrays from Ray's object store are read-only

    def fetch(self, info: Sequence[SlideInfo], counters: Sequence[ReadCounters], request: WindowRequest) -> Windows:
        """Return the windows of a batch; each reader reads those of its slides.

        Args:
            info: slides of the batch.
            counters: counters of the slides, which are increased.
            request: regions; `request.slide` is an index into `info`.
        """
        side, num = window_side_px(request.out_px, request.margin_px), len(request.region)
        pixels = np.empty((num, side, side, 3), dtype=np.uint8)
        place, level = np.empty((num, 4)), np.empty(num)
        parts = self._group_by_actor([slide.uri for slide in info], np.unique(request.slide).tolist())
        rows_of_parts = [np.flatnonzero(np.isin(request.slide, slides)) for slides in parts.values()]
        calls = []
        for (actor, slides), rows in zip(parts.items(), rows_of_parts, strict=True):
            # Within the part, a slide's number is its place in the list of the part's slides.
            part = replace(request, slide=np.searchsorted(slides, request.slide[rows]), region=request.region[rows])
            calls.append((self._actors[actor].fetch, [(info[b].uri, info[b].etag) for b in slides], part))
        for rows, windows in zip(rows_of_parts, self._call(calls, list(parts.values()), counters), strict=True):
            pixels[rows], place[rows], level[rows] = windows.pixels, windows.place, windows.level
        return Windows(pixels, place, level)

    def _group_by_actor(self, uris: Sequence[str], slides: Sequence[int]) -> Mapping[int, list[int]]:
        """Return the slides of each actor, in ascending order.

        A checksum of the URI decides, not Python's `hash`, which differs between processes: all workers must send a
        slide to the same reader.
        """
        parts: dict[int, list[int]] = {}
        for b in slides:
            parts.setdefault(crc32(uris[b].encode()) % len(self._actors), []).append(b)
        return parts

    def _call(
        self, calls: Sequence[tuple[Any, ...]], slides: Sequence[list[int]], counters: Sequence[ReadCounters]
    ) -> list[Any]:
        """Call methods of actors and return their values, or raise the first error.

        Args:
            calls: method and arguments of each call.
            slides: slides of each call, in the order of its answer's counters.
            counters: counters of all slides, which are increased.
        """
        pending = [method.remote(*arguments) for method, *arguments in calls]
        try:
            answers: list[Answer[Any]] = ray.get(pending, timeout=self._patience_s)
        except ray.exceptions.GetTimeoutError as error:
            raise StorageError(f"the reader actors did not answer within {self._patience_s:.0f} s") from error
        except ray.exceptions.RayActorError as error:
            raise StorageError(f"a reader actor died and was not restarted: {error}") from error
        # Counters come before errors: a read that failed has a cost too.
        for answer, rows in zip(answers, slides, strict=True):
            for b, cost in zip(rows, answer.counters, strict=True):
                counters[b].add(cost)
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return [answer.value for answer in answers]


class RemoteBatch:
    """A `service.slides.reader_protocol.Batch`; created by `RemoteReader.batch`."""

    def __init__(self, reader: RemoteReader, info: list[SlideInfo], counters: list[ReadCounters]) -> None:
        self._reader, self.info, self.counters = reader, info, counters
        self.side_px = np.array([root_side_px(slide.size_px) for slide in info], dtype=np.float64)

    def fetch(self, request: WindowRequest) -> Windows:
        """See `service.slides.reader_protocol.Batch.fetch`."""
        return self._reader.fetch(self.info, self.counters, request)


def start_readers(compute: ComputeSettings, deadline_s: float) -> list[ActorHandle[Any]]:
    """Start the readers of the settings, one CPU each, spread over the nodes. They live as long as their handles."""
    actor: Any = ray.remote(ReaderActor).options(
        num_cpus=1,
        scheduling_strategy="SPREAD",
        max_concurrency=MAX_CONCURRENCY,
        max_restarts=-1,  # without limit, as are retries: a read can always be repeated
        max_task_retries=-1,
    )
    return [actor.remote(compute, deadline_s) for _ in range(compute.readers or 0)]


def make_reader(compute: ComputeSettings, actors: Sequence[ActorHandle[Any]], deadline_s: float) -> Reader:
    """Return the reader of a worker: one that calls the actors, if there are any, or else one with its own threads."""
    if actors:
        # An actor needs up to `deadline_s` before it reports a failing store: its answer must be awaited for longer.
        return RemoteReader(actors, 2 * deadline_s)
    return RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=deadline_s)
