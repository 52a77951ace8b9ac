"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("magnet", deadline=None)  # a deadline is a timed test: it fails on a busy machine
settings.load_profile("magnet")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real slides, broken files and labelled tiles (not part of the repository)."""
    folder = Path(os.environ.get("MAGNET_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if (folder / "slides").is_dir():
        return folder
    message = f"no real slides in {folder}; name their folder in MAGNET_TEST_DATA"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
