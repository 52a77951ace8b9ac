"""Which reader a slide gets: in place where its format allows, OpenSlide for the rest."""

from __future__ import annotations

from service.errors import UnsupportedSlideError
from service.slides.byte_cache import ByteCache
from service.slides.cached_object import CachedObject
from service.slides.openslide_slide import OpenSlideSlide
from service.slides.planning import Ints
from service.slides.range_cache import RangeCache
from service.slides.slide import SlideFile
from service.slides.tiff_slide import TiffSlide
from service.storage.counters import ReadCounters
from service.storage.ranges import RangeSource, RemoteObject


def open_slide(
    source: RangeSource, index_cache: ByteCache[Ints], range_cache: RangeCache | None, counters: ReadCounters
) -> SlideFile:
    """Open one version of a slide.

    Args:
        source: the version.
        index_cache: pages of tile places in memory.
        range_cache: compressed tiles and headers on the node's disk; local files do without.
        counters: what opening takes is added here.

    Raises:
        UnsupportedSlideError: neither way can read it; the message says what each found.
        SlideError: it is damaged.
    """
    try:
        if range_cache is not None and isinstance(source, RemoteObject):
            return TiffSlide(CachedObject(source, range_cache), index_cache, counters)
        return TiffSlide(source, index_cache, counters)
    except UnsupportedSlideError as not_in_place:
        try:
            return OpenSlideSlide(source, counters)
        except UnsupportedSlideError as error:
            error.message = f"{error.message} (not read in place: {not_in_place.message})"
            raise
