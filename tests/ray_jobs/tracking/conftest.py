"""A real MLflow store for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.tracking.mlflow_run import Tracker, start_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the store. MLflow needs seconds to create it, so all tests share it; experiments keep them apart."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def tracker(uri: str, folder: Path, request: pytest.FixtureRequest) -> Tracker:
    run_id, _ = start_run(uri, experiment=request.node.name, name="job", storage=str(folder))
    return Tracker(uri, run_id)
