"""The slides that a command works on: which are taken, and that each one is opened before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from ray_jobs import check
from ray_jobs.command_line.manifests import load_for_pretraining, load_for_search, load_for_training
from service.cohort.manifest import ManifestError
from service.errors import UsageError
from service.settings.train import read_train_settings

SETTINGS = read_train_settings(None)


def write_manifest(folder: Path, rows: list[str], header: str = "slide_id,uri,label,split") -> str:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """Four slides that can be opened."""
    paths = [tmp_path / f"slide{n}.tif" for n in range(4)]
    for path in paths:
        tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(128, 128), photometric="rgb", metadata=None)
    return paths


def test_training_slides_are_opened_and_counted(
    slides: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [(split, label) for split in ("train", "val") for label in (0, 1)]
    rows = [f"{split}{label},{slide},{label},{split}" for slide, (split, label) in zip(slides, groups, strict=True)]
    manifest = load_for_training(write_manifest(tmp_path, rows), SETTINGS)
    assert [s.slide_id for s in manifest.split("train")] == ["train0", "train1"]
    assert "4 slides, checking that each one opens" in capsys.readouterr().out


def test_slides_that_cannot_be_opened_are_all_named(slides: list[Path], tmp_path: Path) -> None:
    rows = [f"good,{slides[0]},0,train", f"a,{tmp_path}/a.tif,1,train", f"b,{tmp_path}/b.tif,1,val"]
    with pytest.raises(ManifestError, match=r"(?s)a\.tif.*b\.tif"):
        load_for_training(write_manifest(tmp_path, rows), SETTINGS)


def test_a_search_needs_both_labels_in_the_val_split(slides: list[Path], tmp_path: Path) -> None:
    rows = [f"a,{slides[0]},0,train", f"b,{slides[1]},1,train", f"c,{slides[2]},1,val"]
    with pytest.raises(UsageError, match=r"the val split needs slides of both labels, it has \['1'\]"):
        load_for_search(write_manifest(tmp_path, rows), SETTINGS)


def test_a_pretraining_takes_all_slides_of_a_plain_list_but_only_training_slides_otherwise(tmp_path: Path) -> None:
    plain = write_manifest(tmp_path, ["a,a.tif", "b,b.tif"], "slide_id,uri")
    assert [s.slide_id for s in load_for_pretraining(plain, 1).slides] == ["a", "b"]
    with_splits = write_manifest(tmp_path, ["a,a.tif,train", "b,b.tif,test"], "slide_id,uri,split")
    assert [s.slide_id for s in load_for_pretraining(with_splits, 1).slides] == ["a"]


def test_the_check_command_prints_counts_or_all_problems(
    slides: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path, [f"a,{slides[0]},0,train", f"b,{slides[1]},1,val"])
    assert check.main(["--manifest", manifest]) == 0
    printed = capsys.readouterr().out
    assert "  split: train 1, val 1\n" in printed
    assert "all 2 slides open" in printed
    with pytest.raises(ManifestError, match=r"missing\.tif"):
        check.main(["--manifest", write_manifest(tmp_path, [f"a,{tmp_path}/missing.tif,0,train"])])
