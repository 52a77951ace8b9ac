"""Commands of jobs, with an API in the test's process."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from service.api.response_bodies import AttemptView, JobView, ProgressView
from service.cli import jobs
from service.cli.main import run
from service.cli.tables import format_duration, format_jobs
from service.queue.requests import Score, Train, Tune, from_json
from tests.service.api.api_app import Api

pytestmark = pytest.mark.slow


def submit_check(app: Api, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Submit a check, and return its ID."""
    assert run(["submit", "check", "--manifest", f"{app.lab}/m.csv", *more]) == 0
    return capsys.readouterr().out.strip()


def make_view(**values: Any) -> JobView:
    """Return a job as the API shows it."""
    known = {"id": "check-20260101-000000-0123abcd", "kind": "check", "owner": "ada", "state": "failed", "reason": None}
    known |= {"priority": 0, "attempt": 1, "max_attempts": 5, "created_s": 1000.0, "started_s": None, "ended_s": None}
    known |= {"due_s": 1000.0, "beat_s": None, "source": None, "request": {"manifest": "m.csv"}, "attempts": []}
    known |= {"mlflow_run": None, "results": None}
    known |= {"progress": ProgressView(activity=None, done=None, total=None, eta_s=None)}
    return JobView.model_validate(known | values)


def test_a_training_is_submitted_with_the_options_of_train_py(app: Api, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["submit", "train", "--manifest", f"{app.lab}/m.csv", "--set", "recipe.epochs=3"]
    assert run([*argv, "--priority", "4"]) == 0
    job = app.store.job(capsys.readouterr().out.strip())
    request = from_json(job.request)
    assert isinstance(request, Train)
    assert (request.settings.recipe.epochs, job.priority) == (3, 4)


def test_a_search_is_submitted_with_the_options_of_tune_py(app: Api, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["submit", "tune", "--manifest", f"{app.lab}/m.csv", "--trials", "7"]
    assert run([*argv, "--search-set", "max_patches=18"]) == 0
    request = from_json(app.store.job(capsys.readouterr().out.strip()).request)
    assert isinstance(request, Tune)
    assert (request.search.trials, request.search.max_patches) == (7, 18)


def test_a_models_folder_is_sent_as_an_absolute_path(
    app: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(app.lab)
    assert run(["submit", "score", "--manifest", "m.csv", "--model", "model"]) == 0
    request = from_json(app.store.job(capsys.readouterr().out.strip()).request)
    assert isinstance(request, Score)
    assert (request.manifest, request.model) == (f"{app.lab}/m.csv", f"{app.lab}/model")


def test_jobs_are_listed_shown_and_cancelled(app: Api, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = submit_check(app, capsys)
    assert run(["jobs"]) == 0
    assert job_id in capsys.readouterr().out
    assert run(["show", job_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "queued"
    assert run(["cancel", job_id]) == 0
    assert capsys.readouterr().out == f"{job_id}: cancelled\n"
    assert run(["show", job_id]) == 0
    assert "cancelled before it began" in capsys.readouterr().out


def test_an_empty_list_says_what_to_do(app: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs"]) == 0
    assert "magnet submit" in capsys.readouterr().out
    submit_check(app, capsys)
    assert run(["jobs", "--state", "failed"]) == 0
    assert capsys.readouterr().out == "no such jobs; magnet jobs lists all\n"
    assert run(["schedules"]) == 0
    assert "magnet schedule -h" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["last 8", "first of last part", "first 24"])
def test_an_unambiguous_part_of_an_id_is_enough(app: Api, capsys: pytest.CaptureFixture[str], part: str) -> None:
    job_id = submit_check(app, capsys)
    name = {"last 8": job_id[-8:], "first of last part": job_id[-8:-3], "first 24": job_id[:24]}[part]
    assert run(["cancel", name]) == 0
    assert capsys.readouterr().out == f"{job_id}: cancelled\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("check-20260101-000000-00000000", "no job 'check-20260101-000000-00000000'; `magnet jobs` lists them"),
        ("no/such", "no job 'no/such'; `magnet jobs` lists them"),
        ("xyz", "write at least 4 characters"),
        ("check", "'check' means 2 jobs"),
    ],
)
def test_an_unknown_or_ambiguous_id_is_explained(
    app: Api, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    for _ in range(2):
        submit_check(app, capsys)
    for command in ("show", "logs", "cancel", "retry", "scores"):
        assert run([command, name]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "[0-9]" not in error


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (
            ["submit", "train", "--manifest", "s3://lab/m.csv", "--set", "recipe.epoch=3"],
            2,
            "recipe.epoch: unknown setting",
        ),
        (["submit", "score", "--manifest", "s3://lab/m.csv"], 2, "needs --model"),
        (["submit", "check", "--manifest", "/etc/passwd"], 1, "name a place that jobs may use"),
        (["schedule", "often", "check", "--manifest", "s3://lab/m.csv"], 2, "cron"),
        (["unschedule", "watch-0123456789ab"], 2, "not the ID of a schedule"),
    ],
)
def test_errors_say_what_to_do(
    app: Api, argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == status
    assert message in capsys.readouterr().err


def test_a_schedule_takes_the_options_of_a_job_and_is_ended_by_its_id(
    app: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["schedule", "0 2 * * *", "train", "--manifest", f"{app.lab}/m.csv", "--set", "recipe.epochs=3"]
    assert run(argv) == 0
    entry_id = capsys.readouterr().out.strip()
    assert run(["schedules", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["id"], entry["body"]["job"]["settings"]["recipe"]["epochs"]) == (entry_id, 3)
    assert run(["watches", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["schedules"]) == 0
    assert f"0 2 * * *  train {app.lab}/m.csv" in capsys.readouterr().out
    assert run(["unschedule", entry_id]) == 0
    capsys.readouterr()
    assert run(["schedules", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("state", "exit_codes", "status"),
    [
        ("done", [0], 0),
        ("done", [1, 3], 3),
        ("failed", [1, 2], 2),
        ("failed", [4], 4),
        ("failed", [2, 1], 1),
        ("failed", [137], 1),
        ("failed", [None], 1),
        ("failed", [], 1),
        ("cancelled", [0], 130),
    ],
)
def test_the_exit_status_is_that_of_the_last_attempt(state: str, exit_codes: list[int | None], status: int) -> None:
    attempts = [
        AttemptView(number=k, state="ended", reason=None, exit_code=code, started_s=1.0, ended_s=2.0, ray_job="")
        for k, code in enumerate(exit_codes, start=1)
    ]
    assert jobs.to_exit_status(make_view(state=state, attempts=attempts)) == status


def test_the_list_shows_the_time_since_submission_and_the_running_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    ended = make_view(state="done", created_s=2_800.0, started_s=3_000.0, ended_s=3_065.0)
    head, row = format_jobs([ended]).splitlines()
    assert head.split() == ["JOB", "OWNER", "STATE", "PROGRESS", "SUBMITTED", "TOOK", "REASON"]
    assert row.split() == [ended.id, "ada", "done", "2:00:00", "ago", "1:05"]
    assert format_duration(3 * 86400 + 4 * 3600) == "3 d 4 h"


def test_control_characters_of_a_reason_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in format_jobs([make_view(reason="\x1b]0;owned\x07")])


def test_events_are_printed(app: Api, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = submit_check(app, capsys)
    run(["cancel", job_id])
    capsys.readouterr()
    assert run(["events", job_id, "-f"]) == 0
    states = [line.split("UTC")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert (states[0], states[-1]) == ("queued", "cancelled")


def test_a_deletion_without_a_terminal_needs_yes(
    app: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit_check(app, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(["delete", job_id]) == 2
    assert "--yes" in capsys.readouterr().err
    assert app.store.job(job_id).delete_requested == 0
