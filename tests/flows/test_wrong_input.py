"""All problems of wrong input are reported at once, before a job starts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.harness import FLOW, MANIFEST, Command, Service, Trained, running

pytestmark = FLOW

NOWHERE = {"RAY_ADDRESS": "127.0.0.1:1"}
"""Address of no cluster: a command that tried to connect would fail with another message and status."""


def run(argv: Sequence[str | Path], log: Path, environment: Mapping[str, str] = NOWHERE) -> Command:
    with running(["python", *argv], environment, log) as command:
        return command.finish(60)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train.py", ["--manifest", "--config", "--name", "--storage", "--schedule", "--epochs", "--set"]),
        ("score.py", ["--manifest", "--model", "--out", "--split", "--storage", "--num-workers"]),
        ("pretrain.py", ["--manifest", "--config", "--out", "--minutes", "--steps", "--seed", "--set"]),
    ],
)
def test_a_script_without_arguments_prints_its_help(script: str, options: list[str], tmp_path: Path) -> None:
    started_s = time.monotonic()
    command = run([f"ray_jobs/{script}"], tmp_path / "log")
    assert command.status == 2
    assert f"ray job submit -- python ray_jobs/{script} --manifest" in command.output
    assert all(option in command.output for option in options)
    assert time.monotonic() - started_s < 15  # about 1.5 s on an idle machine


def test_all_wrong_rows_of_a_manifest_are_reported(cohort: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(cohort / "manifest.csv", dtype=str)
    frame["uri"] = [str(cohort / uri) for uri in frame["uri"]]
    frame.loc[1, "slide_id"] = frame.loc[0, "slide_id"]
    frame.loc[2, "label"] = "yes"
    frame.loc[[3, 4], "patient_id"] = "somebody"
    frame.loc[[3, 4], "split"] = ["train", "val"]
    frame.to_csv(tmp_path / "bad.csv", index=False)
    command = run(["ray_jobs/train.py", "--manifest", tmp_path / "bad.csv"], tmp_path / "log")
    assert command.status == 2
    problems = [  # row 1 is the header
        f"row 3, column slide_id: '{frame.loc[0, 'slide_id']}' duplicates row 2",
        "row 4, column label: 'yes' is neither 0 (negative) nor 1 (positive)",
        "row 6, column split: patient 'somebody' is in val, but in train in row 5; a patient must be in one split",
    ]
    assert all(line in command.output for line in problems), command.output
    assert "3 problems" in command.output
    assert "Traceback" not in command.output


def test_missing_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("slide_id,split\na,train\n")
    command = run(["ray_jobs/train.py", "--manifest", tmp_path / "bad.csv"], tmp_path / "log")
    assert command.status == 2
    for column in ("uri", "label"):
        assert f"column {column}: is missing; the table has the columns slide_id, split" in command.output


def test_slides_that_cannot_be_opened_are_named_before_training(cohort: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(cohort / "manifest.csv")
    frame["uri"] = [str(cohort / uri) for uri in frame["uri"]]
    (tmp_path / "torn.tif").write_bytes(Path(frame.loc[1, "uri"]).read_bytes()[:5000])
    frame.loc[1, "uri"] = str(tmp_path / "torn.tif")
    frame.loc[3, "uri"] = str(tmp_path / "missing.tif")
    frame.to_csv(tmp_path / "bad.csv", index=False)
    command = run(["ray_jobs/train.py", "--manifest", tmp_path / "bad.csv"], tmp_path / "log")
    assert command.status == 2
    for row, name in ((3, "torn"), (5, "missing")):
        assert f"row {row}, {frame.loc[row - 2, 'slide_id']}, {tmp_path}/{name}.tif: " in command.output
    assert "2 problems" in command.output


def test_unknown_settings_are_named(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("recipe: {epoch: 3, batch: 0}\nmodell: {}\n")
    argv = ["ray_jobs/train.py", "--manifest", cohort / "manifest.csv", "--config", tmp_path / "bad.yaml"]
    command = run(argv, tmp_path / "log")
    assert command.status == 2
    for line in ("recipe.epoch: unknown setting", "modell: unknown setting"):
        assert line in command.output
    assert "Traceback" not in command.output


def test_an_unknown_model_is_refused(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    argv = ["ray_jobs/score.py", "--manifest", cohort / "manifest.csv", "--model", "models:/magnet@champion"]
    command = run([*argv, "--storage", trained.storage, "--out", tmp_path / "out"], tmp_path / "log")
    assert command.status == 2
    assert "models:/magnet@champion: not found in sqlite:///" in command.output
    assert "Traceback" not in command.output
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_too_large_for_the_cluster_is_refused(service: Service, config: Path, tmp_path: Path) -> None:
    argv = ["ray_jobs/train.py", "--manifest", MANIFEST, "--config", config, "--storage", tmp_path / "runs"]
    command = service.run(*argv, "--num-workers", "2", "--set", "recipe.micro_batch=1")
    assert command.status == 2
    assert "the cluster has 2 CPU, this job needs 3: 2 training worker(s)" in command.output
    assert "Traceback" not in command.output
