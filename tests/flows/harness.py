"""Helpers of the flow tests: commands as separate processes, and a cluster and an object store for them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ray_jobs.cluster.processes import answers, free_port, run_process

FLOW = [
    pytest.mark.flow,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # between MLflow and SQLAlchemy
]
"""Marks of every module in this folder."""

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "cohort"
MANIFEST = f"s3://{BUCKET}/manifest.csv"

CONFIG = {
    "model": {
        "zoom": {"schedule": [2, 2], "map_px": 28, "view_px": 56, "patch_px": 32},
        "classifier": {"encoder": "test_resnet"},
    },
    "recipe": {"epochs": 4, "batch": 2, "micro_batch": 2, "seed": 1},
}
"""The smallest network that zooms twice."""
EPOCHS, STEPS_PER_EPOCH = 4, 4
SAME = ("train/loss", "val/loss", "val/auroc", "val/selection", "train/gradient_norm_rest", "roi/layer1_moved")
"""Metrics of an epoch that depend on slides and seed only."""

SHELL = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
USER_VARIABLES = (
    "AWS_PROFILE",
    "MAGNET_STORAGE",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)
"""Variables of the user's environment that would lead the commands to other servers and folders."""


@dataclass(frozen=True)
class Command:
    """A command that is running or has ended."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """Output so far, including errors."""
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self.process.poll()

    def finish(self, timeout_s: float = 250) -> Command:
        """Wait until the command ends."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self} is still running after {timeout_s} s; its output:\n{self.output}") from error
        return self

    def wait_for(self, condition: str | Callable[[], object], timeout_s: float = 200) -> None:
        """Wait until a condition holds: a pattern that its output must match, or a function."""
        deadline = time.monotonic() + timeout_s
        while not (re.search(condition, self.output) if isinstance(condition, str) else condition()):
            if self.status is not None or time.monotonic() > deadline:
                raise AssertionError(f"{condition} did not occur; status {self.status}; output:\n{self.output}")
            time.sleep(0.05)


