"""What a training or a scoring stands on dies in the midst of it, and the same command goes on to the same result.

Each training is one job in one folder. Its steps take a fraction of a second, and each ends with a checkpoint, so that
processes die within epochs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ray_jobs.cluster.processes import free_port
from service import exit_status
from tests.flows.harness import (
    BUCKET,
    EPOCHS,
    FLOW,
    MANIFEST,
    SAME,
    STEPS_PER_EPOCH,
    Cluster,
    Command,
    Service,
    Trained,
    answers,
    ray_cluster,
    ray_node,
    running,
)

pytestmark = FLOW


@dataclass(frozen=True)
class Job:
    """A training in a folder of its own."""

    folder: Path
    config: Path
    manifest: str = MANIFEST
    tracking_uri: str | None = None
    bucket_of: Service | None = None
    """Where its checkpoints lie; None: in its folder."""

    @property
    def storage(self) -> str:
        return str(self.folder) if self.bucket_of is None else f"s3://{BUCKET}/{self.folder.name}"

    def words(self, *more: str) -> list[str | Path]:
        """Its command, the same for every attempt."""
        words: list[str | Path] = [
            "ray_jobs/train.py",
            "--manifest",
            self.manifest,
            "--config",
            self.config,
            "--storage",
            self.storage,
        ]
        return [*words, "--name", "mine", "--set", "compute.checkpoint_minutes=1e-6", *more]

    @contextmanager
    def attempt(self, cluster: Cluster, *more: str) -> Iterator[Command]:
        """The command, while the context lasts."""
        environment = {"MLFLOW_TRACKING_URI": self.tracking_uri} if self.tracking_uri else {}
        log = self.folder.with_name(f"{self.folder.name}-{time.monotonic_ns()}.log")
        with cluster.driver(*self.words(*more), log=log, environment=environment) as command:
            yield command

    def finish(self, cluster: Cluster, *more: str) -> Command:
        """The command to its end."""
        with self.attempt(cluster, *more) as command:
            return command.finish()

    def saved_step(self) -> int:
        """Steps done at the newest checkpoint."""
        if self.bucket_of is None:
            texts = [path.read_text() for path in self.folder.glob("mine/checkpoint-*/published.json")]
        else:
            texts = self.bucket_of.texts(f"{self.folder.name}/mine/checkpoint-", "/published.json")
        return max((json.loads(text)["step"] for text in texts), default=0)

    def reach(self, command: Command, step: int) -> None:
        """Wait until a step is done and saved."""
        command.wait_for(lambda: self.saved_step() >= step)

    @contextmanager
    def going_on(self, killed: str, command: Command) -> Iterator[None]:
        """Context after a death; it ends when a step more is done than before, and says how long that took."""
        saved, began_s = self.saved_step(), time.monotonic()
        yield
        [*_, since] = re.findall(r"continuing from the checkpoint after step (\d+)", command.output)
        self.reach(command, saved + 1)
        seconds = time.monotonic() - began_s
        print(f"{killed} killed after step {saved}: went on from step {since}, {seconds:.0f} s until the next was done")

    @property
    def client(self) -> MlflowClient:
        """Of the store that the job writes into."""
        return MlflowClient(self.tracking_uri or f"sqlite:///{self.folder}/mlflow.db")

    def run(self) -> Run:
        """The only run of that store."""
        [run] = self.client.search_runs([e.experiment_id for e in self.client.search_experiments()])
        return run

    def history(self, name: str) -> list[tuple[int, float]]:
        """All points of a metric."""
        return [(point.step, point.value) for point in self.client.get_metric_history(self.run().info.run_id, name)]

    def assert_as(self, whole: Job) -> None:
        """One finished run with each step and each epoch once, with the numbers of one that met no fault."""
        assert self.run().info.status == "FINISHED"
        steps = self.history("train/step_loss")
        assert [step for step, _ in steps] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
        assert steps == whole.history("train/step_loss")
        for name in SAME:
            assert self.history(name) == whole.history(name), name


@pytest.fixture
def cluster(service: Service) -> Cluster:
    """One that outlives the jobs."""
    return service.cluster


@pytest.fixture
def whole(trained: Trained, config: Path) -> Job:
    """A training that nothing befell."""
    return Job(trained.storage, config)


def test_whoever_is_killed_the_same_command_ends_as_if_nobody_had_been(
    cluster: Cluster, whole: Job, tmp_path: Path
) -> None:
    """A training worker, the driver, the driver by Ctrl-C, and every process of the cluster at once, within an epoch.

    With ``-rP`` pytest shows how long it took until the next step was done: the table of faults in RESULTS.md.
    """
    job = Job(tmp_path / "runs", whole.config)
    with ray_cluster(cluster.node, tmp_path / "ray.log") as doomed:
        doomed.wait()
        with job.attempt(doomed) as command:
            job.reach(command, 2)
            doomed.kill_train_worker()
            with job.going_on("training worker", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            command.process.kill()
        with job.attempt(doomed) as command:
            with job.going_on("driver", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            command.process.send_signal(signal.SIGINT)
            assert command.finish(60).status == 130, command.output
        assert "the same command with the same --name goes on" in command.output
        assert not re.search(r"^Traceback", command.output, re.MULTILINE)  # Ray's controller may stumble in its own
        assert job.run().info.status == "KILLED"
        with job.attempt(doomed) as command:
            with job.going_on("driver by Ctrl-C", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            doomed.kill()
    assert 2 < job.saved_step() < EPOCHS * STEPS_PER_EPOCH
    with job.attempt(cluster) as command:
        with job.going_on("cluster", command):
            command.wait_for(r"continuing from the checkpoint after step [1-9]")
        assert command.finish().status == 0, command.output
    job.assert_as(whole)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[Command]:
    """MLflow's own server, as a process, on a database in the folder."""
    words = shlex.split(
        f"mlflow server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///{folder}/mlflow.db "
        f"--artifacts-destination {folder}/artifacts"
    )
    with running(words, {}, folder / f"server-{time.monotonic_ns()}.log") as command:
        command.wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield command


