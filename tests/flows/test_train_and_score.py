"""The main jobs: train from the object store, record in MLflow, score with the registered model."""

from __future__ import annotations

import io
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from service import storage
from tests.flows.harness import (
    CONFIG,
    EPOCHS,
    FLOW,
    MANIFEST,
    ROOT,
    SAME,
    STEPS_PER_EPOCH,
    Command,
    Service,
    Trained,
    mlflow_client,
    the_run,
)

pytestmark = FLOW

MODEL = "models:/magnet@challenger"


def scores(folder: Path) -> pa.Table:
    return pq.read_table(folder / "scores.parquet")


def score(service: Service, trained: Trained, manifest: str, out: Path, *options: str) -> Command:
    argv = ["ray_jobs/score.py", "--manifest", manifest, "--model", MODEL, "--storage", trained.storage, "--out", out]
    return service.run(*argv, *options)


@pytest.fixture(scope="module")
def scored(
    service: Service,
    trained: Trained,
    new_manifest: tuple[str, pd.DataFrame],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Command, Path]:
    """A job that scored the new manifest with its own copy of the code, and the folder of its table."""
    out = tmp_path_factory.mktemp("scores")
    argv = ["ray_jobs/score.py", "--manifest", new_manifest[0], "--model", MODEL]
    argv += ["--storage", str(trained.storage), "--out", str(out)]
    return service.job(*argv, options=("--working-dir", ".")), out


def test_a_training_is_one_finished_run_with_settings_code_and_config(trained: Trained, config: Path) -> None:
    run = the_run(trained.storage)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.zoom.schedule"] == "2,2"
    assert run.data.params["recipe.learning_rate"] == "0.001"  # from the preset
    assert run.data.params["manifest"] == MANIFEST
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert run.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert run.data.tags["ray_job"] in trained.command.output
    client = mlflow_client(trained.storage)
    config_copy = Path(client.download_artifacts(run.info.run_id, "config.yaml"))
    assert yaml.safe_load(config_copy.read_text())["model"]["zoom"]["map_px"] == CONFIG["model"]["zoom"]["map_px"]


def test_a_training_logs_each_epoch_once(trained: Trained) -> None:
    run, client = the_run(trained.storage), mlflow_client(trained.storage)
    for name in ("train/loss", "train/bytes_per_slide", "val/loss", "val/auroc", "val/auroc_low"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(1, EPOCHS + 1)), name
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_training_records_its_slides(service: Service, trained: Trained) -> None:
    inputs = the_run(trained.storage).inputs.dataset_inputs
    by_context = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert set(by_context) == {"train", "val"}
    frame = pd.read_csv(io.BytesIO(storage_object(service, "manifest.csv")))
    for context, dataset in by_context.items():
        assert json.loads(dataset.profile)["num_rows"] == int((frame["split"] == context).sum())
        assert MANIFEST in dataset.source
        assert dataset.digest
    assert by_context["train"].digest != by_context["val"].digest


def test_a_training_registers_its_best_model_and_keeps_checkpoints(trained: Trained) -> None:
    run, client = the_run(trained.storage), mlflow_client(trained.storage)
    version = client.get_model_version_by_alias("magnet", "challenger")
    assert version.run_id == run.info.run_id
    mlflow.set_tracking_uri(f"sqlite:///{trained.storage}/mlflow.db")
    model = Path(mlflow.artifacts.download_artifacts(MODEL))
    best = max(client.get_metric_history(run.info.run_id, "val/selection"), key=lambda point: point.value)
    checkpoints = [path.parent for path in trained.storage.glob(f"{run.info.run_name}/*/model.safetensors")]
    steps = {STEPS_PER_EPOCH * epoch for epoch in (EPOCHS - 1, EPOCHS, best.step)}  # the newest two and the best
    assert {folder.name for folder in checkpoints} == {f"checkpoint-{step:08d}" for step in steps}
    assert all((folder / "training.pt").is_file() for folder in checkpoints)
    [settings] = [json.loads(path.read_text()) for path in model.rglob("settings.json")]
    assert settings["metrics"]["val/selection"] == pytest.approx(best.value)


def test_the_output_of_a_training_has_no_messages_of_libraries(trained: Trained) -> None:
    output = trained.command.output
    assert f"epoch {EPOCHS}/{EPOCHS}" in output
    for message in ("Reporting training result", "UserWarning", "Found credentials", "Progress bars disabled"):
        assert message not in output


def test_a_table_of_scores_has_one_row_per_slide_of_the_manifest(
    scored: tuple[Command, Path], new_manifest: tuple[str, pd.DataFrame]
) -> None:
    command, out = scored
    frame = scores(out).to_pandas().set_index("slide_id")
    assert list(frame.index) == list(new_manifest[1]["slide_id"])
    failed = frame[frame["status"] == "failed"]
    refused = frame[frame["status"] == "refused"]
    assert (frame["status"] == "scored").sum() + len(refused) + len(failed) == len(frame)
    assert list(refused.index) == ["blank"]
    assert "blank: no tissue found" in refused["reason"].iloc[0]
    assert list(failed.index) == ["broken", "missing"]
    for slide_id, row in failed.iterrows():
        assert f"s3://cohort/slides/{slide_id}.tif" in row["reason"]
        assert f"{slide_id} failed: " in command.output
    scored_rows = frame[frame["status"] == "scored"]
    assert scored_rows["probability"].between(0, 1).all()
    assert (scored_rows["num_regions"] == 1 + 2 + 4).all()
    assert (scored_rows["bytes_read"] > 0).all()
    assert (scored_rows["model_version"] == "1").all()
    assert "19 slides: 16 scored, 1 refused, 2 failed" in command.output
    patients = pd.read_csv(out / "patients.csv")
    assert patients[["scored", "refused", "failed"]].sum().tolist() == [16, 1, 2]


