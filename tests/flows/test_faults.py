"""Processes and servers fail during a training, and the same command continues to the same result.

Each training is one job in one folder. A step takes a fraction of a second and ends with a checkpoint, so that
processes can be killed within an epoch.
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
    """A training in a separate folder."""

    folder: Path
    config: Path
    manifest: str = MANIFEST
    tracking_uri: str | None = None
    bucket_of: Service | None = None
    """Service whose bucket holds the checkpoints; None: they are in `folder`."""

    @property
    def storage(self) -> str:
        return str(self.folder) if self.bucket_of is None else f"s3://{BUCKET}/{self.folder.name}"

    def argv(self, *more: str) -> list[str | Path]:
        """Return its command, which is the same for every attempt."""
        argv: list[str | Path] = [
            "ray_jobs/train.py",
            "--manifest",
            self.manifest,
            "--config",
            self.config,
            "--storage",
            self.storage,
        ]
        return [*argv, "--name", "job", "--set", "compute.checkpoint_minutes=1e-6", *more]

    @contextmanager
    def attempt(self, cluster: Cluster, *more: str) -> Iterator[Command]:
        """Run the command while the context lasts."""
        environment = {"MLFLOW_TRACKING_URI": self.tracking_uri} if self.tracking_uri else {}
        log = self.folder.with_name(f"{self.folder.name}-{time.monotonic_ns()}.log")
        with cluster.driver(*self.argv(*more), log=log, environment=environment) as command:
            yield command

    def finish(self, cluster: Cluster, *more: str) -> Command:
        """Run the command to its end."""
        with self.attempt(cluster, *more) as command:
            return command.finish()

    def saved_step(self) -> int:
        """Return the number of steps done at the newest checkpoint."""
        if self.bucket_of is None:
            texts = [path.read_text() for path in self.folder.glob("job/checkpoint-*/published.json")]
        else:
            texts = self.bucket_of.texts(f"{self.folder.name}/job/checkpoint-", "/published.json")
        return max((json.loads(text)["step"] for text in texts), default=0)

    def reach(self, command: Command, step: int) -> None:
        """Wait until a step is done and saved."""
        command.wait_for(lambda: self.saved_step() >= step)

    @contextmanager
    def recovery(self, killed: str, command: Command) -> Iterator[None]:
        """Context after a process was killed. It ends when the next step is done, and prints the time until then."""
        saved, started_s = self.saved_step(), time.monotonic()
        yield
        [*_, since] = re.findall(r"continuing from the checkpoint after step (\d+)", command.output)
        self.reach(command, saved + 1)
        seconds = time.monotonic() - started_s
        print(f"{killed} killed after step {saved}: resumed from step {since}, {seconds:.0f} s until the next step")

    @property
    def client(self) -> MlflowClient:
        """Client of the job's tracking store."""
        return MlflowClient(self.tracking_uri or f"sqlite:///{self.folder}/mlflow.db")

    def run(self) -> Run:
        """Return the only run of that store."""
        [run] = self.client.search_runs([e.experiment_id for e in self.client.search_experiments()])
        return run

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return all points of a metric."""
        return [(point.step, point.value) for point in self.client.get_metric_history(self.run().info.run_id, name)]

    def assert_same_as(self, undisturbed: Job) -> None:
        """Check that the run has finished, with each step and epoch once, and with the metrics of another training."""
        assert self.run().info.status == "FINISHED"
        steps = self.history("train/step_loss")
        assert [step for step, _ in steps] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
        assert steps == undisturbed.history("train/step_loss")
        for name in SAME:
            assert self.history(name) == undisturbed.history(name), name


@pytest.fixture
def cluster(service: Service) -> Cluster:
    """A cluster that is not killed."""
    return service.cluster


@pytest.fixture
def undisturbed(trained: Trained, config: Path) -> Job:
    """A training without faults."""
    return Job(trained.storage, config)


def test_the_same_command_gives_the_same_result_after_workers_driver_or_cluster_were_killed(
    cluster: Cluster, undisturbed: Job, tmp_path: Path
) -> None:
    """A training worker, the driver, the driver by Ctrl-C, and all processes of the cluster, each within an epoch.

    With ``-rP`` pytest shows the time until the next step: the table of faults in benchmarks/RESULTS.md.
    """
    job = Job(tmp_path / "runs", undisturbed.config)
    with ray_cluster(cluster.node, tmp_path / "ray.log") as doomed:
        doomed.wait()
        with job.attempt(doomed) as command:
            job.reach(command, 2)
            doomed.kill_train_worker()
            with job.recovery("training worker", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            command.process.kill()
        with job.attempt(doomed) as command:
            with job.recovery("driver", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            command.process.send_signal(signal.SIGINT)
            assert command.finish(60).status == 130, command.output
        assert "the same command with the same --name continues the job" in command.output
        assert not re.search(r"^Traceback", command.output, re.MULTILINE)  # processes of Ray may print one, indented
        assert job.run().info.status == "KILLED"
        with job.attempt(doomed) as command:
            with job.recovery("driver by Ctrl-C", command):
                command.wait_for(r"continuing from the checkpoint after step [1-9]")
            doomed.kill()
    assert 2 < job.saved_step() < EPOCHS * STEPS_PER_EPOCH
    with job.attempt(cluster) as command:
        with job.recovery("cluster", command):
            command.wait_for(r"continuing from the checkpoint after step [1-9]")
        assert command.finish().status == 0, command.output
    job.assert_same_as(undisturbed)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[Command]:
    """Run MLflow's server with a database in the folder while the context lasts."""
    argv = shlex.split(
        f"mlflow server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///{folder}/mlflow.db "
        f"--artifacts-destination {folder}/artifacts"
    )
    with running(argv, {}, folder / f"server-{time.monotonic_ns()}.log") as command:
        command.wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield command


