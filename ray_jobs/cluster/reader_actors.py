"""Readers on the cluster's CPUs, for workers that should compute and not decode.

A worker sends one message per layer of a micro-batch to each reader that is concerned, and is sent the windows. A slide
always goes to the same reader, whose caches then know it. A reader holds nothing that it could not read again: one that
dies is started anew by Ray, which sends it the unanswered messages once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

MESSAGES_AT_ONCE = 8
"""Messages that a reader works on at a time: the micro-batches that a few workers have in flight."""
OPENED_BYTES = 32 << 20
"""Headers of slides that a reader keeps in the version that a zoom began with."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """What a reader sends back."""

    value: Value | None
    counters: list[ReadCounters]
    """What it took, by slide of the message."""
    error: MagnetError | None = None
    """Why there is no value: a slide's error is an answer, and no reason for Ray to try again."""


class ReaderActor:
    """One reader; made by `started_readers`.

    Args:
        compute: threads and cache.
        deadline_s: seconds until a failing read is given up.
    """

    def __init__(self, compute: ComputeSettings, deadline_s: float) -> None:
        self._reader = RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=deadline_s)
        self._opened: ByteCache[SlideFile] = ByteCache(OPENED_BYTES, lambda slide: slide.memory_bytes)

    def open(self, uris: list[str]) -> Answer[list[SlideInfo]]:
        """The current versions of slides."""

        def look(counters: list[ReadCounters]) -> list[SlideInfo]:
            return [self._now(uri, count).info for uri, count in zip(uris, counters, strict=True)]

        return _answer(len(uris), look)

    def fetch(self, versions: list[tuple[str, str]], ask: WindowRequest) -> Answer[Windows]:
        """Windows of slides, given by URI and ETag; `ask.slide` counts in this list."""

        def read(counters: list[ReadCounters]) -> Windows:
            slides = [self._as_opened(*version, count) for version, count in zip(versions, counters, strict=True)]
            return SlideBatch(self._reader, slides, counters).fetch(ask)

        return _answer(len(versions), read)

    def thumbnail(self, uri: str, max_px: int) -> Answer[NDArray[np.uint8]]:
        """See `RegionReader.thumbnail`."""
        return _answer(1, lambda counters: self._reader.thumbnail(uri, max_px, counters[0]))

    def _now(self, uri: str, counters: ReadCounters) -> SlideFile:
        slide = self._reader.open(uri, counters)
        self._opened.put((uri, slide.info.etag), slide)
        return slide

    def _as_opened(self, uri: str, etag: str, counters: ReadCounters) -> SlideFile:
        """The slide in this version, also in a reader that was started after it was opened."""
        slide = self._opened.get((uri, etag)) or self._now(uri, counters)
        if slide.info.etag != etag:
            raise SlideChangedError("the slide was replaced while it was being read; open it anew", uri=uri)
        return slide


def _answer(num_slides: int, work: Callable[[list[ReadCounters]], Value]) -> Answer[Value]:
    counters = [ReadCounters() for _ in range(num_slides)]
    try:
        return Answer(work(counters), counters)
    except MagnetError as error:
        return Answer(None, counters, error)


