"""Settings of a training: preset, then file, then overrides; all wrong keys are reported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magnet.config import ModelConfig
from magnet.presets import PRESETS
from service.settings.parsing import SettingsError, flatten, merge_settings, parse, to_dict
from service.settings.train import ComputeSettings, TrainSettings, find_changes, read_train_settings
from service.testing.fake_store import HttpStore


def write_config(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_the_evidence_preset() -> None:
    settings = read_train_settings(None)
    assert settings.preset == "evidence"
    assert settings.model.classifier.head == "evidence"
    assert settings.recipe.value_weight == PRESETS["evidence"]["recipe"]["value_weight"]
    assert settings.recipe.epochs == 200  # the paper's, which the preset does not change


def test_the_papers_preset_equals_the_defaults() -> None:
    assert read_train_settings(None, ["preset=paper"]) == TrainSettings(preset="paper")


def test_a_file_changes_the_preset_and_overrides_change_both(tmp_path: Path) -> None:
    uri = write_config(
        tmp_path,
        """
        preset: evidence
        model: {zoom: {schedule: [3, 2], patch_px: 64}, classifier: {encoder: test_resnet}}
        recipe: {epochs: 7, batch: 8, micro_batch: 2}
        compute: {num_workers: 2}
        """,
    )
    settings = read_train_settings(uri, ["recipe.epochs=9", "model.zoom.schedule=[2,2,2]", "alias=champion"])
    assert settings.model.zoom.schedule == (2, 2, 2)
    assert settings.model.zoom.patch_px == 64
    assert (settings.recipe.epochs, settings.recipe.batch) == (9, 8)
    assert settings.model.locator.share_stacks == "layer"  # from the preset, in a group that the file does not name
    assert settings.model.classifier.head == "evidence"  # from the preset, in a group that the file names
    assert (settings.compute.num_workers, settings.alias) == (2, "champion")


def test_on_and_off_are_texts_and_true_and_false_are_booleans(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("recipe: {theta_gradient: off, augment: false}\n")
    settings = read_train_settings(str(config), ["recipe.theta_gradient=on", "model.locator.tissue_mask=True"])
    assert read_train_settings(str(config)).recipe.theta_gradient == "off"
    assert settings.recipe.theta_gradient == "on"
    assert settings.recipe.augment is False
    assert settings.model.locator.tissue_mask is True


def test_settings_are_read_from_an_object_store(store: HttpStore) -> None:
    (store.folder / "run.yaml").write_text("recipe: {epochs: 3}")
    assert read_train_settings("s3://bucket/run.yaml").recipe.epochs == 3


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read_train_settings(write_config(tmp_path, "# nothing\n")) == read_train_settings(None)


def test_all_wrong_keys_and_values_are_reported_at_once(tmp_path: Path) -> None:
    uri = write_config(
        tmp_path,
        """
        model: {zoom: {scedule: [3]}, locator: {centre: middle}}
        recipe: {epochs: many, learning_rte: 1}
        colour: red
        """,
    )
    with pytest.raises(SettingsError) as caught:
        read_train_settings(uri)
    message = str(caught.value)
    assert message.startswith(f"{uri}: 5 wrong settings")
    for line in (
        "  model.zoom.scedule: unknown setting; did you mean model.zoom.schedule?",
        "  model.locator.centre = 'middle': must be 'tanh' or 'bounded'",
        "  recipe.epochs = 'many': must be a whole number",
        "  recipe.learning_rte: unknown setting; did you mean recipe.learning_rate?",
        "  colour: unknown setting",
    ):
        assert line in message.splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs=0", r"recipe\.epochs = 0: must be at least 1"),
        ("model.zoom.schedule=[]", r"model\.zoom\.schedule = \(\): must be at least one layer"),
        ("compute.num_workers=0", r"compute\.num_workers = 0: must be at least 1"),
        ("compute.tile_cache_mb=-1", r"compute\.tile_cache_mb = -1: must be 0 or more"),
        ("compute.gpus_per_worker=-0.5", r"compute\.gpus_per_worker = -0\.5: must be 0 or more"),
        (
            "compute.num_workers=9",
            "compute.num_workers = 9: must be at most 4, because a step of 16 slides has 4 micro-batches of 4",
        ),
        ("compute.reader_threads=1000000", r"compute\.reader_threads = 1000000: must be at most 1024"),
        ("registered_model=../x", r"registered_model = '\.\./x': must be 1 to 200 characters without /"),
        ("alias=a b", "alias = 'a b': must be 1 to 100 letters, digits"),
        ("alias=latest", "alias = 'latest': is reserved by MLflow"),
        ("alias=v3", "alias = 'v3': is reserved by MLflow"),
        ("preset=fast", "preset = 'fast': must be evidence or paper"),
        ("preset=[paper]", r"preset = \['paper'\]: must be evidence or paper"),
        ("recipe.epochs", "override 'recipe.epochs': write KEY=VALUE, for example recipe.epochs=5"),
        ("=3", "override '=3': write KEY=VALUE"),
        (
            "recipe.epochs.more=3",
            "override 'recipe.epochs.more=3': recipe.epochs is a single value, not a group of settings",
        ),
        ("recipe.epochs=[3", r"override 'recipe.epochs=\[3': the value is not valid YAML"),
        ("recipe=", "recipe = null: must be a group of settings"),
        ("epochs=3", r"epochs: unknown setting; did you mean recipe\.epochs\?"),
        ("recipe.augment=perhaps", r"recipe\.augment = 'perhaps': must be true or false"),
        ("model.zoom.schedule=3", r"model\.zoom\.schedule = 3: must be a list"),
    ],
)
def test_a_wrong_override_is_reported_with_its_reason(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_train_settings(None, ["recipe.epochs=5", override])


@pytest.mark.parametrize(
    ("text", "message"), [("recipe: [", "not valid YAML"), ("- a\n- b\n", "holds a list; write one setting per line")]
)
def test_a_file_without_settings_is_named_in_the_error(tmp_path: Path, text: str, message: str) -> None:
    uri = write_config(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_train_settings(uri)
    assert str(caught.value).startswith(uri)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_survive_json(preset: str) -> None:
    settings = read_train_settings(
        None, [f"preset={preset}", "model.zoom.schedule=[2,3]", "compute.gpus_per_worker=0.5"]
    )
    assert parse(TrainSettings, json.loads(json.dumps(to_dict(settings))), "json") == settings


def test_parts_of_settings_can_be_parsed_separately() -> None:
    assert parse(ModelConfig, {"zoom": {"schedule": [2]}}, "x").zoom.schedule == (2,)
    assert parse(ComputeSettings, {}, "x") == ComputeSettings()


def test_flattened_keys_are_dotted_and_lists_become_texts() -> None:
    nested: dict[str, Any] = {"a": {"b": [3, 2], "c": {"d": None}}, "e": 1.5, "f": (1,), "g": {}}
    assert flatten(nested) == {"a.b": "3,2", "a.c.d": None, "e": 1.5, "f": "1"}


def test_only_settings_that_differ_from_the_preset_count_as_changed() -> None:
    assert find_changes(read_train_settings(None)) == {}
    assert find_changes(read_train_settings(None, ["preset=paper"])) == {}
    overrides = [
        "recipe.epochs=5",
        "model.zoom.schedule=[4]",
        "recipe.learning_rate=0.001",
        "compute.cpus_per_worker=2",
    ]
    assert find_changes(read_train_settings(None, overrides)) == {
        "recipe.epochs": 5,
        "model.zoom.schedule": "4",
        "compute.cpus_per_worker": 2,  # the learning rate equals the preset's
    }


def test_merging_does_not_change_its_arguments() -> None:
    base, changes = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": {"f": 1}}
    assert merge_settings(base, changes) == {"a": {"b": 9, "c": 2}, "d": 3, "e": {"f": 1}}
    assert (base, changes) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": {"f": 1}})
    assert merge_settings({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_the_configs_of_the_repository_are_valid() -> None:
    configs = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
    assert configs
    for config in configs:
        read_train_settings(str(config))


@pytest.mark.parametrize("family", ["paper", "camelyon"])
@pytest.mark.parametrize(
    ("layers", "schedule", "batch"), [("3layer", (3, 2, 3), 16), ("4layer", (3, 2, 3, 2), 8)], ids=["3", "4"]
)
def test_the_papers_configs_have_the_papers_values(
    family: str, layers: str, schedule: tuple[int, ...], batch: int
) -> None:
    settings = read_train_settings(str(Path(__file__).parents[3] / "configs" / f"{family}-{layers}.yaml"))
    model, recipe = settings.model, settings.recipe
    assert (settings.preset, model.zoom.schedule, recipe.batch) == ("paper", schedule, batch)
    assert (recipe.learning_rate, recipe.epochs, recipe.augment) == (3e-5, 200, True)
    assert (model.classifier.encoder, model.classifier.weights) == ("inception_v3", "imagenet")
    assert (model.auxiliary.encoder, model.auxiliary.weights) == ("resnet18", "imagenet")
    assert (model.auxiliary.early_layer, model.late_layer) == (1, 3)
    assert (model.zoom.frozen_patch, model.locator.sampler, model.locator.share_stacks) == (True, "lms", "node")
    assert settings.train_without_strata == (("itc",) if family == "camelyon" else ())
    differing = {"model.zoom.schedule", "model.classifier.weights", "model.auxiliary.weights", "recipe.batch"}
    assert find_changes(settings).keys() <= differing | {"train_without_strata"}