def test_each_scored_slide_has_pictures_and_geojson(scored: tuple[Command, Path]) -> None:
    frame = scores(scored[1]).to_pandas()
    scored_rows = frame[frame["status"] == "scored"]
    assert {path.stem for path in (scored[1] / "pictures").iterdir()} == set(scored_rows["slide_id"])
    for column in ("picture", "overlay"):
        assert all(storage.read_bytes(uri).startswith(b"\xff\xd8\xff") for uri in scored_rows[column])
    for slide_id, uri, num in zip(
        scored_rows["slide_id"], scored_rows["geojson"], scored_rows["num_regions"], strict=True
    ):
        collection = json.loads(storage.read_bytes(uri))
        assert (collection["slide_id"], len(collection["features"])) == (slide_id, num - 1)
    report = (scored[1] / "report.html").read_text()
    assert report.count("data:image/jpeg") == len(scored_rows)
    assert "s3://cohort/slides/missing.tif" in report


def test_csv_and_parquet_hold_the_same_scores(scored: tuple[Command, Path]) -> None:
    frame = scores(scored[1]).to_pandas()
    text = pd.read_csv(scored[1] / "scores.csv", dtype={"model_version": str})
    for name in ("slide_id", "status", "probability", "num_regions", "bytes_read", "reason", "model_version"):
        pd.testing.assert_series_equal(text[name], frame[name], check_dtype=False)


def test_failed_slides_change_the_exit_status_and_the_same_command_reads_nothing_again(
    service: Service,
    trained: Trained,
    scored: tuple[Command, Path],
    new_manifest: tuple[str, pd.DataFrame],
) -> None:
    """`ray job submit` returns only 0 or 1; the status of the driver is 3."""
    assert scored[0].status == 1
    before, reads = scores(scored[1]), service.slide_reads()
    parts = {path.name: path.stat().st_mtime_ns for path in (scored[1] / "parts").iterdir()}
    second = score(service, trained, new_manifest[0], scored[1])
    assert second.status == 3, second.output
    assert service.slide_reads() == reads
    assert {path.name: path.stat().st_mtime_ns for path in (scored[1] / "parts").iterdir()} == parts
    assert scores(scored[1]).equals(before)


def test_after_a_crash_each_slide_is_scored_once_and_no_finished_slide_is_read_again(
    service: Service,
    trained: Trained,
    scored: tuple[Command, Path],
    new_manifest: tuple[str, pd.DataFrame],
    tmp_path: Path,
) -> None:
    """The actor is killed, then the driver. The same command with two workers gives the rows of an undisturbed one."""
    argv = ["ray_jobs/score.py", "--manifest", new_manifest[0], "--model", MODEL, "--storage", trained.storage]
    argv += ["--out", tmp_path, "--set", "compute.slides_in_flight=1"]

    def finished(num_parts: int) -> set[str]:
        paths = list((tmp_path / "parts").glob("*.parquet"))
        if len(paths) < num_parts:
            return set()
        return {slide_id for path in paths for slide_id in pq.read_table(path)["slide_id"].to_pylist()}

    with service.driver(*argv) as driver:
        driver.wait_for(lambda: finished(1))
        first, reads = finished(1), service.slide_reads()
        service.cluster.kill_worker("ScoreBlock")
        driver.wait_for(lambda: finished(2))
        second = finished(2)
        driver.process.kill()
        driver.process.wait()
    assert not (tmp_path / "scores.parquet").exists()
    after_driver = service.slide_reads()
    assert all(after_driver[slide_id] == reads[slide_id] for slide_id in first)
    rerun = score(service, trained, new_manifest[0], tmp_path, "--num-workers", "2")
    assert rerun.status == 3, rerun.output
    assert f"{len(second)} of 19 slides are already done" in rerun.output
    assert all(service.slide_reads()[slide_id] == after_driver[slide_id] for slide_id in second)
    parts = [pq.read_table(path)["slide_id"].to_pylist() for path in (tmp_path / "parts").iterdir()]
    assert Counter(slide_id for part in parts for slide_id in part) == Counter(new_manifest[1]["slide_id"])
    assert result(tmp_path) == result(scored[1])


@pytest.mark.long
def test_a_rerun_has_the_same_settings_and_metrics(service: Service, trained: Trained) -> None:
    """This test comes last: it registers another version of the model."""
    first = the_run(trained.storage)
    argv = ["ray_jobs/train.py", "--rerun", first.info.run_id, "--storage", trained.storage, "--name", "again"]
    command = service.run(*argv)
    assert command.status == 0, command.output
    client = mlflow_client(trained.storage)
    [second] = client.search_runs([first.info.experiment_id], "attributes.run_name = 'again'")
    assert second.data.tags["rerun_of"] == first.info.run_id
    assert second.data.params == first.data.params
    for name in SAME:
        points = [client.get_metric_history(run.info.run_id, name) for run in (first, second)]
        assert [(p.step, p.value) for p in points[0]] == [(p.step, p.value) for p in points[1]], name


def result(out: Path) -> list[dict[str, Any]]:
    """Return the columns of a table that depend only on slides and model."""
    return scores(out).select(["slide_id", "status", "reason", "probability", "running", "regions", "call"]).to_pylist()


def storage_object(service: Service, key: str) -> bytes:
    body: bytes = service.s3().get_object(Bucket="cohort", Key=key)["Body"].read()
    return body
