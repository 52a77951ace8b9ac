"""From slides to rows: one per slide, each failure its own, the same whatever is in flight."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.zoom import MagNet
from ray_jobs.rows import Scored, score_slides
from service.manifest import Slide
from service.reader import RegionReader
from service.scores import SCHEMA

BAD = ("empty.svs", "header-only.svs", "random-bytes.svs", "tile-not-decodable.svs", "truncated-half.svs")
SIZE = (700, 500)


@pytest.fixture(scope="module")
def model() -> MagNet:
    torch.manual_seed(0)
    settings = ModelConfig(
        zoom=ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32, grey_tolerance=None, frozen_patch=False),
        locator=LocatorConfig(channels=2),
        classifier=ClassifierConfig(encoder="test_resnet", hidden=8),
        auxiliary=AuxiliaryConfig(encoder=None),
    )
    return MagNet(settings, to_be_loaded=True).eval()


def write_slide(path: Path, seed: int) -> Path:
    """A pyramid of noise in large flakes."""
    flakes = np.random.default_rng(seed).integers(60, 255, (SIZE[1] // 20, SIZE[0] // 20, 3), np.uint8)
    pixels = flakes.repeat(20, axis=0).repeat(20, axis=1)
    with tifffile.TiffWriter(path) as file:
        for n in range(3):
            level = np.ascontiguousarray(pixels[:: 2**n, :: 2**n])
            file.write(level, tile=(64, 64), compression="zlib", subfiletype=int(n > 0), metadata=None)
    return path


def cohort(folder: Path, num: int) -> list[Slide]:
    return [as_slide(n, write_slide(folder / f"s{n}.tif", n)) for n in range(num)]


def as_slide(number: int, path: Path) -> Slide:
    return Slide(row=number, slide_id=path.stem, uri=str(path), patient_id=f"p{number}", label=number % 2)


def score(model: MagNet, slides: list[Slide], **options: Any) -> list[Scored]:
    with RegionReader(num_threads=4) as reader:
        return list(score_slides(model, slides, reader, **options))


def lasting(one: Scored) -> dict[str, Any]:
    """A row without its times."""
    return {name: value for name, value in one.row.items() if name not in ("read_s", "total_s")}


def test_a_row_tells_all_of_a_score(model: MagNet, tmp_path: Path) -> None:
    (slide,) = cohort(tmp_path, 1)
    (one,) = score(model, [slide])
    row = one.row
    assert list(row) == SCHEMA.names
    assert (row["status"], row["reason"], row["schedule"], row["label"]) == ("scored", None, "2,2", 0)
    assert 0 < row["probability"] < 1
    assert row["running"][-1] == row["probability"]
    assert len(row["running"]) == 4
    assert row["num_regions"] == len(row["regions"]) == 1 + 2 + 4
    assert [region["layer"] for region in row["regions"]] == [0, 1, 1, 2, 2, 2, 2]
    root = row["regions"][0]
    assert (root["x_l0"], root["y_l0"], root["side_l0"]) == (0, -100, 700)  # the square around 700 x 500 px
    assert root["downsample"] == 32  # its smallest level, of 175 px, halved while 16 px are left
    assert row["size_bytes"] == Path(slide.uri).stat().st_size
    assert row["bytes_read"] > 0
    assert row["requests"] > 0
    assert row["etag"]
    assert 0 <= row["read_s"] <= row["total_s"] + 1
    assert one.trace is not None
    assert one.trace.views == []


def test_views_are_kept_for_pictures_only_when_asked_for(model: MagNet, tmp_path: Path) -> None:
    (one,) = score(model, cohort(tmp_path, 1), keep_views=True)
    assert one.trace is not None
    assert one.trace.views[-1].shape == (1, 4, 32, 32, 3)
    assert one.trace.views[-1].std() > 1


def test_rows_do_not_depend_on_what_is_in_flight(model: MagNet, tmp_path: Path) -> None:
    slides = cohort(tmp_path, 7)
    one_by_one, four, many = (score(model, slides, in_flight=n) for n in (1, 4, 20))
    assert [one.row["slide_id"] for one in one_by_one] == [slide.slide_id for slide in slides]
    assert list(map(lasting, one_by_one)) == list(map(lasting, four)) == list(map(lasting, many))
    assert len({one.row["probability"] for one in four}) == 7


def test_a_slide_that_cannot_be_read_is_a_row_with_a_reason_and_harms_no_other(
    model: MagNet, tmp_path: Path, test_data: Path
) -> None:
    good = cohort(tmp_path, 3)
    bad = [as_slide(10 + n, Path(shutil.copy(test_data / "bad" / name, tmp_path))) for n, name in enumerate(BAD)]
    missing = as_slide(20, tmp_path / "missing.svs")
    mixed = [bad[0], good[0], bad[1], bad[2], missing, good[1], bad[3], bad[4], good[2]]
    for in_flight in (1, 4):
        found = {one.row["slide_id"]: one for one in score(model, mixed, in_flight=in_flight)}
        assert sorted(found) == sorted(slide.slide_id for slide in mixed)
        for slide in [*bad, missing]:
            row = found[slide.slide_id].row
            assert row["status"] == "failed"
            assert slide.uri in row["reason"]
            assert row["probability"] is row["regions"] is row["running"] is None
            assert found[slide.slide_id].trace is None
        for alone, slide in zip(score(model, good), good, strict=True):
            assert lasting(found[slide.slide_id]) == lasting(alone)


def test_errors_that_are_no_slides_stop_the_scoring(model: MagNet, tmp_path: Path) -> None:
    class Broken(RegionReader):
        def batch(self, uris: Any) -> Any:
            raise ZeroDivisionError

    with Broken() as reader, pytest.raises(ZeroDivisionError):
        list(score_slides(model, cohort(tmp_path, 1), reader))


def test_who_consumes_rows_can_train_between_them(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        for one in score_slides(model, cohort(tmp_path, 2), reader, in_flight=2):
            assert one.row["status"] == "scored"
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()


def test_a_scoring_that_is_given_up_leaves_no_threads(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        rows = score_slides(model, cohort(tmp_path, 5), reader, in_flight=2)
        next(rows)
        rows.close()  # type: ignore[attr-defined]  # it is a generator
        assert next(score_slides(model, cohort(tmp_path, 1), reader)).row["status"] == "scored"


def test_no_slides_no_rows(model: MagNet) -> None:
    assert score(model, []) == []
