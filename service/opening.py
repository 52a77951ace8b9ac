"""Which reader a slide gets: in place where its format allows, OpenSlide for the rest."""

from __future__ import annotations

from service.counters import ReadCounters
from service.errors import UnsupportedSlideError
from service.openslide_slide import OpenSlideSlide
from service.planning import Ints
from service.slides import Slide
from service.storage.ranges import RangeSource
from service.tiff_slide import TiffSlide
from service.tile_cache import ByteCache


def open_slide(source: RangeSource, index_cache: ByteCache[Ints], counters: ReadCounters) -> Slide:
    """Open one version of a slide.

    Raises:
        UnsupportedSlideError: neither way can read it; the message says what each found.
        SlideError: it is damaged.
    """
    try:
        return TiffSlide(source, index_cache, counters)
    except UnsupportedSlideError as not_in_place:
        try:
            return OpenSlideSlide(source, counters)
        except UnsupportedSlideError as error:
            error.message = f"{error.message} (not read in place: {not_in_place.message})"
            raise
