"""One attempt, on a cluster whose answers the test sets."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from service.progress.record import Progress
from service.queue import attempts as module
from service.queue.attempt_folder import AttemptFolder, Ending, Heartbeat, Stop, attempt_folder
from service.queue.attempts import Attempts, Outcome
from service.queue.job import Job
from service.queue.observer import Observer
from service.queue.ray_api import RayRefusedError, RayUnavailableError
from service.queue.requests import Check, Train, Tune
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, attempts, jobs
from service.settings.service import ServiceSettings
from service.settings.train import read_train_settings
from service.settings.tune import SearchSettings, read_search_settings
from service.supervisor.secrets import Mask

ALL = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@dataclass
class FakeCluster:
    """A cluster that knows the jobs that were submitted to it."""

    states: dict[str, str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)
    last_message: str = ""

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str], metadata: dict[str, str]) -> None:
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
        return "" if self.fails else self.last_message

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        self.states[submission_id] = "STOPPED"


@dataclass
class Rig:
    attempts: Attempts
    store: JobStore
    ray: FakeCluster
    settings: ServiceSettings

    def started(self, request: Train | Tune | None = None, max_attempts: int = 5) -> Job:
        self.store.add(request or Check(manifest="/m.csv"), "ada", max_attempts=max_attempts)
        [job] = self.store.admit(ALL)
        return job

    def folder(self, job: Job) -> AttemptFolder:
        return attempt_folder(self.settings.job_folder(job.owner, job.id), job.attempt)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    settings = ServiceSettings(storage=str(tmp_path), beat_s=0.01, silence_s=0.05, hung_s=0.2, python="py")
    store, ray = JobStore(Database(settings.database_url)), FakeCluster()
    return Rig(Attempts(store, ray, settings), store, ray, settings)


def test_launch_submits_the_command_of_the_kind(rig: Rig) -> None:
    """It is what a user would type, and the same for every attempt."""
    job = rig.started(Train(manifest="/m.csv", settings=read_train_settings(None, ["recipe.epochs=3"])))
    assert rig.attempts.launch(job.id, 1) is None
    [command] = rig.ray.commands
    arguments = command[command.index("--") + 1 :]
    config = f"{rig.settings.job_folder(job.owner, job.id)}/settings.yaml"
    runs = rig.settings.runs(job.owner)
    expected = ["py", "-m", "ray_jobs.train", "--manifest", "/m.csv", "--config", config, "--storage", runs]
    assert arguments == [*expected, "--name", job.id]
    assert read_train_settings(config) == read_train_settings(None, ["recipe.epochs=3"])
    assert yaml.safe_load(Path(config).read_text())["recipe"]["epochs"] == 3
    assert rig.store.job(job.id).state == "running"


def test_a_job_gets_the_token_of_mlflow_and_its_log_masks_it(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "mlflow-token").write_text("a-secret-of-mlflow\n")
    settings = replace(rig.settings, mlflow="http://mlflow:5000", mlflow_token_file=str(tmp_path / "mlflow-token"))
    job = rig.started()
    assert Attempts(rig.store, rig.ray, settings).launch(job.id, 1) is None
    [environment] = rig.ray.environments
    assert environment["MLFLOW_TRACKING_TOKEN"] == "a-secret-of-mlflow"
    assert "a-secret" not in Mask(environment)("401 for a-secret-of-mlflow")


def test_a_search_is_submitted_with_its_search_settings(rig: Rig) -> None:
    job = rig.started(Tune(manifest="/m.csv", search=SearchSettings(trials=7, schedules=((3, 2), (2, 2, 2)))))
    assert rig.attempts.launch(job.id, 1) is None
    search = f"{rig.settings.job_folder(job.owner, job.id)}/search.yaml"
    assert rig.ray.commands[0][-2:] == ["--search", search]
    assert read_search_settings(search, []) == SearchSettings(trials=7, schedules=((3, 2), (2, 2, 2)))


def test_a_repeated_launch_does_not_start_an_attempt_again(rig: Rig) -> None:
    job = rig.started()
    rig.folder(job).write_beat(Heartbeat(count=1, log_bytes=0))
    assert rig.attempts.launch(job.id, 1) is None
    assert rig.ray.commands == []


def test_a_launch_waits_for_an_unavailable_cluster_and_reports_it_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.ray.fails = [RayUnavailableError("no answer")] * 5
    job = rig.started()
    seen: list[str | None] = []
    monkeypatch.setattr(module.time, "sleep", lambda _: seen.append(rig.store.job(job.id).activity))
    assert rig.attempts.launch(job.id, 1) is None
    assert set(seen) == {"waiting: no answer"}
    assert [e.text for e in rig.store.events(job.id)].count("waiting: no answer") == 1


def test_a_job_that_ray_refuses_fails_for_good(rig: Rig) -> None:
    rig.ray.fails = [RayRefusedError("bad runtime_env")]
    job = rig.started()
    outcome = rig.attempts.launch(job.id, 1)
    assert outcome is not None
    rig.attempts.settle(job.id, 1, outcome)
    assert (rig.store.job(job.id).state, rig.store.job(job.id).reason) == ("failed", "bad runtime_env")


def test_the_supervisor_is_believed_although_ray_reports_a_running_job(rig: Rig) -> None:
    job = rig.started()
    rig.attempts.launch(job.id, 1)
    ended = Heartbeat(count=2, log_bytes=5, progress=Progress(done=1, total=2), ending=Ending(exit_code=3, last="x"))
    rig.folder(job).write_beat(ended)
    assert rig.attempts.follow(job.id, 1, 5.0) == Outcome(exit_code=3, reason="x")
    assert rig.store.job(job.id).done == 1


def test_a_job_that_ray_does_not_know_is_lost_when_it_is_silent(rig: Rig) -> None:
    job = rig.started()
    rig.attempts.launch(job.id, 1)
    rig.ray.states.clear()
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert "the cluster lost the job" in outcome.reason
    assert rig.folder(job).is_stop_requested()  # it may still run somewhere


def test_a_silent_job_is_stopped_although_ray_reports_it_as_running(rig: Rig) -> None:
    job = rig.started()
    rig.attempts.launch(job.id, 1)
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert rig.ray.stopped == [f"{job.id}-1"]


def test_nothing_is_decided_while_ray_is_unavailable(rig: Rig) -> None:
    job = rig.started()
    rig.attempts.launch(job.id, 1)
    rig.ray.fails = [RayUnavailableError("no answer")]
    assert rig.attempts.follow(job.id, 1, 0.3) is None
    rig.store.cancel(job.id)
    outcome = rig.attempts.follow(job.id, 1, 5.0)  # but a cancelled job is stopped by the file in its folder
    assert outcome is not None
    assert rig.folder(job).is_stop_requested()


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
def test_the_exit_status_decides_whether_there_is_another_attempt(rig: Rig, code: int | None, state: str) -> None:
    job = rig.started()
    rig.attempts.settle(job.id, 1, Outcome(exit_code=code, reason="because"))
    assert rig.store.job(job.id).state == state


def test_the_last_attempt_fails_the_job(rig: Rig) -> None:
    job = rig.started(max_attempts=1)
    rig.attempts.settle(job.id, 1, Outcome(exit_code=1, reason="because"))
    assert (rig.store.job(job.id).state, rig.store.job(job.id).reason) == ("failed", "because")


def test_a_cancelled_job_that_finished_first_is_done(rig: Rig) -> None:
    job = rig.started()
    rig.store.cancel(job.id)
    rig.attempts.settle(job.id, 1, Outcome(exit_code=0))
    assert rig.store.job(job.id).state == "done"


def running(rig: Rig) -> Job:
    job = rig.started()
    assert rig.attempts.launch(job.id, 1) is None
    return rig.store.job(job.id)


def look(rig: Rig, job: Job) -> Outcome | None:
    """Look at the attempt once, as a dispatcher that has just started."""
    return Observer(rig.store, rig.ray, rig.settings, job.id, 1).look()


def since(rig: Rig, job: Job, seconds: float) -> None:
    """Make the attempt look as if it had started some time ago, without progress since."""
    then = {"moved_s": time.time() - seconds}
    with rig.store.database.writing() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(then))
        started = attempts.update().where(attempts.c.job_id == job.id)
        connection.execute(started.values(started_s=time.time() - seconds))


def beat(rig: Rig, job: Job, count: int, idle_s: float, ending: Ending | None = None) -> None:
    progress = Progress(done=3, total=9, activity="scoring")
    rig.folder(job).write_beat(Heartbeat(count=count, log_bytes=9, progress=progress, idle_s=idle_s, ending=ending))


def test_a_job_without_progress_shows_it_after_half_of_the_limit(rig: Rig) -> None:
    job = running(rig)
    since(rig, job, 1920)
    beat(rig, job, 1, 1920)
    assert look(rig, job) is None
    shown = rig.store.job(job.id)
    assert shown.activity == "scoring; no progress for 32 min"
    assert (rig.ray.stopped, rig.folder(job).is_stop_requested()) == ([], False)
    beat(rig, job, 2, 0.0)  # it continues
    assert look(rig, job) is None
    assert rig.store.job(job.id).activity == "scoring"


@pytest.mark.parametrize("ray_away", [False, True])
def test_a_job_without_progress_is_ended_with_that_reason_and_retried(rig: Rig, ray_away: bool) -> None:
    """Also while Ray is unavailable, and by a dispatcher that has just started: the times are in the table."""
    job = running(rig)
    beat(rig, job, 1, 10.0)
    assert look(rig, job) is None
    since(rig, job, 4000)
    beat(rig, job, 2, 3700.0)
    rig.ray.fails = [RayUnavailableError("no answer")] if ray_away else []
    assert look(rig, job) is None
    assert rig.folder(job).is_stop_requested()
    assert rig.ray.stopped == ([] if ray_away else [f"{job.id}-1"])
    beat(rig, job, 3, 0.0, Ending(exit_code=143, last="interrupted"))  # the stop itself adds a line to the log
    outcome = Attempts(rig.store, rig.ray, rig.settings).follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.reason.startswith("no progress for 6")
    rig.attempts.settle(job.id, 1, outcome)
    assert rig.store.job(job.id).state == "queued"


def test_an_attempt_over_the_hours_of_its_kind_ends_for_good(rig: Rig) -> None:
    job = running(rig)
    since(rig, job, 4 * 3600 + 60)
    beat(rig, job, 1, 0.0)
    assert look(rig, job) is None
    beat(rig, job, 2, 0.0, Ending(exit_code=130, last="interrupted"))
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome == Outcome(
        exit_code=130, reason="ended after 4 h, the longest time of a check job (max_hours)", final=True
    )
    rig.attempts.settle(job.id, 1, outcome)
    assert rig.store.job(job.id).state == "failed"


def test_hours_count_from_when_ray_took_the_attempt(rig: Rig) -> None:
    job = rig.started()
    since(rig, job, 5 * 3600)  # Ray was unavailable for so long
    assert rig.attempts.launch(job.id, 1) is None
    assert look(rig, job) is None
    assert not rig.folder(job).is_stop_requested()


def test_a_job_that_succeeds_while_it_is_stopped_is_done(rig: Rig) -> None:
    job = running(rig)
    rig.folder(job).request_stop(Stop(reason="no progress for 60 min"))
    beat(rig, job, 1, 0.0, Ending(exit_code=0, last="done"))
    assert rig.attempts.follow(job.id, 1, 5.0) == Outcome(exit_code=0, reason="done")


def test_a_silent_job_over_its_hours_is_given_up_although_ray_is_unavailable(rig: Rig) -> None:
    job = running(rig)
    since(rig, job, 5 * 3600)
    rig.ray.fails = [RayUnavailableError("no answer")]
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.final
    assert "max_hours" in outcome.reason


def test_a_signal_is_named_with_the_last_output(rig: Rig) -> None:
    job = running(rig)
    beat(rig, job, 1, 0.0, Ending(exit_code=137, last="step 3/9"))
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome == Outcome(exit_code=137, reason="killed by SIGKILL, as when memory runs out; last output: step 3/9")


def test_the_message_of_ray_about_a_lost_supervisor_is_quoted(rig: Rig) -> None:
    job = running(rig)
    rig.ray.states[f"{job.id}-1"], rig.ray.last_message = "FAILED", "The job supervisor died"
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.reason.endswith("Ray says FAILED: The job supervisor died")


def test_a_request_that_can_no_longer_be_read_fails_its_job_alone(rig: Rig) -> None:
    job = rig.started()
    with rig.store.database.writing() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(request='{"kind": "check"}'))
    outcome = rig.attempts.launch(job.id, 1)
    assert outcome is not None
    rig.attempts.settle(job.id, 1, outcome)
    assert rig.store.job(job.id).state == "failed"
    assert "can no longer be read" in (rig.store.job(job.id).reason or "")


def test_an_unexpected_error_at_the_launch_fails_the_job_but_not_the_workflow(rig: Rig) -> None:
    rig.ray.fails = [KeyError("nobody expects this")]
    outcome = rig.attempts.launch(rig.started().id, 1)
    assert outcome is not None
    assert outcome.final
    assert "KeyError" in outcome.reason


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"no json", b'{"count": "x"}', b"\xff\xfe", b'{"count":1,"log_bytes":-1}']
)
def test_a_heartbeat_that_a_job_has_overwritten_does_not_count(rig: Rig, content: bytes) -> None:
    job = running(rig)
    rig.folder(job).write_beat(Heartbeat(count=1, log_bytes=0))
    (Path(rig.folder(job).uri) / "beat.json").write_bytes(content)
    rig.ray.states.clear()
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert "lost the job" in outcome.reason


def test_a_heartbeat_with_invalid_progress_counts(rig: Rig) -> None:
    job = running(rig)
    rig.folder(job).write_beat(Heartbeat(count=1, log_bytes=0, progress=Progress(done=10**30, activity="a\0b")))
    assert look(rig, job) is None
    assert rig.store.job(job.id).done is None
    assert rig.store.job(job.id).beat_s is not None


def test_an_attempt_that_cannot_be_watched_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(rig)
    monkeypatch.setattr(rig.ray, "status", lambda _: {}["x"])
    outcome = rig.attempts.follow(job.id, 1, 5.0)
    assert outcome is not None
    assert outcome.final
    assert "cannot watch this job: KeyError" in outcome.reason
    assert rig.folder(job).is_stop_requested()
