"""What a job is told: preset, then file, then single overrides; every wrong key named at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magnet.config import ModelConfig
from magnet.presets import PRESETS
from service.settings.train import (
    ComputeSettings,
    SettingsError,
    TrainSettings,
    changed,
    flat,
    merged,
    parse,
    to_dict,
    train_settings,
)
from service.testing.fake_store import HttpStore


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_the_evidence_preset() -> None:
    settings = train_settings(None)
    assert settings.preset == "evidence"
    assert settings.model.classifier.head == "evidence"
    assert settings.recipe.value_weight == PRESETS["evidence"]["recipe"]["value_weight"]
    assert settings.recipe.epochs == 200  # the preset says nothing of it: the paper's


def test_the_papers_preset_changes_nothing_of_the_defaults() -> None:
    assert train_settings(None, ["preset=paper"]) == TrainSettings(preset="paper")


def test_a_file_changes_the_preset_and_overrides_change_both(tmp_path: Path) -> None:
    uri = written(
        tmp_path,
        """
        preset: evidence
        model: {zoom: {schedule: [3, 2], patch_px: 64}, classifier: {encoder: test_resnet}}
        recipe: {epochs: 7, batch: 8, micro_batch: 2}
        compute: {num_workers: 2}
        """,
    )
    settings = train_settings(uri, ["recipe.epochs=9", "model.zoom.schedule=[2,2,2]", "alias=champion"])
    assert settings.model.zoom.schedule == (2, 2, 2)
    assert settings.model.zoom.patch_px == 64
    assert (settings.recipe.epochs, settings.recipe.batch) == (9, 8)
    assert settings.model.locator.share_stacks == "layer"  # the preset's, in a group that the file does not name
    assert settings.model.classifier.head == "evidence"  # the preset's, in a group that the file does name
    assert (settings.compute.num_workers, settings.alias) == (2, "champion")


def test_on_and_off_are_words_and_true_and_false_are_not(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("recipe: {theta_gradient: off, augment: false}\n")
    settings = train_settings(str(config), ["recipe.theta_gradient=on", "model.locator.tissue_mask=True"])
    assert train_settings(str(config)).recipe.theta_gradient == "off"
    assert settings.recipe.theta_gradient == "on"
    assert settings.recipe.augment is False
    assert settings.model.locator.tissue_mask is True


def test_settings_come_from_an_object_store_too(store: HttpStore) -> None:
    (store.folder / "run.yaml").write_text("recipe: {epochs: 3}")
    assert train_settings("s3://bucket/run.yaml").recipe.epochs == 3


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert train_settings(written(tmp_path, "# nothing\n")) == train_settings(None)


def test_all_wrong_keys_and_values_are_named_at_once(tmp_path: Path) -> None:
    uri = written(
        tmp_path,
        """
        model: {zoom: {scedule: [3]}, locator: {centre: middle}}
        recipe: {epochs: many, learning_rte: 1}
        colour: red
        """,
    )
    with pytest.raises(SettingsError) as caught:
        train_settings(uri)
    message = str(caught.value)
    assert message.startswith(f"{uri}: 5 wrong setting(s)")
    for line in (
        "model.zoom.scedule: unknown setting",
        "recipe.learning_rte: unknown setting",
        "colour: unknown setting",
        "(got 'many')",
        "(got 'middle')",
    ):
        assert line in message
    assert "model.locator.centre" in message
    assert "recipe.epochs" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs=0", "recipe: epochs = 0: must be at least 1"),
        ("model.zoom.schedule=[]", r"model.zoom: schedule = \(\): must be at least one layer"),
        ("compute.num_workers=0", "compute: num_workers = 0: must be at least 1"),
        ("compute.tile_cache_mb=-1", "compute: tile_cache_mb = -1: must be 0 or more"),
        ("compute.gpus_per_worker=-0.5", r"compute: gpus_per_worker = -0\.5: must be 0 or more"),
        ("compute.num_workers=9", "compute.num_workers = 9: a step of 16 slides has 4 micro-batches of 4"),
        ("compute.reader_threads=1000000", "compute: reader_threads = 1000000: must be at most 1024"),
        ("registered_model=../x", r"registered_model = '\.\./x': must be a name without /"),
        ("alias=latest", "alias = 'latest': must be letters"),
        ("alias=v3", "alias = 'v3': must be letters"),
        ("preset=fast", "preset = 'fast': must be one of evidence, paper"),
        ("preset=[paper]", r"preset = \['paper'\]: must be one of evidence, paper"),
        ("recipe.epochs", "override 'recipe.epochs': want key.key=value"),
        ("=3", "override '=3': want key.key=value"),
        ("recipe.epochs.more=3", "override 'recipe.epochs.more=3': epochs is a value, not a group of settings"),
        ("recipe.epochs=[3", r"override 'recipe.epochs=\[3': the value is not YAML"),
        ("recipe=", "recipe: .*dict"),
    ],
)
def test_a_wrong_override_is_told_apart(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        train_settings(None, ["recipe.epochs=5", override])


@pytest.mark.parametrize(("text", "message"), [("recipe: [", "not YAML"), ("- a\n- b\n", "holds a list; want keys")])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, message: str) -> None:
    uri = written(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        train_settings(uri)
    assert str(caught.value).startswith(uri)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_survive_json(preset: str) -> None:
    settings = train_settings(None, [f"preset={preset}", "model.zoom.schedule=[2,3]", "compute.gpus_per_worker=0.5"])
    assert parse(TrainSettings, json.loads(json.dumps(to_dict(settings))), "json") == settings


def test_parts_of_settings_can_be_read_alone() -> None:
    assert parse(ModelConfig, {"zoom": {"schedule": [2]}}, "x").zoom.schedule == (2,)
    assert parse(ComputeSettings, {}, "x") == ComputeSettings()


def test_flat_keys_are_dotted_and_lists_are_words() -> None:
    nested: dict[str, Any] = {"a": {"b": [3, 2], "c": {"d": None}}, "e": 1.5, "f": (1,), "g": {}}
    assert flat(nested) == {"a.b": "3,2", "a.c.d": None, "e": 1.5, "f": "1"}


def test_changed_names_what_departs_from_the_preset_and_nothing_else() -> None:
    assert changed(train_settings(None)) == {}
    assert changed(train_settings(None, ["preset=paper"])) == {}
    overrides = [
        "recipe.epochs=5",
        "model.zoom.schedule=[4]",
        "recipe.learning_rate=0.001",
        "compute.cpus_per_worker=2",
    ]
    assert changed(train_settings(None, overrides)) == {
        "recipe.epochs": 5,
        "model.zoom.schedule": "4",
        "compute.cpus_per_worker": 2,  # the learning rate is the preset's own
    }


def test_merging_leaves_what_it_merges_as_it_was() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": {"f": 1}}
    assert merged(base, over) == {"a": {"b": 9, "c": 2}, "d": 3, "e": {"f": 1}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": {"f": 1}})
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_the_repositorys_own_configs_are_valid() -> None:
    configs = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
    assert configs
    for config in configs:
        train_settings(str(config))


@pytest.mark.parametrize("family", ["paper", "camelyon"])
@pytest.mark.parametrize(
    ("layers", "schedule", "batch"), [("3layer", (3, 2, 3), 16), ("4layer", (3, 2, 3, 2), 8)], ids=["3", "4"]
)
def test_the_papers_configs_are_the_papers(family: str, layers: str, schedule: tuple[int, ...], batch: int) -> None:
    settings = train_settings(str(Path(__file__).parents[3] / "configs" / f"{family}-{layers}.yaml"))
    model, recipe = settings.model, settings.recipe
    assert (settings.preset, model.zoom.schedule, recipe.batch) == ("paper", schedule, batch)
    assert (recipe.learning_rate, recipe.epochs, recipe.augment) == (3e-5, 200, True)
    assert (model.classifier.encoder, model.classifier.weights) == ("inception_v3", "imagenet")
    assert (model.auxiliary.encoder, model.auxiliary.weights) == ("resnet18", "imagenet")
    assert (model.auxiliary.early_layer, model.late_layer) == (1, 3)
    assert (model.zoom.frozen_patch, model.locator.sampler, model.locator.share_stacks) == (True, "lms", "node")
    assert settings.train_without_strata == (("itc",) if family == "camelyon" else ())
    departs = {"model.zoom.schedule", "model.classifier.weights", "model.auxiliary.weights", "recipe.batch"}
    assert changed(settings).keys() <= departs | {"train_without_strata"}
