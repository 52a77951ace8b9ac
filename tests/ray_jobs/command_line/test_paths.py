"""Paths and URIs that a user gives to a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.command_line.paths import storage_folder, to_absolute


def test_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert to_absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert to_absolute("~/runs") == str(tmp_path / "home" / "runs")
    assert to_absolute("/runs") == "/runs"
    assert to_absolute("s3://bucket/runs") == "s3://bucket/runs"


def test_the_storage_folder_is_the_option_then_the_variable_then_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAGNET_STORAGE", "s3://bucket/runs")
    assert storage_folder("/option") == "/option"
    assert storage_folder(None) == "s3://bucket/runs"
    monkeypatch.delenv("MAGNET_STORAGE")
    assert storage_folder(None) == str(tmp_path / "magnet-runs")
