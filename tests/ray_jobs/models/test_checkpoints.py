"""A checkpoint is restored bit by bit; a corrupt, missing or foreign file is named."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.windows import drive
from magnet.zoom import MagNet
from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoints import MODEL_FILE, SETTINGS_FILE, TRAINING_FILE, CheckpointError, CheckpointInfo
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.learner import Learner
from service.errors import UsageError

CONFIG = ModelConfig(
    zoom=ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32, grey_tolerance=None),
    locator=LocatorConfig(channels=2),
    classifier=ClassifierConfig(encoder="test_resnet", hidden=8),
    auxiliary=AuxiliaryConfig(encoder="test_resnet"),
)
RECIPE = RecipeConfig(batch=2, micro_batch=2, learning_rate=1e-3)
SIDES = [4096.0, 3000.0]
FETCH = formula_fetch([waves([(0.3, 0.1), (-0.2, 0.4), (0.5, 0.5)])] * 2, SIDES)


def learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    return Learner(MagNet(CONFIG, to_be_loaded=True), RECIPE, num_steps=10)


def step(one: Learner, number: int) -> float:
    batch = StepInput(index=0, side_px_B=np.array(SIDES), fetch=FETCH, label_B=torch.tensor([0.0, 1.0]))
    with ThreadPoolExecutor(1) as pool:
        return one.step(number, [batch], pool)["loss"]


def save(folder: Path, model: MagNet, saved: CheckpointInfo, training: dict[str, Any]) -> None:
    """Write a checkpoint to a folder."""
    for name, data in checkpoints.pack_checkpoint(model, saved, training).items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path]:
    """A learner after two steps, and its checkpoint. Tests must not change them."""
    trained, folder = learner(), tmp_path_factory.mktemp("checkpoint")
    for number in range(2):
        step(trained, number)
    saved = CheckpointInfo(model=CONFIG, step=2, metrics={"val/auroc": 0.75}, threshold=0.375)
    save(folder, trained.model, saved, trained.state_dict())
    return trained, folder


@pytest.fixture
def trained(original: tuple[Learner, Path], tmp_path: Path) -> tuple[Learner, Path]:
    """A copy of the learner and of its checkpoint."""
    return copy.deepcopy(original[0]), shutil.copytree(original[1], tmp_path / "checkpoint")


def equal(a: Any, b: Any) -> bool:
    """Compare bit by bit, through all containers."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def test_description_and_weights_are_restored_bit_by_bit(trained: tuple[Learner, Path]) -> None:
    original, folder = trained
    assert checkpoints.read_info(folder) == CheckpointInfo(CONFIG, 2, {"val/auroc": 0.75}, 0.375)
    loaded = checkpoints.load_model(folder)
    assert equal(loaded.state_dict(), original.model.state_dict())
    assert not loaded.training
    original.model.eval()
    logits = [drive(model.zoom(np.array(SIDES)), FETCH).logit_B for model in (original.model, loaded)]
    assert torch.equal(*logits)


def test_a_training_continues_bit_by_bit(trained: tuple[Learner, Path]) -> None:
    original, folder = trained
    other = learner(seed=1)
    checkpoints.load_weights(folder, other.model)
    other.load_state_dict(checkpoints.load_training(folder))
    assert equal(other.state_dict(), original.state_dict())
    assert step(other, 2) == step(original, 2)
    assert equal(other.model.state_dict(), original.model.state_dict())


def test_weights_can_be_read_without_this_project(trained: tuple[Learner, Path]) -> None:
    _, folder = trained
    header_size = int.from_bytes((folder / MODEL_FILE).read_bytes()[:8], "little")
    header = json.loads((folder / MODEL_FILE).read_bytes()[8 : 8 + header_size])
    assert {name for name in header if name != "__metadata__"} == set(trained[0].model.state_dict())
    torch.load(folder / TRAINING_FILE, weights_only=True)  # it holds no code


