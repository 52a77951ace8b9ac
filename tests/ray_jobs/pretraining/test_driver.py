"""Pretraining without labels: the encoder learns textures that random weights do not separate."""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from magnet.encoder import Encoder, make_encoder
from magnet.pretraining import restain, turn
from ray_jobs.pretrain import main
from ray_jobs.pretraining.driver import Budget, TissueRegions, pretrain, save_weights
from service.cohort.manifest import Slide, load_manifest
from service.errors import UsageError
from service.settings.train import TrainSettings, read_train_settings
from service.slides.reader import RegionReader
from service.synthetic import CohortSettings, make_cohort
from service.synthetic.textures import Stain, draw_textures

SMALL = ["model.zoom.patch_px=32", "model.zoom.schedule=[3,2]", "model.classifier.encoder=test_resnet"]
STEPS, BATCH = 50, 32

Progress = list[tuple[int, float, float]]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    make_cohort(folder, CohortSettings(num_slides=4, side_px=2048, seed=3))
    return folder


@pytest.fixture(scope="module")
def settings() -> TrainSettings:
    return read_train_settings(None, SMALL)


def load_slides(cohort: Path) -> tuple[Slide, ...]:
    return load_manifest(str(cohort / "manifest.csv"), need_labels=False).slides


def make_random_encoder(seed: int) -> Encoder:
    torch.manual_seed(seed)
    return make_encoder("test_resnet")


# ------------------------------------------------------------------------------------------------ what it learns


@pytest.fixture(scope="module")
def pretrained(cohort: Path, settings: TrainSettings) -> tuple[Encoder, Progress]:
    progress: Progress = []
    with RegionReader(num_threads=2) as reader:
        encoder = pretrain(
            settings,
            load_slides(cohort),
            reader,
            Budget(steps=STEPS),
            batch=BATCH,
            after_step=lambda *values: progress.append(values),
        )
    return encoder.eval(), progress


@pytest.mark.slow
def test_views_find_their_partners_far_more_often_than_by_chance(pretrained: tuple[Encoder, Progress]) -> None:
    progress = pretrained[1]
    assert [step for step, *_ in progress] == list(range(1, STEPS + 1))
    _, loss, share_found = np.mean(progress[-15:], axis=0)
    assert loss < math.log(2 * BATCH - 1) - 0.4  # measured: 3.4 to 3.5 of 4.14 with two seeds
    assert share_found > 3 / (2 * BATCH - 1)


def neighbour_accuracy(encoder: Encoder) -> float:
    """Return the share of restained crops whose nearest neighbour in another tile has the same texture.

    Textures are lesion and decoy, with three tiles each; by chance the share is 40 %.
    """
    textures = draw_textures(
        np.random.default_rng(5), Stain(1.0, 1.0), hint=0.0
    )  # with equal mean and spread of colour
    crops, kinds, tiles = [], [], []
    for kind in ("lesion", "decoy"):
        for number, y, x in np.ndindex(3, 4, 4):
            crops.append(textures[kind][number, 64 * y : 64 * y + 64, 64 * x : 64 * x + 64])
            kinds.append(kind)
            tiles.append(f"{kind} {number}")
    view = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    other_tile, kind_of = np.array(tiles)[:, None] != np.array(tiles), np.array(kinds)
    shares = []
    for draw in draws:
        with torch.inference_mode():
            feature = encoder.eval()(torch.nn.functional.avg_pool2d(restain(turn(view, draw), draw), 2))
        unit = torch.nn.functional.normalize(feature - feature.mean(dim=0), dim=1)
        nearest = np.where(other_tile, (unit @ unit.T).numpy(), -2).argmax(axis=1)
        shares.append(np.mean(kind_of == kind_of[nearest]))
    return float(np.mean(shares))


@pytest.mark.slow
def test_after_pretraining_crops_of_one_texture_are_neighbours(pretrained: tuple[Encoder, Progress]) -> None:
    before = [neighbour_accuracy(make_random_encoder(seed)) for seed in range(3)]
    after = neighbour_accuracy(pretrained[0])
    assert after > max(before)
    assert after > np.mean(before) + 0.05