def test_a_training_continues_while_mlflow_is_unreachable(cluster: Cluster, undisturbed: Job, tmp_path: Path) -> None:
    port = free_port()
    job = Job(tmp_path / "runs", undisturbed.config, tracking_uri=f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port) as server, job.attempt(cluster) as command:
        job.reach(command, 2)
        os.killpg(server.process.pid, signal.SIGKILL)  # with its worker processes
        job.reach(command, EPOCHS * STEPS_PER_EPOCH)  # only the record is missing
        assert (job.folder / "job" / "unsent-metrics.jsonl").exists()
        with mlflow_server(tmp_path, port):
            assert command.finish(100).status == 0, command.output
            assert "is unreachable; metrics are kept and the job continues" in command.output
            job.assert_same_as(undisturbed)
            assert not (job.folder / "job" / "unsent-metrics.jsonl").exists()


def test_a_slide_that_disappears_during_the_training_is_left_out_and_named(
    cluster: Cluster, cohort: Path, undisturbed: Job, tmp_path: Path
) -> None:
    frame = pd.read_csv(cohort / "manifest.csv")
    row = frame.index[frame["split"] == "train"][0]
    slide = tmp_path / "slide.tif"
    slide.write_bytes((cohort / frame.loc[row, "uri"]).read_bytes())
    frame["uri"] = [f"s3://{BUCKET}/{uri}" for uri in frame["uri"]]
    frame.loc[row, "uri"] = str(slide)
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    job = Job(tmp_path / "runs", undisturbed.config, str(tmp_path / "manifest.csv"))
    with job.attempt(cluster) as command:
        job.reach(command, 2)
        slide.unlink()
        assert command.finish().status == 0, command.output
    assert f"warning: {slide} is left out from now on: step " in command.output
    assert job.run().data.tags["quarantined"] == frame.loc[row, "slide_id"]
    assert job.history("train/quarantined")[-1] == (EPOCHS, 1)
    assert len(job.history("train/step_loss")) == EPOCHS * STEPS_PER_EPOCH


@pytest.mark.long
def test_a_preempted_worker_saves_first_and_does_not_count_as_a_failure(
    cluster: Cluster, undisturbed: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path / "runs", undisturbed.config)
    with job.attempt(cluster, "--set", "compute.max_failures=0") as command:
        job.reach(command, 2)
        cluster.signal_worker("ray::RayTrainWorker", signal.SIGTERM)
        assert command.finish().status == 0, command.output
    assert re.search(r"continuing from the checkpoint after step [1-9]", command.output)
    job.assert_same_as(undisturbed)


@pytest.mark.long
def test_a_drained_node_saves_first_and_does_not_count_as_a_failure(
    service: Service, config: Path, tmp_path: Path
) -> None:
    """Kubernetes removes a pod by SIGTERM to `ray start --block`, which drains its node before it ends."""
    port, epochs = free_port(), 8 * EPOCHS  # Ray checks for drained nodes every five seconds
    job = Job(tmp_path / "drained", config, tracking_uri=f"http://127.0.0.1:{port}", bucket_of=service)
    options = ("--set", "compute.max_failures=0", "--set", f"recipe.epochs={epochs}")
    with mlflow_server(tmp_path, port), ray_cluster(service.node, tmp_path / "head.log", num_cpus=0) as head:
        head.wait()
        with ray_node(head, tmp_path / "first.log") as first, job.attempt(head, *options) as command:
            job.reach(command, 2)
            first.process.terminate()
            with ray_node(head, tmp_path / "second.log"):
                assert command.finish().status == 0, command.output
        assert re.search(r"continuing from the checkpoint after step [1-9]", command.output)
        assert job.run().info.status == "FINISHED"
        assert [step for step, _ in job.history("train/step_loss")] == list(range(1, epochs * STEPS_PER_EPOCH + 1))


@pytest.mark.long
def test_two_workers_have_the_loss_curve_of_one(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """With Ray Train and its process group; each step has two micro-batches of one slide, one for each worker.

    The losses are equal within a tolerance: the sum of two workers' gradients is rounded differently, and Adam
    propagates the difference.
    """
    jobs = {num: Job(tmp_path / f"{num}", config) for num in (1, 2)}
    with ray_cluster(cluster.node, tmp_path / "ray.log", num_cpus=3) as wider:
        wider.wait()
        for num, job in jobs.items():
            options = ("--num-workers", str(num), "--set", "recipe.micro_batch=1")
            command = job.finish(wider, *options)
            assert command.status == 0, command.output
            assert job.run().data.params["compute.num_workers"] == str(num)
    for name in ("train/step_loss", "train/loss", "val/loss"):
        one_worker, two_workers = (job.history(name) for job in jobs.values())
        assert [step for step, _ in two_workers] == [step for step, _ in one_worker]
        assert [value for _, value in two_workers] == pytest.approx([value for _, value in one_worker], rel=1e-3)
    assert len(jobs[2].history("train/step_loss")) == EPOCHS * STEPS_PER_EPOCH


def test_a_non_finite_loss_ends_the_job_at_once(cluster: Cluster, undisturbed: Job, tmp_path: Path) -> None:
    job = Job(tmp_path / "runs", undisturbed.config)
    command = job.finish(cluster, "--set", "recipe.learning_rate=1e30", "--set", "recipe.locator_learning_rate=1e30")
    assert command.status == exit_status.STOPPED, command.output
    assert re.search(r"error: step \d+: loss .*; the weights are as before this step", command.output)
    assert "going on from" not in command.output  # another attempt would end the same way
    assert job.run().info.status == "FAILED"
