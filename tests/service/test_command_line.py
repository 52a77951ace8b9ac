"""The command line, against an API inside the test's process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service import command_line, doctor
from service.client import Client
from service.queue.requests import Train, Tune, from_json
from service.service_settings import ServiceSettings
from tests.service.api_app import Api, api


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    made = api(tmp_path)
    secret = made.headers["ada"]["Authorization"].removeprefix("Bearer ")
    client = lambda: Client("http://testserver", secret, transport=made.http._transport)  # noqa: E731  (a fresh one each)
    monkeypatch.setattr(command_line, "_client", client)
    return made


def test_a_training_is_submitted_with_the_words_of_train_py(own: Api, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "train", "--manifest", f"{own.lab}/m.csv", "--set", "recipe.epochs=3"]
    assert command_line.run([*words, "--priority", "4"]) == 0
    job = own.store.job(capsys.readouterr().out.strip())
    request = from_json(job.request)
    assert isinstance(request, Train)
    assert (request.settings.recipe.epochs, job.priority) == (3, 4)


def test_a_search_is_submitted_with_the_words_of_tune_py(own: Api, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "tune", "--manifest", f"{own.lab}/m.csv", "--trials", "7"]
    assert command_line.run([*words, "--search-set", "max_patches=18"]) == 0
    request = from_json(own.store.job(capsys.readouterr().out.strip()).request)
    assert isinstance(request, Tune)
    assert (request.search.trials, request.search.max_patches) == (7, 18)


def test_jobs_are_listed_shown_and_cancelled(own: Api, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.run(["submit", "check", "--manifest", f"{own.lab}/m.csv"])
    job_id = capsys.readouterr().out.strip()
    assert command_line.run(["jobs"]) == 0
    assert job_id in capsys.readouterr().out
    assert command_line.run(["show", job_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "queued"
    assert command_line.run(["cancel", job_id]) == 0
    assert capsys.readouterr().out == f"{job_id}: cancelled\n"
    assert command_line.run(["show", job_id]) == 0
    assert "cancelled before it began" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "check-20260101-000000-00000000"], 1, "no job 'check-20260101-000000-00000000'"),
        (["submit", "train", "--manifest", "/m.csv", "--set", "recipe.epoch=3"], 2, "recipe.epoch: unknown setting"),
        (["submit", "score", "--manifest", "/m.csv"], 2, "--model is wanted"),
        (["submit", "check", "--manifest", "/etc/passwd"], 1, "name a place that jobs may use"),
    ],
)
def test_errors_say_what_to_do(
    own: Api, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(words) == status
    assert message in capsys.readouterr().err


def test_the_doctor_finds_what_is_away_and_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGNET_URL", "http://127.0.0.1:1")
    away = "http://127.0.0.1:1"
    found = doctor.findings(ServiceSettings(storage=str(tmp_path), ray=away, mlflow=away))
    well = {finding.what: finding.well for finding in found}
    assert {what for what, is_well in well.items() if is_well} == {"storage", "database", "versions"}
    assert all(finding.mend for finding in found if not finding.well)
