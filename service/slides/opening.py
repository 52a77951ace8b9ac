"""Opening of slides: our own reader for tiled TIFF, OpenSlide for all other formats."""

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
        source: the version to open.
        index_cache: cache in memory for pages of tile positions.
        range_cache: cache on the node's disk for compressed tiles and headers, used for remote slides; None for none.
        counters: the cost of opening is added to these.

    Raises:
        UnsupportedSlideError: neither reader supports the slide; the message has both reasons.
        SlideError: the slide is damaged.
    """
    try:
        if range_cache is not None and isinstance(source, RemoteObject):
            return TiffSlide(CachedObject(source, range_cache), index_cache, counters)
        return TiffSlide(source, index_cache, counters)
    except UnsupportedSlideError as tiff_error:
        try:
            return OpenSlideSlide(source, counters)
        except UnsupportedSlideError as error:
            # Either reason may be the one that the user can act on.
            error.message = f"{error.message} (as a tiled TIFF: {tiff_error.message})"
            raise
