"""One attempt, with a cluster that does what the test says."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from service.queue import attempts as module
from service.queue.attempt_folder import AttemptFolder, Beat, Ending, attempt_folder
from service.queue.attempts import Attempts, Outcome
from service.queue.job import Job, Progress
from service.queue.ray_api import RayAwayError, RayRefusedError
from service.queue.requests import Check, Train, Tune
from service.queue.secrets import Mask
from service.queue.store import JobStore, Limits
from service.queue.tables import Database
from service.service_settings import ServiceSettings
from service.settings import train_settings
from service.tune_settings import SearchSettings, search_settings

ALL = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@dataclass
class Ray:
    """Knows what it is told."""

    states: dict[str, str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str], about: dict[str, str]) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.commands.append(shlex.split(entrypoint))
        self.environments.append(env)
        self.states[submission_id] = "RUNNING"

    def status(self, submission_id: str) -> str | None:
        if self.fails:
            raise self.fails[0]
        return self.states.get(submission_id)

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        self.states[submission_id] = "STOPPED"


@dataclass
class Own:
    attempts: Attempts
    store: JobStore
    ray: Ray
    settings: ServiceSettings

    def begun(self, request: Train | Tune | None = None, max_attempts: int = 5) -> Job:
        self.store.add(request or Check(manifest="/m.csv"), "ada", max_attempts=max_attempts)
        [begun] = self.store.admit(ALL)
        return begun

    def folder(self, job: Job) -> AttemptFolder:
        return attempt_folder(self.settings.job_folder(job.owner, job.id), job.attempt)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    settings = ServiceSettings(storage=str(tmp_path), beat_s=0.01, silence_s=0.05, hung_s=0.2, python="py")
    store, ray = JobStore(Database(settings.database_url)), Ray()
    return Own(Attempts(store, ray, settings), store, ray, settings)


def test_launch_hands_ray_the_command_of_the_kind(own: Own) -> None:
    """What a person would type, and the same for every attempt."""
    job = own.begun(Train(manifest="/m.csv", settings=train_settings(None, ["recipe.epochs=3"])))
    assert own.attempts.launch(job.id, 1) is None
    [command] = own.ray.commands
    own_words = command[command.index("--") + 1 :]
    config = f"{own.settings.job_folder(job.owner, job.id)}/settings.yaml"
    runs = own.settings.runs(job.owner)
    expected = ["py", "-m", "ray_jobs.train", "--manifest", "/m.csv", "--config", config, "--storage", runs]
    assert own_words == [*expected, "--name", job.id]
    assert train_settings(config) == train_settings(None, ["recipe.epochs=3"])
    assert yaml.safe_load(Path(config).read_text())["recipe"]["epochs"] == 3
    assert own.store.job(job.id).state == "running"


def test_a_job_brings_the_token_of_mlflow_which_its_log_masks(own: Own, tmp_path: Path) -> None:
    (tmp_path / "mlflow-token").write_text("a-secret-of-mlflow\n")
    settings = replace(own.settings, mlflow="http://mlflow:5000", mlflow_token_file=str(tmp_path / "mlflow-token"))
    job = own.begun()
    assert Attempts(own.store, own.ray, settings).launch(job.id, 1) is None
    [environment] = own.ray.environments
    assert environment["MLFLOW_TRACKING_TOKEN"] == "a-secret-of-mlflow"
    assert "a-secret" not in Mask(environment)("401 for a-secret-of-mlflow")


def test_a_search_is_handed_over_with_what_it_varies(own: Own) -> None:
    job = own.begun(Tune(manifest="/m.csv", search=SearchSettings(trials=7, schedules=((3, 2), (2, 2, 2)))))
    assert own.attempts.launch(job.id, 1) is None
    search = f"{own.settings.job_folder(job.owner, job.id)}/search.yaml"
    assert own.ray.commands[0][-2:] == ["--search", search]
    assert search_settings(search, []) == SearchSettings(trials=7, schedules=((3, 2), (2, 2, 2)))


def test_a_launch_that_is_done_again_starts_nothing_that_has_begun(own: Own) -> None:
    job = own.begun()
    own.folder(job).write_beat(Beat(count=1, log_bytes=0))
    assert own.attempts.launch(job.id, 1) is None
    assert own.ray.commands == []


def test_a_launch_waits_for_a_cluster_that_is_away_and_says_so_once(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.ray.fails = [RayAwayError("no answer")] * 5
    job = own.begun()
    seen: list[str | None] = []
    monkeypatch.setattr(module.time, "sleep", lambda _: seen.append(own.store.job(job.id).activity))
    assert own.attempts.launch(job.id, 1) is None
    assert set(seen) == {"waiting: no answer"}
    assert [e.text for e in own.store.events(job.id)].count("waiting: no answer") == 1


def test_a_job_that_ray_refuses_fails_for_good(own: Own) -> None:
    own.ray.fails = [RayRefusedError("bad runtime_env")]
    job = own.begun()
    outcome = own.attempts.launch(job.id, 1)
    assert outcome is not None
    own.attempts.settle(job.id, 1, outcome)
    assert (own.store.job(job.id).state, own.store.job(job.id).reason) == ("failed", "bad runtime_env")


def test_the_witness_is_believed_though_ray_says_it_runs(own: Own) -> None:
    job = own.begun()
    own.attempts.launch(job.id, 1)
    ended = Beat(count=2, log_bytes=5, progress=Progress(done=1, total=2), ending=Ending(exit_code=3, last="x"))
    own.folder(job).write_beat(ended)
    assert own.attempts.follow(job.id, 1, 5.0) == Outcome(exit_code=3, reason="x")
    assert own.store.job(job.id).done == 1


def test_a_job_that_ray_forgot_is_lost_once_it_is_silent(own: Own) -> None:
    job = own.begun()
    own.attempts.launch(job.id, 1)
    own.ray.states.clear()
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert "the cluster lost the job" in outcome.reason
    assert own.folder(job).stopped()  # should it still live somewhere


def test_a_silent_job_is_stopped_though_ray_says_it_runs(own: Own) -> None:
    job = own.begun()
    own.attempts.launch(job.id, 1)
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert own.ray.stopped == [f"{job.id}-1"]


def test_nothing_is_decided_while_ray_is_away(own: Own) -> None:
    job = own.begun()
    own.attempts.launch(job.id, 1)
    own.ray.fails = [RayAwayError("no answer")]
    assert own.attempts.follow(job.id, 1, 0.3) is None
    own.store.cancel(job.id)
    outcome = own.attempts.follow(job.id, 1, 5.0)  # but a cancelled job hears it through its folder
    assert outcome is not None
    assert own.folder(job).stopped()


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "done"), (3, "done"), (2, "failed"), (4, "failed"), (1, "queued"), (143, "queued"), (None, "queued")],
)
def test_the_exit_status_decides_over_another_attempt(own: Own, code: int | None, state: str) -> None:
    job = own.begun()
    own.attempts.settle(job.id, 1, Outcome(exit_code=code, reason="because"))
    assert own.store.job(job.id).state == state


def test_the_last_attempt_fails_the_job(own: Own) -> None:
    job = own.begun(max_attempts=1)
    own.attempts.settle(job.id, 1, Outcome(exit_code=1, reason="because"))
    assert (own.store.job(job.id).state, own.store.job(job.id).reason) == ("failed", "because")


def test_a_cancelled_job_that_was_done_before_it_heard_is_done(own: Own) -> None:
    job = own.begun()
    own.store.cancel(job.id)
    own.attempts.settle(job.id, 1, Outcome(exit_code=0))
    assert own.store.job(job.id).state == "done"
