"""The tutorial shows what its commands print for wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.tools.commands import ROOT
from ray_jobs import check
from service.cohort.manifest import ManifestError
from service.settings.train import SettingsError, read_train_settings
from tests.docs.pages import heredoc, text_of

PAGE = ROOT / "docs" / "tutorial.md"


def test_a_wrong_manifest_is_answered_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.csv").write_text(heredoc(PAGE, "wrong.csv"))
    with pytest.raises(ManifestError) as raised:
        check.main(["--manifest", "wrong.csv", "--need-labels"])
    assert f"```text\nerror: {raised.value}\n```" in text_of(PAGE)


def test_a_misspelt_setting_is_answered_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").write_text(heredoc(PAGE, "train.yaml"))
    assert read_train_settings("train.yaml").model.zoom.num_patches == 6
    with pytest.raises(SettingsError) as raised:
        read_train_settings("train.yaml", ["recipe.epoch=5"])
    assert f"```text\nerror: {raised.value}\n```" in text_of(PAGE)