class RemoteReader:
    """A `service.slides.reader_protocol.Reader` that lets readers elsewhere do the work.

    Args:
        actors: from `started_readers`.
        patience_s: seconds for an answer, beyond those that a reader has for a failing store.
    """

    def __init__(self, actors: Sequence[ActorHandle[Any]], patience_s: float) -> None:
        self._actors, self._patience_s = actors, patience_s

    def batch(self, uris: Sequence[str]) -> RemoteBatch:
        """See `service.slides.reader_protocol.Reader.batch`."""
        info: dict[int, SlideInfo] = {}
        counters = [ReadCounters() for _ in uris]
        parts = self.by_actor(uris, range(len(uris)))
        messages = [(self._actors[k].open, [uris[b] for b in rows]) for k, rows in parts.items()]
        for rows, found in zip(parts.values(), self.ask(messages, list(parts.values()), counters), strict=True):
            info |= dict(zip(rows, found, strict=True))
        return RemoteBatch(self, [info[b] for b in range(len(uris))], counters)

    def info(self, uri: str) -> SlideInfo:
        """See `service.slides.reader_protocol.Reader.info`."""
        return self.batch([uri]).info[0]

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """See `service.slides.reader_protocol.Reader.thumbnail`."""
        [actor] = self.by_actor([uri], [0])
        took = [ReadCounters() if counters is None else counters]
        [found] = self.ask([(self._actors[actor].thumbnail, uri, max_px)], [[0]], took)
        return np.array(found)  # Ray's is read-only

    def fetch(self, info: Sequence[SlideInfo], counters: Sequence[ReadCounters], ask: WindowRequest) -> Windows:
        """The windows of a batch."""
        side = window_side_px(ask.out_px, ask.margin_px)
        pixels = np.empty((len(ask.region), side, side, 3), dtype=np.uint8)
        place, level = np.empty((len(ask.region), 4)), np.empty(len(ask.region))
        parts = self.by_actor([one.uri for one in info], np.unique(ask.slide).tolist())
        rows = [np.flatnonzero(np.isin(ask.slide, slides)) for slides in parts.values()]
        messages = []
        for (actor, slides), mine in zip(parts.items(), rows, strict=True):
            part = WindowRequest(
                ask.layer, np.searchsorted(slides, ask.slide[mine]), ask.region[mine], ask.out_px, ask.margin_px
            )
            messages.append((self._actors[actor].fetch, [(info[b].uri, info[b].etag) for b in slides], part))
        for mine, found in zip(rows, self.ask(messages, list(parts.values()), counters), strict=True):
            pixels[mine], place[mine], level[mine] = found.pixels, found.place, found.level
        return Windows(pixels, place, level)

    def by_actor(self, uris: Sequence[str], chosen: Sequence[int]) -> Mapping[int, list[int]]:
        """Which actor has which of the chosen slides; in ascending order."""
        parts: dict[int, list[int]] = {}
        for b in chosen:
            parts.setdefault(crc32(uris[b].encode()) % len(self._actors), []).append(b)
        return parts

    def ask(
        self, messages: Sequence[tuple[Any, ...]], slides: Sequence[list[int]], counters: Sequence[ReadCounters]
    ) -> list[Any]:
        """Send messages, each a method and its arguments, about some slides; the values, or the first error."""
        sent = [method.remote(*arguments) for method, *arguments in messages]
        try:
            answers: list[Answer[Any]] = ray.get(sent, timeout=self._patience_s)
        except ray.exceptions.GetTimeoutError as error:
            raise StorageError(f"the reader actors did not answer within {self._patience_s:.0f} s") from error
        except ray.exceptions.RayActorError as error:
            raise StorageError(f"a reader actor is gone and was not started anew: {error}") from error
        for answer, rows in zip(answers, slides, strict=True):
            for b, took in zip(rows, answer.counters, strict=True):
                counters[b].add(took)
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return [answer.value for answer in answers]


class RemoteBatch:
    """A `service.slides.reader_protocol.Batch`; made by `RemoteReader.batch`."""

    def __init__(self, reader: RemoteReader, info: list[SlideInfo], counters: list[ReadCounters]) -> None:
        self._reader, self.info, self.counters = reader, info, counters
        self.side_px = np.array([root_side_px(one.size_px) for one in info], dtype=np.float64)

    def fetch(self, ask: WindowRequest) -> Windows:
        """See `service.slides.reader_protocol.Batch.fetch`."""
        return self._reader.fetch(self.info, self.counters, ask)


def started_readers(compute: ComputeSettings, deadline_s: float) -> list[ActorHandle[Any]]:
    """As many readers as the settings say, one CPU each, spread over the nodes; they live as long as their handles."""
    actor: Any = ray.remote(ReaderActor).options(
        num_cpus=1,
        scheduling_strategy="SPREAD",
        max_concurrency=MESSAGES_AT_ONCE,
        max_restarts=-1,
        max_task_retries=-1,
    )
    return [actor.remote(compute, deadline_s) for _ in range(compute.readers or 0)]


def reader_for(compute: ComputeSettings, actors: Sequence[ActorHandle[Any]], deadline_s: float) -> Reader:
    """What reads for a worker: the readers, where there are any, or threads of its own until its process ends."""
    if actors:
        return RemoteReader(actors, 2 * deadline_s)
    return RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=deadline_s)