# ------------------------------------------------------------------------------------------------------ what it leaves


@pytest.mark.slow
def test_the_file_can_be_loaded_as_the_weights_of_an_encoder(
    pretrained: tuple[Encoder, Progress], settings: TrainSettings, tmp_path: Path
) -> None:
    out = tmp_path / "encoder.safetensors"
    digest = save_weights(pretrained[0], str(out))
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    loaded = make_encoder(settings.model.classifier.encoder, str(out), sha256=digest).eval()
    view = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(view), pretrained[0](view))


def test_the_regions_of_a_step_follow_from_seed_and_step(cohort: Path, settings: TrainSettings) -> None:
    results = []
    for num_threads, steps in ((1, (0, 7)), (3, (7,))):
        with RegionReader(num_threads=num_threads) as reader:
            regions = TissueRegions(load_slides(cohort), reader, settings.model, batch=9, seed=1)
            results.append([regions.read(step) for step in steps])
    (first, last), (repeated,) = results
    np.testing.assert_array_equal(last[0], repeated[0])
    np.testing.assert_array_equal(last[1].pixels, repeated[1].pixels)
    assert last[0].shape == (9, 3)
    assert not np.array_equal(first[0], last[0])


def test_slides_without_tissue_are_refused_with_an_explanation(tmp_path: Path, settings: TrainSettings) -> None:
    path = tmp_path / "white.tif"
    tifffile.imwrite(path, np.full((512, 512, 3), 245, np.uint8), tile=(256, 256), photometric="rgb")
    empty = [Slide(row=2, slide_id="white", uri=str(path), patient_id="white")]
    with RegionReader(num_threads=1) as reader:
        regions = TissueRegions(empty, reader, settings.model, batch=4, seed=0)
        with pytest.raises(UsageError, match=r"no tissue on any of 1 slides, such as .*white\.tif"):
            regions.read(0)


# --------------------------------------------------------------------------------------------------------- the command


def make_argv(manifest: Path, out: Path, *more: str) -> list[str]:
    arguments = ["--manifest", str(manifest), "--out", str(out), "--steps", "2", "--batch", "4"]
    return [*arguments, *(argument for setting in SMALL for argument in ("--set", setting)), *more]


def test_the_command_reads_training_slides_only_and_prints_how_to_use_the_file(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(cohort / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # slides that are held out do not exist
        row["uri"] = str(cohort / row["uri"]) if row["split"] == "train" else str(tmp_path / "nowhere.tif")
        row["uri"] += "" if row["split"] == "train" else row["slide_id"]
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    out = tmp_path / "new" / "encoder.safetensors"
    assert main(make_argv(tmp_path / "manifest.csv", out)) == 0
    printed = capsys.readouterr().out
    printed_config = yaml.safe_load(printed[printed.index("model:") :])["model"]["classifier"]
    assert printed_config == {"weights": str(out), "weights_sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    assert "chance 1.946" in printed  # log 7


def test_the_same_command_writes_the_same_weights(cohort: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "other")]
    for out, seed in zip(outs, ("1", "1", "2"), strict=True):
        assert main(make_argv(cohort / "manifest.csv", out, "--seed", seed)) == 0
    first, second, other = (out.read_bytes() for out in outs)
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "encoder.pth"], r"--out encoder\.pth: must be a path, .* ending in \.safetensors"),
        (["--out", "https://host/encoder.safetensors"], "--out https://host/encoder.safetensors: must be"),
        (["--batch", "1"], "--batch 1: must be 2 or more"),
        (["--steps", "0"], "--steps 0: must be above 0"),
    ],
)
def test_arguments_that_would_fail_after_the_training_are_refused_before_it(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        main([*make_argv(tmp_path / "none.csv", tmp_path / "encoder.safetensors"), *arguments])
