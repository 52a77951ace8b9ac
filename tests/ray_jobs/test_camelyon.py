"""The paper's protocol on a small copy of the public bucket: manifest, training, and the groups of Table 1."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from magnet.zoom import MagNet
from ray_jobs.command_line.manifests import load_for_training
from ray_jobs.training import bare_loop
from ray_jobs.training.evaluate import evaluate
from service.cohort import camelyon
from service.settings.train import read_train_settings
from service.slides.reader import RegionReader

STAGES = ["negative"] * 8 + ["itc"] * 4 + ["micro"] * 4 + ["macro"] * 4
"""Stages of the Camelyon17 slides here, one slide per patient."""

SMALL = (
    "model.zoom.schedule=[2,2]",
    "model.zoom.map_px=28",
    "model.zoom.view_px=56",
    "model.zoom.patch_px=32",
    "model.classifier.encoder=test_resnet",
    "model.classifier.weights=null",
    "model.auxiliary.encoder=test_resnet",
    "model.auxiliary.weights=null",
    "recipe.batch=4",
    "recipe.micro_batch=2",
)
"""Settings that make the paper's config small enough for a test."""


@pytest.fixture
def bucket(test_data: Path, tmp_path: Path) -> Path:
    """A folder with the bucket's layout, in which all slides are copies of two real ones."""
    names = {f"normal_{n:03}": 0 for n in range(1, 4)} | {f"tumor_{n:03}": 1 for n in range(1, 4)}
    names |= {"test_001": 0, "test_002": 1}
    images = {f"CAMELYON16/images/{name}.tif": label for name, label in names.items()}
    images |= {f"CAMELYON17/images/patient_{n:03}_node_0.tif": int(s != "negative") for n, s in enumerate(STAGES)}
    root = tmp_path / "bucket"
    for key, label in images.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        stand_in = "cmu-1-small-region-pyramid.svs" if label else "he-two-pieces.tif"
        shutil.copy(test_data / "slides" / stand_in, root / key)
    (root / "CAMELYON16/evaluation").mkdir()
    (root / "CAMELYON16/evaluation/reference.csv").write_text("test_001,Normal,None,None\ntest_002,Tumor,IDC,Macro\n")
    rows = [f"patient_{n:03}_node_0.tif,{stage},0" for n, stage in enumerate(STAGES)]
    (root / "CAMELYON17/stages.csv").write_text("\n".join(["patient,stage,center", *rows]) + "\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("fit_on", ["train", "train+val"])
def test_the_papers_config_trains_on_the_manifest_and_is_evaluated_on_the_papers_groups(
    fit_on: str, bucket: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "camelyon.csv"
    assert camelyon.main([str(bucket), str(manifest)]) == 0
    config = Path(__file__).parents[2] / "configs" / "camelyon-3layer.yaml"
    settings = read_train_settings(str(config), [*SMALL, f"fit_on={fit_on}"])
    used = load_for_training(str(manifest), settings)
    train, test = used.split("train"), used.split("test")
    assert Counter(slide.stratum for slide in test) == {"negative": 2, "itc": 1, "micro": 1, "macro": 1}  # a quarter
    assert "itc" not in {slide.stratum for slide in train}
    assert len(train) + len(used.split("val")) == 28 - 5 - 3  # all but the test slides and three with ITC

    torch.manual_seed(0)
    model, losses = MagNet(settings.model), []
    with RegionReader(num_threads=2) as reader:
        steps = len(train) // settings.recipe.batch
        bare_loop.train_bare(model, settings.recipe, train, reader, steps, lambda _, sums: losses.append(sums["loss"]))
        metrics = evaluate(model, test, reader, settings.recipe.precision).metrics("test")
    assert len(losses) == steps >= 3
    for group in ("_macro", "_micro", "_itc", "_macro_micro", ""):
        low, area, high = (metrics[f"test/auroc{group}{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low <= area <= high <= 1