def test_loading_does_not_read_the_initial_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The settings name the file of the initial weights, which may be gone."""
    gone = ModelConfig(
        zoom=CONFIG.zoom,
        locator=CONFIG.locator,
        classifier=ClassifierConfig(encoder="test_resnet", hidden=8, weights="/gone.safetensors", weights_sha256="0"),
        auxiliary=AuxiliaryConfig(encoder=None),
    )
    save(tmp_path, MagNet(gone, to_be_loaded=True), CheckpointInfo(gone, 0, {}, 0.5), {})
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load_model(tmp_path).config == gone
    assert caplog.records == []


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "noise"])
@pytest.mark.parametrize("name", [MODEL_FILE, SETTINGS_FILE, TRAINING_FILE])
def test_a_corrupt_file_is_named(trained: tuple[Learner, Path], name: str, damage: str) -> None:
    _, folder = trained
    path = folder / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        noise = np.random.default_rng(0).bytes(len(whole))
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "noise": noise}[damage])
    load = checkpoints.load_training if name == TRAINING_FILE else checkpoints.load_model
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is not a readable checkpoint"),
        ("{}", "is not a readable checkpoint"),
        ('{"format": 99}', "has checkpoint format 99; this version reads format 1"),
    ],
)
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read_info(tmp_path)


def test_unknown_settings_of_a_checkpoint_are_named(trained: tuple[Learner, Path]) -> None:
    _, folder = trained
    about = json.loads((folder / SETTINGS_FILE).read_text())
    about["model"]["zoom"]["colour"] = "red"
    (folder / SETTINGS_FILE).write_text(json.dumps(about))
    with pytest.raises(UsageError, match=r"zoom\.colour: unknown setting"):
        checkpoints.read_info(folder)


def test_weights_of_another_network_are_refused(trained: tuple[Learner, Path]) -> None:
    _, folder = trained
    other = MagNet(replace(CONFIG, zoom=replace(CONFIG.zoom, schedule=(3,))), to_be_loaded=True)
    with pytest.raises(CheckpointError, match=MODEL_FILE):
        checkpoints.load_weights(folder, other)


def test_a_published_model_is_the_same_for_all_workers(trained: tuple[Learner, Path], tmp_path: Path) -> None:
    original, folder = trained
    uri = (tmp_path / "out" / "model").as_uri()
    named = checkpoints.publish(folder, uri, name="models:/m@a", version="3")
    assert (named.uri, named.name, named.version, named.threshold) == (uri, "models:/m@a", "3", 0.375)
    assert equal(named.load().state_dict(), original.model.state_dict())
    assert checkpoints.publish(folder, uri, name="models:/m@a", version="3") == named
    assert len(named.sha256) == 64


def test_a_published_model_is_not_overwritten_by_another(trained: tuple[Learner, Path], tmp_path: Path) -> None:
    original, folder = trained
    uri = str(tmp_path / "out")
    checkpoints.publish(folder, uri, name="first", version="")
    step(original, 2)
    other = tmp_path / "other"
    other.mkdir()
    save(other, original.model, CheckpointInfo(CONFIG, 3, {}, 0.5), {})
    with pytest.raises(CheckpointError, match="holds another model than second; name a new folder"):
        checkpoints.publish(other, uri, name="second", version="")
    assert (tmp_path / "out" / MODEL_FILE).read_bytes() == (folder / MODEL_FILE).read_bytes()


def test_an_interrupted_publication_is_completed(trained: tuple[Learner, Path], tmp_path: Path) -> None:
    _, folder = trained
    out = tmp_path / "out"
    out.mkdir()
    (out / SETTINGS_FILE).write_text("{")  # the weights come last
    named = checkpoints.publish(folder, str(out), name="m", version="")
    assert named.load().config == CONFIG


def test_only_a_checkpoint_is_published(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"name a folder that train\.py wrote"):
        checkpoints.publish(tmp_path, str(tmp_path / "out"), name="m", version="")
    assert not (tmp_path / "out").exists()
