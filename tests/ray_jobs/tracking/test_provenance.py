"""Tags that say where a result comes from."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ray_jobs.tracking.provenance import git_tags, hardware_tags, installed_packages


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_git_tags_hold_the_commit_and_whether_files_were_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false"}
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["mlflow.source.git.dirty"] == "true"


def test_without_git_the_commit_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("MAGNET_GIT_COMMIT", raising=False)
    assert git_tags(tmp_path)["mlflow.source.git.commit"] == "unknown"
    monkeypatch.setenv("MAGNET_GIT_COMMIT", "abc123")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": "abc123", "mlflow.source.git.dirty": "false"}
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not even installed
    assert git_tags(tmp_path)["mlflow.source.git.commit"] == "abc123"


def test_packages_are_listed_in_pips_format() -> None:
    lines = installed_packages().splitlines()
    assert f"torch=={version('torch')}" in lines
    assert len(lines) == len(set(lines)) > 50


def test_hardware_tags_describe_the_machine() -> None:
    tags = hardware_tags(torch.device("cpu"))
    assert tags["hardware.gpu"] == "none"
    assert float(tags["hardware.memory_gb"]) > 0
