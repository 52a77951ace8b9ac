"""What the tests of reading share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.testing.fake_store import HttpStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpStore]:
    """An object store over HTTP; ``s3://bucket/KEY`` lies in it, failing reads are given up after two seconds."""
    folder = tmp_path / "objects"
    folder.mkdir()
    with HttpStore(folder) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "2")
        monkeypatch.setenv("MAGNET_CACHE_DIR", str(tmp_path / "cache"))
        yield running
