"""One attempt, with a cluster that does what the test says."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from service.progress.record import Progress
from service.queue import attempts as module
from service.queue.attempt_folder import AttemptFolder, Beat, Ending, Stop, attempt_folder
from service.queue.attempts import Attempts, Outcome
from service.queue.job import Job
from service.queue.observer import Observer
from service.queue.ray_api import RayAwayError, RayRefusedError
from service.queue.requests import Check, Train, Tune
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, attempts, jobs
from service.settings.service import ServiceSettings
from service.settings.train import train_settings
from service.settings.tune import SearchSettings, search_settings
from service.supervisor.secrets import Mask

ALL = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@dataclass
class Ray:
    """Knows what it is told."""

    states: dict[str, str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)
    said: str = ""

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

    def message(self, submission_id: str) -> str:
        return "" if self.fails else self.said

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
    [
        (0, "done"),
        (3, "done"),
        (2, "failed"),
        (4, "failed"),
        (5, "failed"),
        (1, "queued"),
        (143, "queued"),
        (None, "queued"),
    ],
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


def running(own: Own) -> Job:
    job = own.begun()
    assert own.attempts.launch(job.id, 1) is None
    return own.store.job(job.id)


def look(own: Own, job: Job) -> Outcome | None:
    """One look, by a dispatcher that has just started."""
    return Observer(own.store, own.ray, own.settings, job.id, 1).look()


def since(own: Own, job: Job, seconds: float) -> None:
    """As if the attempt had started so long ago, and nothing had changed since."""
    then = {"moved_s": time.time() - seconds}
    with own.store.database.writing() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(then))
        started = attempts.update().where(attempts.c.job_id == job.id)
        connection.execute(started.values(started_s=time.time() - seconds))


def beat(own: Own, job: Job, count: int, idle_s: float, ending: Ending | None = None) -> None:
    progress = Progress(done=3, total=9, activity="scoring")
    own.folder(job).write_beat(Beat(count=count, log_bytes=9, progress=progress, idle_s=idle_s, ending=ending))


def test_a_job_without_progress_says_so_from_half_of_the_limit_on(own: Own) -> None:
    job = running(own)
    since(own, job, 1920)
    beat(own, job, 1, 1920)
    assert look(own, job) is None
    shown = own.store.job(job.id)
    assert shown.activity == "scoring; no progress for 32 min"
    assert (own.ray.stopped, own.folder(job).stopped()) == ([], False)
    beat(own, job, 2, 0.0)  # it goes on
    assert look(own, job) is None
    assert own.store.job(job.id).activity == "scoring"


@pytest.mark.parametrize("ray_away", [False, True])
def test_a_job_without_progress_is_ended_with_that_reason_and_retried(own: Own, ray_away: bool) -> None:
    """Also while Ray is unavailable, and by a dispatcher that has just started: what counts lies in the table."""
    job = running(own)
    beat(own, job, 1, 10.0)
    assert look(own, job) is None
    since(own, job, 4000)
    beat(own, job, 2, 3700.0)
    own.ray.fails = [RayAwayError("no answer")] if ray_away else []
    assert look(own, job) is None
    assert own.folder(job).stopped()
    assert own.ray.stopped == ([] if ray_away else [f"{job.id}-1"])
    beat(own, job, 3, 0.0, Ending(exit_code=143, last="interrupted"))  # the stop itself is a line of the log
    outcome = Attempts(own.store, own.ray, own.settings).follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.reason.startswith("no progress for 6")
    own.attempts.settle(job.id, 1, outcome)
    assert own.store.job(job.id).state == "queued"


def test_an_attempt_over_the_hours_of_its_kind_ends_for_good(own: Own) -> None:
    job = running(own)
    since(own, job, 4 * 3600 + 60)
    beat(own, job, 1, 0.0)
    assert look(own, job) is None
    beat(own, job, 2, 0.0, Ending(exit_code=130, last="interrupted"))
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome == Outcome(
        exit_code=130, reason="ended after 4 h, the longest time of a check job (max_hours)", final=True
    )
    own.attempts.settle(job.id, 1, outcome)
    assert own.store.job(job.id).state == "failed"


def test_hours_count_from_when_ray_took_the_attempt(own: Own) -> None:
    job = own.begun()
    since(own, job, 5 * 3600)  # Ray was unavailable for so long
    assert own.attempts.launch(job.id, 1) is None
    assert look(own, job) is None
    assert not own.folder(job).stopped()


def test_a_job_that_ends_well_while_it_is_stopped_is_done(own: Own) -> None:
    job = running(own)
    own.folder(job).stop(Stop(reason="no progress for 60 min"))
    beat(own, job, 1, 0.0, Ending(exit_code=0, last="done"))
    assert own.attempts.follow(job.id, 1, 5.0) == Outcome(exit_code=0, reason="done")


def test_a_silent_hopeless_job_is_given_up_though_ray_is_unavailable(own: Own) -> None:
    job = running(own)
    since(own, job, 5 * 3600)
    own.ray.fails = [RayAwayError("no answer")]
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.final
    assert "max_hours" in outcome.reason


def test_a_signal_is_named_with_the_last_output(own: Own) -> None:
    job = running(own)
    beat(own, job, 1, 0.0, Ending(exit_code=137, last="step 3/9"))
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome == Outcome(exit_code=137, reason="killed by SIGKILL, as when memory runs out; last output: step 3/9")


def test_what_ray_says_of_a_lost_witness_is_quoted(own: Own) -> None:
    job = running(own)
    own.ray.states[f"{job.id}-1"], own.ray.said = "FAILED", "The job supervisor died"
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.reason.endswith("Ray says FAILED: The job supervisor died")


def test_a_request_that_can_no_longer_be_read_fails_its_job_alone(own: Own) -> None:
    job = own.begun()
    with own.store.database.writing() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(request='{"kind": "check"}'))
    outcome = own.attempts.launch(job.id, 1)
    assert outcome is not None
    own.attempts.settle(job.id, 1, outcome)
    assert own.store.job(job.id).state == "failed"
    assert "can no longer be read" in (own.store.job(job.id).reason or "")


def test_an_unexpected_error_of_the_launch_fails_the_job_and_no_workflow(own: Own) -> None:
    own.ray.fails = [KeyError("nobody expects this")]
    outcome = own.attempts.launch(own.begun().id, 1)
    assert outcome is not None
    assert outcome.final
    assert "KeyError" in outcome.reason


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"no json", b'{"count": "x"}', b"\xff\xfe", b'{"count":1,"log_bytes":-1}']
)
def test_a_sign_of_life_that_a_job_has_overwritten_is_none(own: Own, content: bytes) -> None:
    job = running(own)
    own.folder(job).write_beat(Beat(count=1, log_bytes=0))
    (Path(own.folder(job).uri) / "beat.json").write_bytes(content)
    own.ray.states.clear()
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert "lost the job" in outcome.reason


def test_progress_that_no_table_takes_hides_no_sign_of_life(own: Own) -> None:
    job = running(own)
    own.folder(job).write_beat(Beat(count=1, log_bytes=0, progress=Progress(done=10**30, activity="a\0b")))
    assert look(own, job) is None
    assert own.store.job(job.id).done is None
    assert own.store.job(job.id).beat_s is not None


def test_an_attempt_that_cannot_be_watched_is_given_up(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(own)
    monkeypatch.setattr(own.ray, "status", lambda _: {}["x"])
    outcome = own.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.final
    assert "cannot watch this job: KeyError" in outcome.reason
    assert own.folder(job).stopped()
