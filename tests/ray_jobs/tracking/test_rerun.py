"""A run is repeated from what MLflow holds of it, or not at all."""

from __future__ import annotations

import pytest
import yaml

from ray_jobs.tracking.mlflow_run import Tracker, start_run
from ray_jobs.tracking.rerun import CONFIG_FILE, recorded
from service.errors import UsageError
from service.settings.parsing import to_dict
from service.settings.train import train_settings

pytestmark = pytest.mark.slow  # MLflow takes its time to make a database

SETTINGS = train_settings(None, ["recipe.seed=7", "model.zoom.schedule=[2,2]", "train_without_strata=[itc]"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """MLflow's place, and a run that `train.py` left there."""
    folder = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{folder}/mlflow.db"
    run_id, _ = start_run(uri, experiment="e", name="first", storage=str(folder))
    tracker = Tracker(uri, run_id)
    tracker.params({"manifest": "s3://b/cohort.csv", "manifest_sha256": "abc"})
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(to_dict(SETTINGS)))
    tracker.file(folder / CONFIG_FILE)
    tracker.end("FINISHED")
    return uri, run_id


def test_settings_and_manifest_come_back(run: tuple[str, str]) -> None:
    found = recorded(*run)
    assert (found.settings, found.manifest) == (SETTINGS, "s3://b/cohort.csv")
    found.require_same_manifest("copy.csv", "abc")
    with pytest.raises(UsageError, match=r"copy.csv: the manifest has changed since: SHA-256 abd, the run had abc"):
        found.require_same_manifest("copy.csv", "abd")


def test_only_what_changes_no_result_may_be_set(run: tuple[str, str]) -> None:
    assert recorded(*run, ["compute.num_workers=2"]).settings.compute.num_workers == 2
    with pytest.raises(UsageError, match=r"only compute\.\* may be set"):
        recorded(*run, ["recipe.seed=8"])


def test_a_run_that_is_not_there_is_named(run: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="--rerun nothing: no training with its settings is kept under this id"):
        recorded(run[0], "nothing")