@contextmanager
def running(argv: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> Iterator[Command]:
    """Run a command from the repository's root while the context lasts."""
    unset = [option for name in USER_VARIABLES if name not in environment for option in ("-u", name)]
    with run_process(["env", *unset, *map(str, argv)], log=log, env=SHELL | dict(environment), cwd=ROOT) as process:
        yield Command(process, log)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster on this machine."""

    command: Command
    node: dict[str, str]
    """Environment variables of its nodes."""
    jobs_url: str
    """URL of its Jobs API."""
    address: str
    """Address for drivers that are not submitted as jobs."""
    agent_url: str
    """URL of the head node's agent, which accepts jobs."""

    def wait(self) -> None:
        """Wait until the cluster accepts jobs."""
        self.command.wait_for(lambda: answers(f"{self.jobs_url}/api/version"))
        self.command.wait_for(lambda: answers(f"{self.agent_url}/api/local_raylet_healthz"))

    def kill(self) -> None:
        """Kill all its processes at once, as in a power failure."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Return the head process and all its descendants."""
        root = psutil.Process(self.command.process.pid)
        return [root, *root.children(recursive=True)]

    def kill_train_worker(self) -> None:
        """Kill the only training worker."""
        self.kill_worker("ray::RayTrainWorker")

    def kill_worker(self, title: str) -> None:
        """Kill the only process of Ray whose title contains this text."""
        self.signal_worker(title, signal.SIGKILL)

    def signal_worker(self, title: str, number: signal.Signals) -> None:
        """Send a signal to the only process of Ray whose title contains this text."""
        [worker] = self.workers(title)
        worker.send_signal(number)

    def workers(self, title: str) -> list[psutil.Process]:
        """Return the processes of Ray whose title contains this text."""
        workers = []
        for process in self.processes():
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    workers.append(process)
        return workers

    @contextmanager
    def driver(self, *argv: str | Path, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
        """Run ``python ARGV`` on this cluster while the context lasts."""
        variables = self.node | {"RAY_ADDRESS": self.address} | dict(environment or {})
        with running(["python", *argv], variables, log) as command:
            yield command


@contextmanager
def ray_cluster(node: Mapping[str, str], log: Path, num_cpus: int = 2) -> Iterator[Cluster]:
    """Run a cluster while the context lasts. It is still starting when the context begins."""
    gcs_port, jobs_port, agent_port = (free_port() for _ in range(3))
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets are here and need short paths
    argv = shlex.split(
        f"ray start --head --block --num-cpus={num_cpus} --node-ip-address=127.0.0.1 --port={gcs_port} "
        f"--disable-usage-stats --dashboard-port={jobs_port} --dashboard-agent-listen-port={agent_port} "
        f"--object-store-memory=300000000 --temp-dir={temporary}/r"
    )
    url = "http://127.0.0.1:{}"
    # Without it Ray Train asks any cluster that it finds on this machine about its actors, and waits in vain.
    variables = {"RAY_API_SERVER_ADDRESS": url.format(jobs_port)}
    try:
        with running(argv, variables | dict(node), log) as command:
            ports = url.format(jobs_port), f"127.0.0.1:{gcs_port}", url.format(agent_port)
            cluster = Cluster(command, dict(node), *ports)
            yield cluster
            cluster.kill()  # an orderly stop takes up to 20 s
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def ray_node(cluster: Cluster, log: Path, num_cpus: int = 2) -> Iterator[Command]:
    """Run another node of a cluster while the context lasts, which begins when the node has joined."""
    agent_port = free_port()
    argv = shlex.split(
        f"ray start --block --address={cluster.address} --num-cpus={num_cpus} --node-ip-address=127.0.0.1 "
        f"--disable-usage-stats --dashboard-agent-listen-port={agent_port} --object-store-memory=300000000"
    )
    with running(argv, cluster.node, log) as command:
        command.wait_for(lambda: answers(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz"))
        yield command
        for process in psutil.Process(command.process.pid).children(recursive=True) if command.status is None else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True)
class Service:
    """A running cluster and object store."""

    cluster: Cluster
    store_log: Path
    """Log of the object store's requests, one per line."""
    logs: Path
    """Folder for the output of commands."""

    @property
    def node(self) -> dict[str, str]:
        """Environment variables of the cluster's nodes, with the endpoint and the keys of the object store."""
        return self.cluster.node

    @property
    def jobs_url(self) -> str:
        """URL of Ray's Jobs API."""
        return self.cluster.jobs_url

    @contextmanager
    def submit(self, *argv: str | Path, options: Sequence[str] = ()) -> Iterator[Command]:
        """Run ``ray job submit -- python ARGV`` while the context lasts. The nodes have the variables for S3."""
        submit = ["ray", "job", "submit", "--address", self.jobs_url, *options, "--", "python", *argv]
        with running(submit, {}, self.new_log()) as command:
            yield command

    def job(self, *argv: str | Path, options: Sequence[str] = ()) -> Command:
        """Run ``ray job submit -- python ARGV`` to its end."""
        with self.submit(*argv, options=options) as command:
            return command.finish()

    @contextmanager
    def driver(self, *argv: str | Path) -> Iterator[Command]:
        """Run ``python ARGV`` on this cluster while the context lasts."""
        with self.cluster.driver(*argv, log=self.new_log()) as command:
            yield command

    def run(self, *argv: str | Path) -> Command:
        """Run ``python ARGV`` on this cluster to its end."""
        with self.driver(*argv) as command:
            return command.finish()

    def new_log(self) -> Path:
        """Return a new file for a command's output."""
        return self.logs / f"{len(list(self.logs.iterdir()))}.log"

    def put(self, key: str, data: bytes) -> str:
        """Put an object into the store and return its URI."""
        self.s3().put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def s3(self) -> Any:
        """Return boto3's client of the object store, which is independent of the code under test."""
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.node["AWS_ENDPOINT_URL"], **keys)

    def texts(self, prefix: str, ending: str) -> list[str]:
        """Return the content of all objects whose keys start and end like this."""
        objects = self.s3().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        keys = [item["Key"] for item in objects if item["Key"].endswith(ending)]
        return [self.s3().get_object(Bucket=BUCKET, Key=key)["Body"].read().decode() for key in keys]

    def slide_reads(self) -> Counter[str]:
        """Return the number of requests for each slide so far, by slide id."""
        return Counter(re.findall(rf'"GET /{BUCKET}/slides/(\w+)', self.store_log.read_text()))


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    command: Command
    storage: Path
    """Folder of its run and of MLflow's database."""


def mlflow_client(folder: Path) -> MlflowClient:
    """Return a client of the tracking store in a training's storage folder."""
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def the_run(folder: Path) -> Run:
    """Return the only run of that tracking store."""
    client = mlflow_client(folder)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    return runs[0]
