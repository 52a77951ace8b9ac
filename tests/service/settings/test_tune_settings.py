"""Settings of a search: number of schedules, wrong settings, settings of a trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings.parsing import SettingsError
from service.settings.train import read_train_settings
from service.settings.tune import SearchSettings, make_trial_settings, read_search_settings


def test_all_schedules_of_two_to_five_layers_are_tried_by_default() -> None:
    schedules = SearchSettings().list_schedules()
    assert len(schedules) == len(set(schedules)) == 4**2 + 4**3 + 4**4 + 4**5
    assert {(1, 1), (3, 2, 3), (3, 2, 3, 2), (4, 4, 4, 4, 4)} <= set(schedules)
    assert SearchSettings(schedules=((3, 2), (3, 2), (2,))).list_schedules() == [(3, 2), (2,)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trails=3"], "trails: unknown setting"),
        (["trials=0"], "trials = 0: must be at least 1"),
        (["depths=[4,2]"], "depths = .* two numbers above 0, the smallest first"),
        (
            ["method=grid", "learning_rate=[1e-5,1e-3]"],
            "cannot search the ranges learning_rate and temperature; use method optuna or random",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_the_error(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_search_settings(None, overrides)


def test_overrides_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("trials: 7\nschedules: [[3, 2], [3, 2, 3]]\nmax_patches: 36\n")
    search = read_search_settings(str(path), ["trials=9"])
    assert (search.trials, search.schedules, search.max_patches) == (9, ((3, 2), (3, 2, 3)), 36)


def test_a_trial_changes_only_the_chosen_settings() -> None:
    base = read_train_settings(None, ["recipe.epochs=3"])
    chosen = {"schedule": "2,1,2", "learning_rate": 5e-4, "temperature": 2.0, "encoder": "resnet18"}
    settings = make_trial_settings(base, chosen | {"sampler": "lms", "frozen_patch": True})
    overrides = ["recipe.epochs=3", "model.zoom.schedule=[2,1,2]", "recipe.learning_rate=5e-4"]
    overrides += ["model.locator.temperature=2.0", "model.classifier.encoder=resnet18", "model.locator.sampler=lms"]
    assert settings == read_train_settings(None, [*overrides, "model.zoom.frozen_patch=true"])


def test_the_objective_subtracts_the_price_of_the_bytes() -> None:
    assert SearchSettings().compute_objective(0.9, 5e6) == 0.9
    assert SearchSettings(auroc_per_mb=0.01).compute_objective(0.9, 5e6) == pytest.approx(0.85)
