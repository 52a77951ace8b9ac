"""`magnet serve` for a new user: a training runs to its end, its model is used, and another training is cancelled."""

from __future__ import annotations

import json
import re
import shlex
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from ray_jobs.cluster.processes import answers, free_port
from service.api.response_bodies import JobView
from service.client import Client, ServiceError
from service.queue.requests import Check, Score, Train, Tune
from service.settings.train import read_train_settings
from service.settings.tune import SearchSettings
from tests.flows.harness import EPOCHS, FLOW, ROOT, STEPS_PER_EPOCH, Command, running

pytestmark = [pytest.mark.timeout(1200), *FLOW, pytest.mark.long]  # the first timeout counts

MAGNET = ["python", "-c", "from service.cli.main import main; main()"]
PATIENCE_S = 400.0


@pytest.fixture
def serve(cohort: Path, tmp_path: Path) -> Iterator[Command]:
    """A service on this machine, with a separate home folder."""
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [*MAGNET, "serve", "--storage", tmp_path / "service", "--allow", cohort, "--port", str(free_port())]
    with running([*argv, "--set", "retry_first_s=1"], env, tmp_path / "serve.log") as command:
        command.wait_for("all parts are up", PATIENCE_S)
        yield command


@pytest.fixture
def client(serve: Command, tmp_path: Path) -> Iterator[Client]:
    """A client with the token that the first start created."""
    stored = json.loads((tmp_path / ".config" / "magnet" / "client.json").read_text())
    with Client(stored["url"], stored["token"]) as client:
        yield client


def test_a_training_is_followed_to_its_end_and_its_model_used(
    client: Client, cohort: Path, config: Path, tmp_path: Path
) -> None:
    settings, manifest = read_train_settings(str(config), []), str(cohort / "manifest.csv")
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
    assert read_run_status(trained, tmp_path) == "FINISHED"
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

    endless = client.submit(Train(manifest=manifest, settings=read_train_settings(str(config), ["recipe.epochs=1000"])))
    deadline = time.monotonic() + PATIENCE_S
    while (job := client.job(endless.id)).progress.activity != "training":
        assert time.monotonic() < deadline, "".join(client.logs(endless.id))
        time.sleep(0.5)
    assert job.progress.eta_s is not None
    started_s = time.monotonic()
    client.cancel(endless.id)
    cancelled = client.wait(endless.id, timeout_s=60, look_s=0.2)
    print(f"\ncancelled after {time.monotonic() - started_s:.1f} s")
    assert (cancelled.state, cancelled.reason) == ("cancelled", "cancelled while it ran")
    assert read_run_status(cancelled, tmp_path) == "KILLED"


def read_run_status(job: JobView, folder: Path) -> str:
    """Return the status of the MLflow run that the job's link leads to."""
    match = re.fullmatch(r"(http://127.0.0.1:\d+)/#/runs/([0-9a-f]{32})", job.mlflow_run or "")
    assert match
    settings = yaml.safe_load((folder / "service" / "service.yaml").read_text())
    assert match[1] == settings["mlflow"]
    token = (folder / "service" / "private" / "mlflow-token").read_text()
    url = f"{match[1]}/api/2.0/mlflow/runs/get"
    answer = httpx2.get(url, params={"run_id": match[2]}, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    status: str = answer.json()["run"]["info"]["status"]
    return status


def test_nobody_else_can_read_the_services_private_files(serve: Command, client: Client, tmp_path: Path) -> None:
    """Neither other users of the machine nor jobs can; Ray's ports listen on all interfaces and require the token."""
    private = tmp_path / "service" / "private"
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (private.parent, private)] == [0o700, 0o700]
    secrets = [path for path in private.rglob("*") if path.is_file()]
    assert {"ray-token", "mlflow-token", "admin-token", "queue.db", "mlflow.db", "api.log"} <= {p.name for p in secrets}
    for path in [*secrets, tmp_path / ".config" / "magnet" / "client.json"]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        with pytest.raises(ServiceError, match="outside"):
            client.submit(Check(manifest=str(path)))
    ray_folder = Path((private / "ray-folder").read_text())
    # Ray opens its own folder to all users; the folder around it is closed.
    assert list(ray_folder.glob("r/session_*/sockets/*"))
    assert stat.S_IMODE(ray_folder.stat().st_mode) == 0o700
    settings = yaml.safe_load((tmp_path / "service" / "service.yaml").read_text())
    assert httpx2.get(str(settings["mlflow"]), trust_env=False).status_code == 401
    stranger = {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": settings["ray"], "HOME": str(tmp_path / "other")}
    argv = ["ray", "job", "submit", "--address", settings["ray"], "--", "true"]
    with running(argv, stranger, tmp_path / "stranger.log") as command:
        assert command.finish(60).status != 0
    assert "401" in command.output or "uthentication" in command.output


def test_jobs_run_on_the_services_cluster_although_another_one_started_later(
    client: Client, cohort: Path, config: Path, tmp_path: Path
) -> None:
    """A later `ray start --head` overwrites the address in Ray's default folder, which must not redirect jobs."""
    gcs_port, jobs_port, agent_port, client_port = (free_port() for _ in range(4))
    argv = shlex.split(
        f"ray start --head --block --num-cpus=2 --node-ip-address=127.0.0.1 --port={gcs_port} --disable-usage-stats "
        f"--dashboard-port={jobs_port} --dashboard-agent-listen-port={agent_port} "
        f"--ray-client-server-port={client_port}"
    )
    with running([*argv, "--object-store-memory=100000000"], {}, tmp_path / "other-ray.log") as other:
        other.wait_for(lambda: answers(f"http://127.0.0.1:{jobs_port}/api/version"))
        settings = read_train_settings(str(config), ["recipe.epochs=1"])
        job = client.submit(Train(manifest=str(cohort / "manifest.csv"), settings=settings))
        ended = client.wait(job.id, timeout_s=PATIENCE_S)
        assert (ended.state, ended.attempt) == ("done", 1), "".join(client.logs(job.id))
        jobs = httpx2.get(f"http://127.0.0.1:{jobs_port}/api/jobs/", trust_env=False).json()
        assert jobs == []  # the other cluster has no drivers
