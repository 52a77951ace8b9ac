"""`magnet serve` as a new user has it: a training to its end, what it trained used, another one cancelled."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from ray_jobs.processes import free_port
from service.api.views import JobView
from service.client import Client
from service.queue.requests import Score, Train, Tune
from service.settings import train_settings
from service.tune_settings import SearchSettings
from tests.flows.harness import EPOCHS, FLOW, ROOT, STEPS_PER_EPOCH, Command, running

pytestmark = [pytest.mark.timeout(1200), *FLOW, pytest.mark.long]  # the first timeout counts

MAGNET = ["python", "-c", "from service.cli.main import main; main()"]
PATIENCE_S = 400.0


@pytest.fixture
def serve(cohort: Path, tmp_path: Path) -> Iterator[Command]:
    """A service on this machine, in a home of its own."""
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [*MAGNET, "serve", "--storage", tmp_path / "service", "--allow", cohort, "--port", str(free_port())]
    with running([*words, "--set", "retry_first_s=1"], own, tmp_path / "serve.log") as command:
        command.wait_for("all parts are up", PATIENCE_S)
        yield command


@pytest.fixture
def client(serve: Command, tmp_path: Path) -> Iterator[Client]:
    """With the token that the first start made."""
    kept = json.loads((tmp_path / ".config" / "magnet" / "client.json").read_text())
    with Client(kept["url"], kept["token"]) as own:
        yield own


def test_a_training_is_followed_to_its_end_and_its_model_used(
    client: Client, cohort: Path, config: Path, tmp_path: Path
) -> None:
    settings, manifest = train_settings(str(config), []), str(cohort / "manifest.csv")
    trained = client.submit(Train(manifest=manifest, settings=settings))
    log = "".join(client.logs(trained.id, follow=True))
    trained = client.job(trained.id)
    assert (trained.state, trained.attempt) == ("done", 1), log
    num_steps = EPOCHS * STEPS_PER_EPOCH
    assert (trained.progress.activity, trained.progress.done, trained.progress.total) == (
        "training",
        num_steps,
        num_steps,
    )
    assert f"epoch {EPOCHS}/{EPOCHS}" in log
    assert "\x1b[" not in log
    assert the_status(trained, tmp_path) == "FINISHED"
    assert trained.attempts[0].ray_job.endswith(f"/#/jobs/{trained.id}-1")

    scored = client.submit(Score(manifest=manifest, model="models:/magnet@challenger", split="test"))
    searched = client.submit(
        Tune(manifest=manifest, settings=settings, search=SearchSettings(trials=2, schedules=((2, 2), (3,))))
    )
    assert client.wait(scored.id, timeout_s=PATIENCE_S).state == "done", "".join(client.logs(scored.id))
    slide_id = client.scores(scored.id, "csv").decode().splitlines()[1].split(",")[0]
    assert client.slide(scored.id, slide_id)[:2] == b"\xff\xd8"  # a JPEG
    ended = client.wait(searched.id, timeout_s=PATIENCE_S)
    assert (ended.state, ended.progress.activity) == ("done", "searching"), "".join(client.logs(searched.id))
    assert (ended.progress.done, ended.progress.total) == (2, 2)

    endless = client.submit(Train(manifest=manifest, settings=train_settings(str(config), ["recipe.epochs=1000"])))
    deadline = time.monotonic() + PATIENCE_S
    while (job := client.job(endless.id)).progress.activity != "training":
        assert time.monotonic() < deadline, "".join(client.logs(endless.id))
        time.sleep(0.5)
    assert job.progress.eta_s is not None
    began_s = time.monotonic()
    client.cancel(endless.id)
    cancelled = client.wait(endless.id, timeout_s=60, look_s=0.2)
    print(f"\ncancelled after {time.monotonic() - began_s:.1f} s")
    assert (cancelled.state, cancelled.reason) == ("cancelled", "cancelled while it ran")
    assert the_status(cancelled, tmp_path) == "KILLED"


def the_status(job: JobView, folder: Path) -> str:
    """Of the run in MLflow that the job's link leads to."""
    found = re.fullmatch(r"(http://127.0.0.1:\d+)/#/runs/([0-9a-f]{32})", job.mlflow_run or "")
    assert found
    settings = yaml.safe_load((folder / "service" / "service.yaml").read_text())
    assert found[1] == settings["mlflow"]
    status: str = MlflowClient(tracking_uri=found[1]).get_run(found[2]).info.status
    return status


def test_what_it_keeps_for_itself_nobody_else_can_read(serve: Command, tmp_path: Path) -> None:
    """Ray's ports listen on all interfaces: without the token they refuse."""
    for name in ("service/ray-token", "service/admin-token", ".config/magnet/client.json"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600
    settings = yaml.safe_load((tmp_path / "service" / "service.yaml").read_text())
    stranger = {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": settings["ray"], "HOME": str(tmp_path / "other")}
    words = ["ray", "job", "submit", "--address", settings["ray"], "--", "true"]
    with running(words, stranger, tmp_path / "stranger.log") as command:
        assert command.finish(60).status != 0
    assert "401" in command.output or "uthentication" in command.output
