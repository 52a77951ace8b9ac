"""Each slide becomes one row, independent of the slides in flight with it, and a failed slide fails alone."""

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
from magnet.windows import drive, wrap_in_frames
from magnet.zoom import MagNet
from ray_jobs.scoring.rows import ScoredSlide, score_slides
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
    """Write a pyramid with random squares of 20 pixels."""
    squares = np.random.default_rng(seed).integers(60, 255, (SIZE[1] // 20, SIZE[0] // 20, 3), np.uint8)
    pixels = squares.repeat(20, axis=0).repeat(20, axis=1)
    with tifffile.TiffWriter(path) as file:
        for n in range(3):
            level = np.ascontiguousarray(pixels[:: 2**n, :: 2**n])
            file.write(level, tile=(64, 64), compression="zlib", subfiletype=int(n > 0), metadata=None)
    return path


def make_cohort(folder: Path, num: int) -> list[Slide]:
    return [as_slide(n, write_slide(folder / f"s{n}.tif", n)) for n in range(num)]


def as_slide(number: int, path: Path) -> Slide:
    return Slide(row=number, slide_id=path.stem, uri=str(path), patient_id=f"p{number}", label=number % 2)


NO_GATE = ZoomSettings(gate=None)
"""The quality gate would refuse random squares: they are not tissue."""


def score(model: MagNet, slides: list[Slide], settings: ZoomSettings = NO_GATE, **options: Any) -> list[ScoredSlide]:
    with RegionReader(num_threads=4) as reader:
        return list(score_slides(model, slides, reader, settings, **options))


def without_times(scored: ScoredSlide) -> dict[str, Any]:
    times = ("read_s", "decode_s", "compute_s", "total_s")
    return {name: value for name, value in scored.row.items() if name not in times}


def test_a_row_holds_score_regions_and_cost(model: MagNet, tmp_path: Path) -> None:
    (slide,) = make_cohort(tmp_path, 1)
    (scored,) = score(model, [slide])
    row = scored.row
    assert list(row) == SCHEMA.names
    assert (row["status"], row["reason"], row["schedule"], row["label"]) == ("scored", None, "2,2", 0)
    assert 0 < row["probability"] < 1
    assert row["running"][-1] == row["probability"]
    assert len(row["running"]) == 4
    assert row["num_regions"] == len(row["regions"]) == 1 + 2 + 4
    assert [region["layer"] for region in row["regions"]] == [0, 1, 1, 2, 2, 2, 2]
    root = row["regions"][0]
    assert (root["x_l0"], root["y_l0"], root["side_l0"]) == (0, -100, 700)  # the square around 700 x 500 px
    assert root["downsample"] == 32  # the smallest level of 175 px, halved as long as 16 px remain
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
    assert scored.zoomed is not None
    assert all(layer.view_BNHWC is None for layer in scored.zoomed.trace.layers)


def test_views_are_kept_only_on_request(model: MagNet, tmp_path: Path) -> None:
    (scored,) = score(model, make_cohort(tmp_path, 1), keep_views=True)
    assert scored.zoomed is not None
    view_BNHWC = scored.zoomed.trace.layers[-1].view_BNHWC
    assert view_BNHWC is not None
    assert view_BNHWC.shape == (1, 4, 32, 32, 3)
    assert view_BNHWC.std() > 1


def test_rows_do_not_depend_on_what_is_in_flight(model: MagNet, tmp_path: Path) -> None:
    slides = make_cohort(tmp_path, 7)
    one_by_one, four, many = (score(model, slides, in_flight=n) for n in (1, 4, 20))
    assert [scored.row["slide_id"] for scored in one_by_one] == [slide.slide_id for slide in slides]
    assert list(map(without_times, one_by_one)) == list(map(without_times, four)) == list(map(without_times, many))
    assert len({scored.row["probability"] for scored in four}) == 7


def test_an_unreadable_slide_becomes_a_row_with_a_reason_and_affects_no_other(
    model: MagNet, tmp_path: Path, test_data: Path
) -> None:
    good = make_cohort(tmp_path, 3)
    bad = [as_slide(10 + n, Path(shutil.copy(test_data / "bad" / name, tmp_path))) for n, name in enumerate(BAD)]
    missing = as_slide(20, tmp_path / "missing.svs")
    mixed = [bad[0], good[0], bad[1], bad[2], missing, good[1], bad[3], bad[4], good[2]]
    for in_flight in (1, 4):
        by_id = {scored.row["slide_id"]: scored for scored in score(model, mixed, in_flight=in_flight)}
        assert sorted(by_id) == sorted(slide.slide_id for slide in mixed)
        for slide in [*bad, missing]:
            row = by_id[slide.slide_id].row
            assert row["status"] == "failed"
            assert slide.uri in row["reason"]
            assert row["probability"] is row["regions"] is row["running"] is None
            assert by_id[slide.slide_id].zoomed is None
        for alone, slide in zip(score(model, good), good, strict=True):
            assert without_times(by_id[slide.slide_id]) == without_times(alone)


def test_an_error_of_the_program_stops_the_scoring(model: MagNet, tmp_path: Path) -> None:
    class Broken(RegionReader):
        def batch(self, uris: Any) -> Any:
            raise ZeroDivisionError

    with Broken() as reader, pytest.raises(ZeroDivisionError):
        list(score_slides(model, make_cohort(tmp_path, 1), reader, NO_GATE))


def test_the_consumer_of_rows_can_compute_gradients_between_them(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        for scored in score_slides(model, make_cohort(tmp_path, 2), reader, NO_GATE, in_flight=2):
            assert scored.row["status"] == "scored"
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()


def test_a_scoring_that_is_abandoned_does_not_block_the_next(model: MagNet, tmp_path: Path) -> None:
    with RegionReader(num_threads=2) as reader:
        rows = score_slides(model, make_cohort(tmp_path, 5), reader, NO_GATE, in_flight=2)
        next(rows)
        rows.close()  # type: ignore[attr-defined]  # it is a generator
        assert next(score_slides(model, make_cohort(tmp_path, 1), reader, NO_GATE)).row["status"] == "scored"


def test_no_slides_give_no_rows(model: MagNet) -> None:
    assert score(model, []) == []


def test_slides_that_fail_the_quality_gate_are_refused_without_a_zoom(model: MagNet, tmp_path: Path) -> None:
    slides = make_cohort(tmp_path, 2)
    for scored in score(model, slides, ZoomSettings()):
        assert scored.row["status"] == "refused"
        assert "(gate." in scored.row["reason"]
        assert scored.row["probability"] is None
        assert scored.row["etag"]
        assert scored.row["windows"] == 0


def test_micrometres_follow_from_the_slides_pixel_size(model: MagNet, test_data: Path) -> None:
    slide = as_slide(0, test_data / "slides" / "cmu-1-small-region-pyramid.svs")
    (scored,) = score(model, [slide], ZoomSettings())
    assert (scored.row["status"], scored.row["flags"]) == ("scored", [])
    assert scored.row["mpp_x"] == 0.499
    for region in scored.row["regions"]:
        assert region["x_um"] == pytest.approx(region["x_l0"] * 0.499)
        assert region["height_um"] == pytest.approx(region["side_l0"] * 0.499)
    assert scored.row["sharpness"] > 0.9
    assert 0.3 < scored.row["tissue"] < 0.4


def test_eight_frames_are_eight_zooms_whose_probabilities_are_averaged(model: MagNet, tmp_path: Path) -> None:
    (slide,) = make_cohort(tmp_path, 1)
    (single,), (eight,) = (score(model, [slide], ZoomSettings(gate=None, frames=n)) for n in (1, 8))
    with RegionReader(num_threads=1) as reader, torch.inference_mode():
        batch = reader.batch([slide.uri])
        alone = [
            drive(model.zoom(batch.side_px), wrap_in_frames(batch.fetch, np.array([frame])))
            .logit_B.double()
            .sigmoid()
            .item()
            for frame in range(8)
        ]
    assert eight.row["probability"] == pytest.approx(np.mean(alone), abs=1e-6)
    assert single.row["probability"] == pytest.approx(alone[0], abs=1e-6)
    assert eight.row["frames"] == 8
    assert eight.row["windows"] == 8 * single.row["windows"]
    boxes = [[(r["x_l0"], r["y_l0"], r["side_l0"]) for r in each.row["regions"]] for each in (single, eight)]
    assert np.allclose(*boxes)


def test_a_settled_slide_ends_early_with_the_same_running_probabilities(model: MagNet, tmp_path: Path) -> None:
    deep = MagNet(replace(model.config, zoom=replace(model.config.zoom, schedule=(3, 3))), to_be_loaded=True).eval()
    slides = make_cohort(tmp_path, 2)
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


def test_a_limit_of_bytes_ends_a_slide_early(model: MagNet, tmp_path: Path) -> None:
    deep = MagNet(replace(model.config, zoom=replace(model.config.zoom, schedule=(3, 3))), to_be_loaded=True).eval()
    (scored,) = score(deep, make_cohort(tmp_path, 1), ZoomSettings(gate=None, max_bytes_per_slide=1))
    assert (scored.row["ended"], len(scored.row["running"])) == ("bytes", 4)
    assert scored.row["status"] == "scored"
