"""A search's settings: counted by hand, unknown keys and empty ranges refused, choices put where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings.train import SettingsError, train_settings
from service.settings.tune import SearchSettings, search_settings, trial_settings


def test_whole_schedules_of_two_to_five_layers_are_the_choice() -> None:
    schedules = SearchSettings().all_schedules()
    assert len(schedules) == len(set(schedules)) == 4**2 + 4**3 + 4**4 + 4**5
    assert {(1, 1), (3, 2, 3), (3, 2, 3, 2), (4, 4, 4, 4, 4)} <= set(schedules)
    assert SearchSettings(schedules=((3, 2), (3, 2), (2,))).all_schedules() == [(3, 2), (2,)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trails=3"], "trails: unknown setting"),
        (["trials=0"], "trials = 0: must be at least 1"),
        (["depths=[4,2]"], "depths = .* smallest and the largest"),
        (["method=grid", "learning_rate=[1e-5,1e-3]"], "ranges; search them with optuna or random"),
    ],
)
def test_a_wrong_setting_is_named(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        search_settings(None, words)


def test_a_file_of_settings_and_words_over_it(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("trials: 7\nschedules: [[3, 2], [3, 2, 3]]\nmax_patches: 36\n")
    search = search_settings(str(path), ["trials=9"])
    assert (search.trials, search.schedules, search.max_patches) == (9, ((3, 2), (3, 2, 3)), 36)


def test_what_was_chosen_is_all_that_a_trial_changes() -> None:
    base = train_settings(None, ["recipe.epochs=3"])
    chosen = {"schedule": "2,1,2", "learning_rate": 5e-4, "temperature": 2.0, "encoder": "resnet18"}
    settings = trial_settings(base, chosen | {"sampler": "lms", "frozen_patch": True})
    words = ["recipe.epochs=3", "model.zoom.schedule=[2,1,2]", "recipe.learning_rate=5e-4"]
    words += ["model.locator.temperature=2.0", "model.classifier.encoder=resnet18", "model.locator.sampler=lms"]
    assert settings == train_settings(None, [*words, "model.zoom.frozen_patch=true"])


def test_auroc_with_cost_trades_megabytes() -> None:
    assert SearchSettings().objective(0.9, 5e6) == 0.9
    assert SearchSettings(auroc_per_mb=0.01).objective(0.9, 5e6) == pytest.approx(0.85)
