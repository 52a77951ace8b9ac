"""Settings of a scoring, from overrides and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings.parsing import SettingsError
from service.settings.score import ScoreSettings, read_score_settings


def test_overrides_and_files_change_thresholds(tmp_path: Path) -> None:
    config = tmp_path / "score.yaml"
    config.write_text("gate: {max_pen: 0.5}\nframes: 8\ncompute: {num_workers: 3}\n")
    settings = read_score_settings(str(config), ["gate.min_sharpness=0.2", "stop_when_settled=0.05"])
    assert settings.gate is not None
    assert (settings.gate.max_pen, settings.gate.min_sharpness, settings.gate.max_dark) == (0.5, 0.2, 0.5)
    assert (settings.frames, settings.compute.num_workers) == (8, 3)
    assert settings.may_end_early
    assert not ScoreSettings().may_end_early


def test_the_gate_can_be_switched_off() -> None:
    assert read_score_settings(None, ["gate=null"]).gate is None


def test_settings_that_change_rows_exclude_resources_and_pictures() -> None:
    default, changed = ScoreSettings(), read_score_settings(None, ["compute.num_workers=4", "pictures=false"])
    assert default.row_settings() == changed.row_settings()
    assert default.row_settings() != read_score_settings(None, ["gate.max_pen=0.3"]).row_settings()


@pytest.mark.parametrize(
    "override", ["gate.max_penn=1", "gate.max_pen=2", "frames=3", "stop_when_settled=1", "max_bytes_per_slide=0", "x=1"]
)
def test_wrong_settings_are_named_in_the_error(override: str) -> None:
    with pytest.raises(SettingsError, match=override.partition("=")[0].rpartition(".")[2]):
        read_score_settings(None, [override])