def test_a_training_does_without_mlflow_until_it_is_back(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    port = free_port()
    job = Job(tmp_path / "runs", whole.config, tracking_uri=f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port) as server, job.attempt(cluster) as command:
        job.reach(command, 2)
        os.killpg(server.process.pid, signal.SIGKILL)  # with the processes that do its work
        job.reach(command, EPOCHS * STEPS_PER_EPOCH)  # all that is left is to tell
        assert (job.folder / "mine" / "unsent-metrics.jsonl").exists()
        with mlflow_server(tmp_path, port):
            assert command.finish(100).status == 0, command.output
            assert "is away, notes are kept and the job goes on" in command.output
            job.assert_as(whole)
            assert not (job.folder / "mine" / "unsent-metrics.jsonl").exists()


def test_a_slide_that_goes_in_mid_run_is_left_out_and_named(
    cluster: Cluster, cohort: Path, whole: Job, tmp_path: Path
) -> None:
    frame = pd.read_csv(cohort / "manifest.csv")
    row = frame.index[frame["split"] == "train"][0]
    slide = tmp_path / "slide.tif"
    slide.write_bytes((cohort / frame.loc[row, "uri"]).read_bytes())
    frame["uri"] = [f"s3://{BUCKET}/{uri}" for uri in frame["uri"]]
    frame.loc[row, "uri"] = str(slide)
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    job = Job(tmp_path / "runs", whole.config, str(tmp_path / "manifest.csv"))
    with job.attempt(cluster) as command:
        job.reach(command, 2)
        slide.unlink()
        assert command.finish().status == 0, command.output
    assert f"warning: {slide} is left out from now on: step " in command.output
    assert job.run().data.tags["quarantined"] == frame.loc[row, "slide_id"]
    assert job.history("train/quarantined")[-1] == (EPOCHS, 1)
    assert len(job.history("train/step_loss")) == EPOCHS * STEPS_PER_EPOCH


@pytest.mark.long
def test_a_worker_that_is_asked_to_leave_saves_first_and_costs_no_failure(
    cluster: Cluster, whole: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path / "runs", whole.config)
    with job.attempt(cluster, "--set", "compute.max_failures=0") as command:
        job.reach(command, 2)
        cluster.signal_worker("ray::RayTrainWorker", signal.SIGTERM)
        assert command.finish().status == 0, command.output
    assert re.search(r"continuing from the checkpoint after step [1-9]", command.output)
    job.assert_as(whole)


@pytest.mark.long
def test_a_node_that_is_drained_saves_first_and_costs_no_failure(
    service: Service, config: Path, tmp_path: Path
) -> None:
    """As Kubernetes takes a pod away: SIGTERM to `ray start --block`, which drains its node before it ends."""
    port, epochs = free_port(), 8 * EPOCHS  # Ray looks for drained nodes every five seconds
    job = Job(tmp_path / "drained", config, tracking_uri=f"http://127.0.0.1:{port}", bucket_of=service)
    words = ("--set", "compute.max_failures=0", "--set", f"recipe.epochs={epochs}")
    with mlflow_server(tmp_path, port), ray_cluster(service.node, tmp_path / "head.log", num_cpus=0) as head:
        head.wait()
        with ray_node(head, tmp_path / "first.log") as first, job.attempt(head, *words) as command:
            job.reach(command, 2)
            first.process.terminate()
            with ray_node(head, tmp_path / "second.log"):
                assert command.finish().status == 0, command.output
        assert re.search(r"continuing from the checkpoint after step [1-9]", command.output)
        assert job.run().info.status == "FINISHED"
        assert [step for step, _ in job.history("train/step_loss")] == list(range(1, epochs * STEPS_PER_EPOCH + 1))


@pytest.mark.long
def test_two_workers_have_the_loss_curve_of_one(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Through Ray Train and its process group; each step has two micro-batches of one slide, one for each worker.

    Within float tolerance: sums of two workers' gradients are rounded otherwise, and Adam carries that on.
    """
    jobs = {num: Job(tmp_path / f"{num}", config) for num in (1, 2)}
    with ray_cluster(cluster.node, tmp_path / "ray.log", num_cpus=3) as wider:
        wider.wait()
        for num, job in jobs.items():
            words = ("--num-workers", str(num), "--set", "recipe.micro_batch=1")
            command = job.finish(wider, *words)
            assert command.status == 0, command.output
            assert job.run().data.params["compute.num_workers"] == str(num)
    for name in ("train/step_loss", "train/loss", "val/loss"):
        alone, together = (job.history(name) for job in jobs.values())
        assert [step for step, _ in together] == [step for step, _ in alone]
        assert [value for _, value in together] == pytest.approx([value for _, value in alone], rel=1e-3)
    assert len(jobs[2].history("train/step_loss")) == EPOCHS * STEPS_PER_EPOCH


def test_a_loss_that_is_no_number_ends_the_job_at_once(cluster: Cluster, whole: Job, tmp_path: Path) -> None:
    job = Job(tmp_path / "runs", whole.config)
    command = job.finish(cluster, "--set", "recipe.learning_rate=1e30", "--set", "recipe.locator_learning_rate=1e30")
    assert command.status == exit_status.STOPPED, command.output
    assert re.search(r"error: step \d+: loss .*; the weights are as before this step", command.output)
    assert "going on from" not in command.output  # it would end alike
    assert job.run().info.status == "FAILED"
