"""The command that draws a few slides with a trained or an untrained network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.windows import drive
from magnet.zoom import MagNet
from ray_jobs import look
from ray_jobs.models import checkpoints
from service import exit_status
from service.settings.parsing import to_dict
from service.slides.reader import RegionReader

TINY = ModelConfig(
    zoom=ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32, frozen_patch=False),
    locator=LocatorConfig(channels=2),
    classifier=ClassifierConfig(encoder="test_resnet", weights="imagenet", hidden=8),  # look.py does not load them
    auxiliary=AuxiliaryConfig(encoder=None),
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"preset": "paper", "model": to_dict(TINY)}))
    return path


def list_files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))


def test_a_config_is_enough_to_draw_the_zooms_of_an_untrained_network(
    config: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = [test_data / "slides" / "cmu-1-small-region.svs", (test_data / "slides" / "he-two-pieces.tif").as_uri()]
    out = tmp_path / "out"
    assert look.main([*map(str, slides), "--config", str(config), "--out", str(out)]) == 0
    names = ("cmu-1-small-region", "he-two-pieces")
    kinds = (("geojson", "geojson"), ("overlays", "jpg"), ("pictures", "jpg"))
    assert list_files(out) == [f"{folder}/{name}.{suffix}" for folder, suffix in kinds for name in names]
    printed = capsys.readouterr().out
    assert "he-two-pieces: 7 regions, 0.2" in printed  # 1 + 2 + 4; the bytes include the header
    assert str(out / "pictures" / "he-two-pieces.jpg") in printed


def test_the_zooms_of_a_trained_network_are_drawn_with_its_weights(test_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model, slide = MagNet(TINY, to_be_loaded=True).eval(), str(test_data / "slides" / "he-two-pieces.tif")
    (tmp_path / "model").mkdir()
    for name, data in checkpoints.pack_checkpoint(model, checkpoints.CheckpointInfo(TINY, 3, {}, 0.25), {}).items():
        (tmp_path / "model" / name).write_bytes(data)
    assert look.main([slide, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 0
    with RegionReader() as reader, torch.inference_mode():
        batch = reader.batch([slide])
        expected = drive(model.zoom(batch.side_px), batch.fetch).logit_B.sigmoid().item()
    collection = json.loads((tmp_path / "out/geojson/he-two-pieces.geojson").read_text())
    assert collection["probability"] == pytest.approx(expected, abs=1e-6)


def test_unreadable_slides_are_named_and_the_others_drawn(
    config: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = [test_data / "bad" / "random-bytes.svs", test_data / "slides" / "he-two-pieces.tif"]
    status = look.main([*map(str, slides), "--config", str(config), "--out", str(tmp_path / "out")])
    assert status == exit_status.SLIDES_FAILED
    assert "random-bytes: failed: " in capsys.readouterr().out
    assert "pictures/he-two-pieces.jpg" in list_files(tmp_path / "out")
