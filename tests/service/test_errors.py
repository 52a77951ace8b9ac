"""Errors name the place, and keep it across processes."""

from __future__ import annotations

import pickle

import pytest

from service.errors import AccessError, MagnetError, NotFoundError, SlideChangedError, SlideError, StorageError


def test_message_names_slide_level_tile_and_region() -> None:
    error = SlideError("is damaged", uri="s3://b/x.svs", level=2, tile=(3, 4), region=(0.5, 0.0, -0.25))
    assert str(error) == "s3://b/x.svs, level 2, tile (column 3, row 4), region (s 0.5, x 0, y -0.25): is damaged"


def test_locate_adds_what_is_missing_and_keeps_what_is_known() -> None:
    error = SlideError("is damaged", level=1).locate(uri="x.svs", level=9, tile=(0, 1))
    assert (error.uri, error.level, error.tile) == ("x.svs", 1, (0, 1))


@pytest.mark.parametrize("kind", [NotFoundError, AccessError, StorageError, SlideError, SlideChangedError])
def test_errors_survive_pickling(kind: type[MagnetError]) -> None:
    error = kind("went wrong", uri="x.svs", level=1, tile=(2, 3), region=(1.0, 0.0, 0.0))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)


def test_usage_errors_are_value_errors_and_slide_errors_are_not() -> None:
    assert issubclass(NotFoundError, ValueError)
    assert not issubclass(SlideError, ValueError)
    assert not issubclass(StorageError, ValueError)
