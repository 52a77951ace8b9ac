"""A search whose driver is killed continues: no trial and no run exists twice, and the best config trains."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run

from service.settings.train import read_train_settings
from tests.flows.harness import CONFIG, FLOW, Command, Service, mlflow_client

pytestmark = [*FLOW, pytest.mark.long]

SEARCH = {
    "method": "grid",
    "schedules": [[1, 2], [2, 1], [2, 2], [4, 4]],
    "max_patches": 4,
    "grace_epochs": 2,
    "reduction": 2,
}


def runs(folder: Path) -> tuple[Run, list[Run]]:
    """Return the parent run and its child runs."""
    client = mlflow_client(folder)
    all_runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    [parent] = [run for run in all_runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in all_runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, children


def artifact(folder: Path, run: Run, name: str, to: Path) -> Path:
    return Path(mlflow_client(folder).download_artifacts(run.info.run_id, name, str(to)))


@pytest.fixture(scope="module")
def tuned(service: Service, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """A search on two CPUs whose driver is killed after the first trial, and which is continued."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    argv = ["ray_jobs/tune.py", "--manifest", cohort / "manifest.csv", "--config", folder / "config.yaml"]
    argv += ["--search", folder / "search.yaml", "--storage", folder / "runs", "--name", "hunt"]
    argv += ["--search-set", "at_once=1"]
    cluster = service.cluster
    with cluster.driver(*argv, log=folder / "first.log") as first:
        trials = folder / "runs" / "hunt" / "trials"
        first.wait_for(lambda: len(list(trials.glob("*/outcome.json"))) >= 1 and len(list(trials.glob("*"))) >= 2)
        first.process.kill()
        first.process.wait()
    with cluster.driver(*argv, log=folder / "second.log") as second:
        return folder / "runs", second.finish()


def test_a_killed_search_continues_with_one_run_per_trial(tuned: tuple[Path, Command]) -> None:
    folder, command = tuned
    assert command.status == 0, command.output
    parent, children = runs(folder)
    assert parent.info.status == "FINISHED"
    assert sorted(run.data.params["model.zoom.schedule"] for run in children) == ["1,2", "2,1", "2,2"]
    assert {run.info.status for run in children} == {"FINISHED"}
    client = mlflow_client(folder)
    for run in (parent, *children):
        assert [used.dataset.name for used in run.inputs.dataset_inputs] == ["manifest-train", "manifest-val"]
    for run in children:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/step_loss")]
        assert steps == list(range(1, len(steps) + 1))
        assert run.data.params.keys() <= parent.data.params.keys() | {"depth", "num_patches"}
        assert run.data.tags["outcome"] in ("complete", "stopped early")
        # Bytes are those of slides without a cache, in the last epoch as in the first: no schedule looks too cheap.
        sizes = [point.value for point in client.get_metric_history(run.info.run_id, "val/bytes_per_slide")]
        assert min(sizes) > 0.5 * max(sizes) > 0


def test_the_parent_run_lists_trials_and_refused_schedules_and_draws_the_front(
    tuned: tuple[Path, Command], tmp_path: Path
) -> None:
    folder, _ = tuned
    parent, children = runs(folder)
    rows = list(csv.DictReader(io.StringIO(artifact(folder, parent, "trials.csv", tmp_path).read_text())))
    assert {row["trial"] for row in rows} == {run.data.tags["trial"] for run in children}
    assert any(row["on_front"] == "True" for row in rows)
    [refused] = csv.DictReader(io.StringIO(artifact(folder, parent, "refused.csv", tmp_path).read_text()))
    assert refused == {"schedule": "4,4", "reason": "16 last patches, max_patches is 4"}
    assert artifact(folder, parent, "front.png", tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_best_config_is_accepted_by_a_training(tuned: tuple[Path, Command]) -> None:
    folder, _ = tuned
    parent, _ = runs(folder)
    settings = read_train_settings(str(folder / "hunt" / "best.yaml"))
    assert ",".join(map(str, settings.model.zoom.schedule)) == parent.data.tags["best_schedule"]
    assert settings.model.classifier.encoder == CONFIG["model"]["classifier"]["encoder"]  # type: ignore[index]  # nested
