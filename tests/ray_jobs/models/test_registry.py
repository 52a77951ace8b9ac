"""Models in a real MLflow registry (SQLite): they are registered, found by name, promoted, and score slides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import tifffile
import torch
from mlflow import MlflowClient

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.zoom import MagNet
from ray_jobs import promote
from ray_jobs.models import checkpoints, registry
from ray_jobs.models.registry import ModelNotFoundError, format_ui_command, resolve
from ray_jobs.scoring.rows import score_slides
from ray_jobs.tracking import mlflow_run
from service.cohort.manifest import Slide
from service.slides.reader import RegionReader

pytestmark = pytest.mark.slow  # MLflow needs seconds to log a model

CONFIG = ModelConfig(
    zoom=ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32, grey_tolerance=None),
    locator=LocatorConfig(channels=2),
    classifier=ClassifierConfig(encoder="test_resnet", hidden=8),
    auxiliary=AuxiliaryConfig(encoder=None),
)


@dataclass(frozen=True)
class Store:
    """A tracking store with a registered model that has two versions."""

    uri: str
    run_id: str
    folders: tuple[Path, Path]
    versions: tuple[str, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    run_id, _ = mlflow_run.start_run(uri, experiment="e", name="job", storage=str(folder))
    folders, versions = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        checkpoint = tmp_path_factory.mktemp(f"checkpoint{seed}")
        saved = checkpoints.CheckpointInfo(CONFIG, 10 + seed, {}, 0.5)
        for name, data in checkpoints.pack_checkpoint(MagNet(CONFIG, to_be_loaded=True), saved, {}).items():
            (checkpoint / name).write_bytes(data)
        alias = ("champion", "challenger")[seed]
        versions.append(registry.register(uri, run_id, checkpoint, name="magnet", alias=alias))
        folders.append(checkpoint)
    yield Store(uri, run_id, (folders[0], folders[1]), (versions[0], versions[1]))
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def test_only_a_command_makes_a_model_the_champion(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert promote.main(["models:/magnet@challenger", "--alias", "best"]) == 0
    assert capsys.readouterr().out == "models:/magnet@best is now version 2 (the alias is new)\n"
    assert resolve("models:/magnet@best", store.uri, tmp_path)[1] == "2"
    promote.main(["models:/magnet/1", "--alias", "best"])
    assert capsys.readouterr().out == "models:/magnet@best is now version 1 (it was version 2)\n"
    for unknown in ("models:/nobody@challenger", "models:/magnet@nobody", "models:/magnet/9"):
        with pytest.raises(ModelNotFoundError, match=unknown):
            promote.main([unknown])


def same_weights(a: Path, b: Path) -> bool:
    return (a / checkpoints.MODEL_FILE).read_bytes() == (b / checkpoints.MODEL_FILE).read_bytes()


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("models:/magnet@champion", 0),
        ("models:/magnet@challenger", 1),
        ("models:/magnet/1", 0),
        ("models:/magnet/2", 1),
    ],
)
def test_a_registered_model_is_found_by_alias_and_by_version(
    store: Store, name: str, which: int, tmp_path: Path
) -> None:
    checkpoint, version = resolve(name, store.uri, tmp_path)
    assert version == store.versions[which]
    assert same_weights(checkpoint, store.folders[which])
    assert checkpoints.read_info(checkpoint).step == 10 + which


def test_an_alias_can_be_moved_to_another_version(store: Store, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=store.uri)
    client.set_registered_model_alias("magnet", "moving", store.versions[0])
    assert resolve("models:/magnet@moving", store.uri, tmp_path / "a")[1] == store.versions[0]
    client.set_registered_model_alias("magnet", "moving", store.versions[1])
    assert resolve("models:/magnet@moving", store.uri, tmp_path / "b")[1] == store.versions[1]


def test_a_checkpoint_folder_is_found_by_its_path(store: Store, tmp_path: Path) -> None:
    assert resolve(str(store.folders[0]), store.uri, tmp_path) == (store.folders[0], "")


@pytest.mark.parametrize(
    "name",
    [
        "models:/magnet@nobody",
        "models:/other@champion",
        "models:/magnet/99",
        "models:/magnet",
        "runs:/0123456789abcdef/model",
    ],
)
def test_an_unknown_model_is_named_with_the_registry(store: Store, name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="train a model first") as caught:
        resolve(name, store.uri, tmp_path)
    assert str(caught.value).startswith(f"{name}: not found in {store.uri}")


def test_the_registered_model_scores_slides_as_the_scoring_job_does(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(60, 255, (400, 300, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", photometric="rgb", metadata=None)
    mlflow.set_tracking_uri(store.uri)
    model = mlflow.pyfunc.load_model("models:/magnet@champion")
    rows = model.predict([{"slide_id": "a", "uri": str(path)}, {"uri": str(tmp_path / "missing.tif")}])
    slides = [Slide(row=0, slide_id="a", uri=str(path), patient_id="")]
    with RegionReader() as reader:
        (expected,) = score_slides(checkpoints.load_model(store.folders[0]), slides, reader)
    by_id = {row["slide_id"]: row for row in rows}
    assert by_id["a"]["probability"] == expected.row["probability"]
    assert by_id["a"]["regions"] == expected.row["regions"]
    missing = by_id[str(tmp_path / "missing.tif")]
    assert missing["status"] == "failed"
    assert "missing.tif" in missing["reason"]


def test_the_command_that_shows_runs_names_the_tracking_store() -> None:
    assert format_ui_command("http://mlflow:5000") == "open http://mlflow:5000"
    program, *arguments = format_ui_command("sqlite:////runs/mlflow.db").split()
    assert Path(program).is_file()
    assert arguments == ["ui", "--backend-store-uri", "sqlite:////runs/mlflow.db"]
