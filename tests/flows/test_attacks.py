"""Attacks of users with tokens on a service of real processes, and a table of their outcomes.

API, dispatcher and jobs are those of a real service; the cluster consists of plain processes, so that a job takes
seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from service.client import Client
from service.settings.service import read_service_settings
from tests.flows.harness import FLOW
from tests.flows.queue_harness import Queue, queue

pytestmark = [*FLOW, pytest.mark.timeout(600)]

SECRET = "cluster-token-that-nobody-reads"


@dataclass
class Lab:
    """A service with the users ada and bob, who may submit jobs, and files that only the service may read."""

    queue: Queue
    folder: Path
    clients: dict[str, Client]
    tokens: dict[str, str]
    outcomes: list[tuple[str, str]]

    @property
    def storage(self) -> Path:
        return Path(self.queue.settings.storage)

    def post(self, path: str, body: dict[str, Any], who: str = "ada") -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        return httpx2.post(f"{self.queue.client.url}{path}", json=body, headers=headers, timeout=30)

    def get(self, path: str, who: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        return httpx2.get(f"{self.queue.client.url}{path}", headers=headers, timeout=30)

    def run_check(self, manifest: str) -> tuple[str, str, int | None]:
        """Submit a check as ada, and return its state, log and exit status."""
        job_id = self.post("/v1/jobs", {"job": {"kind": "check", "manifest": manifest}}).json()["id"]
        job = self.clients["ada"].wait(job_id, timeout_s=120)
        return job.state, "".join(self.clients["ada"].logs(job_id)), job.attempts[-1].exit_code

    def record(self, attack: str, outcome: str) -> None:
        self.outcomes.append((attack, outcome))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("attacked")
    outcomes: list[tuple[str, str]] = []
    with queue(folder) as service_queue, ExitStack() as stack:
        values = yaml.safe_load(service_queue.config.read_text())
        for name in ("slides", "shared"):
            (folder / name).mkdir()
        values |= {"python": sys.executable, "retry_first_s": 0.1, "max_recurring_per_user": 5}
        values["places"] = [{"prefix": f"{folder}/slides"}, {"prefix": f"{folder}/shared", "write": ["*"]}]
        service_queue.config.write_text(yaml.safe_dump(values))
        service_queue.settings = read_service_settings(str(service_queue.config), [])
        (Path(service_queue.settings.storage) / "private" / "ray-token").write_text(f"{SECRET}\n")
        service_queue.start_ray()
        service_queue.start_api()
        service_queue.start_dispatcher()
        tokens = {who: service_queue.client.new_token(who, "submit").secret for who in ("ada", "bob")}
        clients = {who: stack.enter_context(Client(service_queue.client.url, token)) for who, token in tokens.items()}
        yield Lab(service_queue, folder, clients, tokens, outcomes)
    print("\n| attack | outcome |\n| --- | --- |")
    for attack, outcome in outcomes:
        print(f"| {attack} | {outcome} |")


@pytest.mark.parametrize("name", ["ray-token", "queue.db"])
def test_a_secret_of_the_service_is_refused_as_a_manifest(lab: Lab, name: str) -> None:
    answer = lab.post("/v1/jobs", {"job": {"kind": "check", "manifest": f"{lab.storage}/private/{name}"}})
    lab.record(f"check of private/{name}", f"{answer.status_code}")
    assert answer.status_code == 403


def test_a_manifest_replaced_by_a_link_to_a_secret_is_not_read(lab: Lab) -> None:
    lab.queue.kill("dispatch")
    manifest = lab.folder / "shared" / "m.csv"
    manifest.write_text("slide_id,uri\na,a.svs\n")
    job_id = lab.post("/v1/jobs", {"job": {"kind": "check", "manifest": str(manifest)}}).json()["id"]
    manifest.unlink()
    manifest.symlink_to(lab.storage / "private" / "ray-token")
    lab.queue.start_dispatcher()
    job = lab.clients["ada"].wait(job_id, timeout_s=120)
    log = "".join(lab.clients["ada"].logs(job_id))
    lab.record("manifest replaced by a link to the token", f"{job.state}, exit status {job.attempts[-1].exit_code}")
    assert (job.state, job.attempt, job.attempts[-1].exit_code) == ("failed", 1, 2)
    assert SECRET not in log
    assert "lies outside the places" in log


def test_links_to_secrets_in_a_folder_of_slides_are_not_followed(lab: Lab) -> None:
    folder = lab.folder / "shared" / "links"
    folder.mkdir()
    (folder / "token.svs").symlink_to(lab.storage / "private" / "ray-token")
    (folder / "private").symlink_to(lab.storage / "private")
    state, log, status = lab.run_check(f"{folder}/")
    lab.record("folder with links to secrets as manifest", f"{state}, exit status {status}")
    assert (state, status) == ("failed", 2)
    assert SECRET not in log
    assert "queue.db" not in log


@pytest.mark.parametrize("place", ["users/bob/jobs/score-x/scores", "users/ada/jobs", "private", "anything"])
def test_output_folders_in_the_services_own_folder_are_refused(lab: Lab, place: str) -> None:
    out, model = f"{lab.storage}/{place}", "models:/magnet@challenger"
    job = {"kind": "score", "manifest": f"{lab.folder}/slides/", "model": model, "out": out}
    answer = lab.post("/v1/jobs", {"job": job})
    lab.record(f"score with out={place}", f"{answer.status_code}")
    assert answer.status_code == 403


def test_results_of_another_user_cannot_be_read_through_an_own_job(lab: Lab) -> None:
    """The results of bob are in a shared folder; ada names it in a job of hers, which waits or fails."""
    (lab.folder / "slides" / "x.svs").write_bytes(b"no slide")
    out = lab.folder / "shared" / "bob"
    job = {"kind": "score", "manifest": f"{lab.folder}/slides/", "model": "models:/magnet@challenger", "out": str(out)}
    assert lab.post("/v1/jobs", {"job": job}, "bob").status_code == 201
    out.mkdir(exist_ok=True)
    (out / "scores.csv").write_text("slide_id\nsecret\n")
    answer = lab.post("/v1/jobs", {"job": job}, "ada")
    status = (
        409
        if answer.status_code != 201
        else lab.get(f"/v1/jobs/{answer.json()['id']}/scores?format=csv", "ada").status_code
    )
    lab.record("another user's results through a job with the same out", f"{status}")
    assert status in (403, 404, 409)


@pytest.mark.parametrize("cron", ["* * * * * 0 2026", "0 0 30 2 *", "* * * * * *", "* * * * *", "@reboot", "H H * * *"])
def test_cron_expressions_that_never_or_too_often_fire_are_refused(lab: Lab, cron: str) -> None:
    job = {"kind": "check", "manifest": f"{lab.folder}/slides/"}
    answer = lab.post("/v1/recurring", {"what": "schedule", "cron": cron, "job": job})
    lab.record(f"schedule '{cron}'", f"{answer.status_code}")
    assert answer.status_code == 422


def test_a_file_name_that_is_not_utf_8_does_not_stop_a_watch(lab: Lab) -> None:
    inbox = lab.folder / "slides" / "inbox"
    inbox.mkdir()
    (Path(os.fsdecode(bytes(inbox) + b"/caf\xe9.svs"))).write_bytes(b"x")
    (inbox / "good.svs").write_bytes(b"x")
    body = {"what": "watch", "folder": f"{inbox}/", "model": "models:/magnet@champion", "settle_s": 0}
    assert lab.post("/v1/recurring", body, "bob").status_code == 201
    deadline = time.monotonic() + 60
    while not (notes := [entry.note for entry in lab.clients["bob"].recurring() if entry.note]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lab.record("latin-1 name in a watched folder", str(notes[0]))
    assert "submitted" in str(notes[0])
    assert lab.queue.parts["dispatch"].process.poll() is None


def test_more_schedules_than_the_limit_are_refused(lab: Lab) -> None:
    job = {"kind": "check", "manifest": f"{lab.folder}/slides/"}
    statuses = [
        lab.post("/v1/recurring", {"what": "schedule", "cron": f"{k} 2 * * *", "job": job}).status_code
        for k in range(8)
    ]
    lab.record("eight schedules where five are allowed", f"{statuses}")
    assert statuses == [201] * 5 + [429] * 3


@pytest.mark.parametrize("alias", ["champion", "Champion", "latest"])
def test_a_training_cannot_make_itself_the_champion(lab: Lab, alias: str) -> None:
    job = {"kind": "train", "manifest": f"{lab.folder}/slides/m.csv", "settings": {"alias": alias}}
    (lab.folder / "slides" / "m.csv").write_text("slide_id,uri,label\n")
    answer = lab.post("/v1/jobs", {"job": job})
    lab.record(f"training with alias={alias}", f"{answer.status_code}")
    assert answer.status_code in (403, 422)


@pytest.mark.parametrize("weights", ["file:///etc/x?../../lab/w.safetensors", "w.PTH", "/etc/w", "hub/w.pt", "..\\w"])
def test_weights_with_ambiguous_names_or_code_are_refused(lab: Lab, weights: str) -> None:
    settings = {"model": {"classifier": {"weights": weights}}}
    answer = lab.post(
        "/v1/jobs", {"job": {"kind": "train", "manifest": f"{lab.folder}/slides/m.csv", "settings": settings}}
    )
    lab.record(f"weights={weights}", f"{answer.status_code}")
    assert answer.status_code in (403, 422)


@pytest.mark.parametrize(
    "model",
    ["models:/../x@y", "models:/a/b/../c", "runs:/../../x/model", f"runs:/{'0' * 32}/../../model", "MODELS:/x@y"],
)
def test_models_with_path_tricks_are_refused(lab: Lab, model: str) -> None:
    answer = lab.post("/v1/jobs", {"job": {"kind": "score", "manifest": f"{lab.folder}/slides/", "model": model}})
    lab.record(f"model={model}", f"{answer.status_code}")
    assert answer.status_code in (403, 422)
