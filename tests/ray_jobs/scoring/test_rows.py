"""From slides to rows: one per slide, each failure its own, the same whatever is in flight."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.windows import drive, in_frames
from magnet.zoom import MagNet
from ray_jobs.scoring.rows import Scored, score_slides
from service.cohort.manifest import Slide
from service.results.scores import SCHEMA
from service.settings.score import ZoomSettings
from service.slides.reader import RegionReader

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


UNJUDGED = ZoomSettings(gate=None)
"""Noise is no tissue."""


def score(model: MagNet, slides: list[Slide], settings: ZoomSettings = UNJUDGED, **options: Any) -> list[Scored]:
    with RegionReader(num_threads=4) as reader:
        return list(score_slides(model, slides, reader, settings, **options))


def lasting(one: Scored) -> dict[str, Any]:
    """A row without its times."""
    times = ("read_s", "decode_s", "compute_s", "total_s")
    return {name: value for name, value in one.row.items() if name not in times}


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
    assert row["tiles"] > 0
    assert row["decode_s"] > 0
    assert row["cache_hits"] > 0  # the thumbnail's tiles serve the gate and the zoom
    assert row["disk_hits"] == 0
    assert row["etag"]
    assert 0 <= row["read_s"] <= row["total_s"] + 1
    assert (row["ended"], row["frames"], row["flags"]) == ("complete", 1, ["no_pixel_size"])
    assert [region["parent"] for region in row["regions"]] == [None, 0, 0, 1, 1, 2, 2]
    assert [region["running_probability"] for region in row["regions"]] == [None] * 3 + row["running"]
    assert row["regions"][0]["level"] == 2
    assert root["x_um"] is None
    assert row["windows"] == 7
    assert one.zoomed is not None
    assert all(layer.view_BNHWC is None for layer in one.zoomed.trace.layers)


def test_views_are_kept_for_pictures_only_when_asked_for(model: MagNet, tmp_path: Path) -> None:
    (one,) = score(model, cohort(tmp_path, 1), keep_views=True)
    assert one.zoomed is not None
    view_BNHWC = one.zoomed.trace.layers[-1].view_BNHWC
    assert view_BNHWC is not None
    assert view_BNHWC.shape == (1, 4, 32, 32, 3)
    assert view_BNHWC.std() > 1


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
            assert found[slide.slide_id].zoomed is None
        for alone, slide in zip(score(model, good), good, strict=True):
            assert lasting(found[slide.slide_id]) == lasting(alone)


def test_errors_that_are_no_slides_stop_the_scoring(model: MagNet, tmp_path: Path) -> None:
    class Broken(RegionReader):
        def batch(self, uris: Any) -> Any:
            raise ZeroDivisionError

    with Broken() as reader, pytest.raises(ZeroDivisionError):
        list(score_slides(model, cohort(tmp_path, 1), reader, UNJUDGED))


def test_who_consumes_rows_can_train_between_them(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        for one in score_slides(model, cohort(tmp_path, 2), reader, UNJUDGED, in_flight=2):
            assert one.row["status"] == "scored"
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()


def test_a_scoring_that_is_given_up_leaves_no_threads(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        rows = score_slides(model, cohort(tmp_path, 5), reader, UNJUDGED, in_flight=2)
        next(rows)
        rows.close()  # type: ignore[attr-defined]  # it is a generator
        assert next(score_slides(model, cohort(tmp_path, 1), reader, UNJUDGED)).row["status"] == "scored"


def test_no_slides_no_rows(model: MagNet) -> None:
    assert score(model, []) == []


def test_slides_unfit_to_be_scored_are_refused_and_cost_no_zoom(model: MagNet, tmp_path: Path) -> None:
    slides = cohort(tmp_path, 2)
    for one in score(model, slides, ZoomSettings()):
        assert one.row["status"] == "refused"
        assert "(gate." in one.row["reason"]
        assert one.row["probability"] is None
        assert one.row["etag"]
        assert one.row["windows"] == 0


def test_micrometres_follow_the_slides_pixel_size(model: MagNet, test_data: Path) -> None:
    slide = as_slide(0, test_data / "slides" / "cmu-1-small-region-pyramid.svs")
    (one,) = score(model, [slide], ZoomSettings())
    assert (one.row["status"], one.row["flags"]) == ("scored", [])
    assert one.row["mpp_x"] == 0.499
    for region in one.row["regions"]:
        assert region["x_um"] == pytest.approx(region["x_l0"] * 0.499)
        assert region["height_um"] == pytest.approx(region["side_l0"] * 0.499)
    assert one.row["sharpness"] > 0.9
    assert 0.3 < one.row["tissue"] < 0.4


def test_eight_frames_are_eight_zooms_whose_mean_counts(model: MagNet, tmp_path: Path) -> None:
    (slide,) = cohort(tmp_path, 1)
    (one,), (eight,) = (score(model, [slide], ZoomSettings(gate=None, frames=n)) for n in (1, 8))
    with RegionReader(num_threads=1) as reader, torch.inference_mode():
        batch = reader.batch([slide.uri])
        alone = [
            drive(model.zoom(batch.side_px), in_frames(batch.fetch, np.array([frame])))
            .logit_B.double()
            .sigmoid()
            .item()
            for frame in range(8)
        ]
    assert eight.row["probability"] == pytest.approx(np.mean(alone), abs=1e-6)
    assert one.row["probability"] == pytest.approx(alone[0], abs=1e-6)
    assert eight.row["frames"] == 8
    assert eight.row["windows"] == 8 * one.row["windows"]
    boxes = [[(r["x_l0"], r["y_l0"], r["side_l0"]) for r in each.row["regions"]] for each in (one, eight)]
    assert np.allclose(*boxes)


def test_a_settled_slide_ends_early_on_the_numbers_of_the_whole(model: MagNet, tmp_path: Path) -> None:
    deep = MagNet(replace(model.config, zoom=replace(model.config.zoom, schedule=(3, 3))), to_be_loaded=True).eval()
    slides = cohort(tmp_path, 2)
    whole, settled, never = (
        score(deep, slides, ZoomSettings(gate=None, stop_when_settled=eps)) for eps in (None, 0.999, 0.0)
    )
    for full, early, late in zip(whole, settled, never, strict=True):
        assert early.row["ended"] == "settled"
        assert early.row["running"] == pytest.approx(full.row["running"][:4])
        assert early.row["probability"] == early.row["running"][-1]
        assert early.row["num_regions"] == 1 + 3 + 4
        assert early.row["windows"] == 1 + 3 + 4
        assert late.row["ended"] == "complete"
        assert late.row["running"] == pytest.approx(full.row["running"])


def test_a_bound_on_bytes_ends_a_slide_after_some_patches(model: MagNet, tmp_path: Path) -> None:
    deep = MagNet(replace(model.config, zoom=replace(model.config.zoom, schedule=(3, 3))), to_be_loaded=True).eval()
    (one,) = score(deep, cohort(tmp_path, 1), ZoomSettings(gate=None, max_bytes_per_slide=1))
    assert (one.row["ended"], len(one.row["running"])) == ("bytes", 4)
    assert one.row["status"] == "scored"
