"""A run is repeated with exactly the settings and manifest that MLflow holds, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ray_jobs.tracking.mlflow_run import Tracker, start_run
from ray_jobs.tracking.rerun import CONFIG_FILE, read_run
from service.errors import UsageError
from service.settings.parsing import to_dict
from service.settings.train import read_train_settings

pytestmark = pytest.mark.slow  # MLflow needs seconds to create a database

SETTINGS = read_train_settings(None, ["recipe.seed=7", "model.zoom.schedule=[2,2]", "train_without_strata=[itc]"])


@pytest.fixture(scope="module")
def run(uri: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """MLflow's tracking URI, and the id of a run as `train.py` leaves it."""
    run_id, _ = start_run(uri, experiment="rerun", name="first", storage=str(folder))
    tracker = Tracker(uri, run_id)
    tracker.log_params({"manifest": "s3://b/cohort.csv", "manifest_sha256": "abc"})
    config = tmp_path_factory.mktemp("config") / CONFIG_FILE
    config.write_text(yaml.safe_dump(to_dict(SETTINGS)))
    tracker.log_file(config)
    tracker.end("FINISHED")
    return uri, run_id


def test_settings_and_manifest_are_read_from_the_run(run: tuple[str, str]) -> None:
    recorded = read_run(*run)
    assert (recorded.settings, recorded.manifest) == (SETTINGS, "s3://b/cohort.csv")
    recorded.require_same_manifest("copy.csv", "abc")
    with pytest.raises(UsageError, match=r"copy.csv: the manifest has changed since the run: its SHA-256 is abd, "):
        recorded.require_same_manifest("copy.csv", "abd")


def test_only_settings_that_change_no_result_may_be_set(run: tuple[str, str]) -> None:
    assert read_run(*run, ["compute.num_workers=2"]).settings.compute.num_workers == 2
    with pytest.raises(UsageError, match=r"only compute\.\* may be set"):
        read_run(*run, ["recipe.seed=8"])


def test_an_unknown_run_is_named(run: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"--rerun nothing: sqlite.* holds no training with this run id"):
        read_run(run[0], "nothing")
