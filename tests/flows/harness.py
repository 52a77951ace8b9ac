"""Commands as processes of their own, a cluster and an object store for them: what the flow tests are written in."""

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

from ray_jobs.cluster.processes import answers, free_port, started

FLOW = [
    pytest.mark.flow,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # between MLflow and SQLAlchemy
]
"""Marks of every module here."""

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
"""Metrics of an epoch that follow from slides and seed alone."""

SHELL = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
FOREIGN = (
    "AWS_PROFILE",
    "MAGNET_STORAGE",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)
"""Variables of whoever runs the tests that would lead their commands elsewhere."""


@dataclass(frozen=True)
class Command:
    """A command that runs, or has ended."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What it has printed so far, errors included."""
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def finish(self, timeout_s: float = 250) -> Command:
        """Wait for its end."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self} runs on after {timeout_s} s; it said:\n{self.output}") from error
        return self

    def wait_for(self, what: str | Callable[[], object], timeout_s: float = 200) -> None:
        """Wait until it prints a line that matches a pattern, or until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not (re.search(what, self.output) if isinstance(what, str) else what()):
            if self.status is not None or time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; status {self.status}; it said:\n{self.output}")
            time.sleep(0.05)


@contextmanager
def running(words: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> Iterator[Command]:
    """Run a command from the repository's root while the context lasts."""
    unset = [word for name in FOREIGN if name not in environment for word in ("-u", name)]
    typed = ["env", *unset, *map(str, words)]
    with started(typed, log=log, env=SHELL | dict(environment), cwd=ROOT) as process:
        yield Command(process, log)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that runs on this machine."""

    command: Command
    node: dict[str, str]
    """What its nodes have in their environment."""
    jobs_url: str
    """Of its Jobs API."""
    address: str
    """For drivers that are no submitted jobs."""
    agent_url: str

    def wait(self) -> None:
        """Until it takes jobs."""
        self.command.wait_for(lambda: answers(f"{self.jobs_url}/api/version"))
        self.command.wait_for(lambda: answers(f"{self.agent_url}/api/local_raylet_healthz"))

    def kill(self) -> None:
        """All of its processes at once, as when the machine's power fails."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """The head's own, its workers, and what those left behind."""
        root = psutil.Process(self.command.process.pid)
        return [root, *root.children(recursive=True)]

    def kill_train_worker(self) -> None:
        """The only one, with SIGKILL."""
        self.kill_worker("ray::RayTrainWorker")

    def kill_worker(self, title: str) -> None:
        """The only process of Ray's whose title holds this, with SIGKILL."""
        self.signal_worker(title, signal.SIGKILL)

    def signal_worker(self, title: str, number: signal.Signals) -> None:
        """Send a signal to the only process of Ray's whose title holds this."""
        [worker] = self.workers(title)
        worker.send_signal(number)

    def workers(self, title: str) -> list[psutil.Process]:
        """Processes of Ray's whose title holds this."""
        found = []
        for one in self.processes():
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if title in " ".join(one.cmdline()):
                    found.append(one)
        return found

    @contextmanager
    def driver(self, *words: str | Path, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
        """``python WORDS`` on this cluster, while the context lasts."""
        own = self.node | {"RAY_ADDRESS": self.address} | dict(environment or {})
        with running(["python", *words], own, log) as command:
            yield command


@contextmanager
def ray_cluster(node: Mapping[str, str], log: Path, num_cpus: int = 2) -> Iterator[Cluster]:
    """A cluster that is coming up, while the context lasts."""
    gcs_port, jobs_port, agent_port = (free_port() for _ in range(3))
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets lie here and want short paths
    words = shlex.split(
        f"ray start --head --block --num-cpus={num_cpus} --node-ip-address=127.0.0.1 --port={gcs_port} "
        f"--disable-usage-stats --dashboard-port={jobs_port} --dashboard-agent-listen-port={agent_port} "
        f"--object-store-memory=300000000 --temp-dir={temporary}/r"
    )
    url = "http://127.0.0.1:{}"
    # Without it Ray Train asks whichever cluster it finds on this machine about its own actors, and waits in vain.
    own = {"RAY_API_SERVER_ADDRESS": url.format(jobs_port)}
    try:
        with running(words, own | dict(node), log) as command:
            ports = url.format(jobs_port), f"127.0.0.1:{gcs_port}", url.format(agent_port)
            cluster = Cluster(command, dict(node), *ports)
            yield cluster
            cluster.kill()  # in order it takes up to 20 s
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def ray_node(cluster: Cluster, log: Path, num_cpus: int = 2) -> Iterator[Command]:
    """One more node of a cluster, once it has joined, while the context lasts."""
    agent_port = free_port()
    words = shlex.split(
        f"ray start --block --address={cluster.address} --num-cpus={num_cpus} --node-ip-address=127.0.0.1 "
        f"--disable-usage-stats --dashboard-agent-listen-port={agent_port} --object-store-memory=300000000"
    )
    with running(words, cluster.node, log) as command:
        command.wait_for(lambda: answers(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz"))
        yield command
        for process in psutil.Process(command.process.pid).children(recursive=True) if command.status is None else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True)
class Service:
    """A cluster and an object store that run."""

    cluster: Cluster
    store_log: Path
    """Where the object store notes its requests, one a line."""
    logs: Path

    @property
    def node(self) -> dict[str, str]:
        """What the cluster's nodes have in their environment: among others under which `s3://` is the object store."""
        return self.cluster.node

    @property
    def jobs_url(self) -> str:
        """Of Ray's Jobs API."""
        return self.cluster.jobs_url

    @contextmanager
    def submitted(self, *words: str | Path, options: Sequence[str] = ()) -> Iterator[Command]:
        """``ray job submit -- python WORDS``, as typed, while it lasts. How to reach S3 the cluster's nodes know."""
        typed = ["ray", "job", "submit", "--address", self.jobs_url, *options, "--", "python", *words]
        with running(typed, {}, self.new_log()) as command:
            yield command

    def job(self, *words: str | Path, options: Sequence[str] = ()) -> Command:
        """The same to its end."""
        with self.submitted(*words, options=options) as command:
            return command.finish()

    @contextmanager
    def driver(self, *words: str | Path) -> Iterator[Command]:
        """``python WORDS`` on this cluster, while the context lasts."""
        with self.cluster.driver(*words, log=self.new_log()) as command:
            yield command

    def run(self, *words: str | Path) -> Command:
        """``python WORDS`` on this cluster, to its end."""
        with self.driver(*words) as command:
            return command.finish()

    def new_log(self) -> Path:
        """A file for a command's output."""
        return self.logs / f"{len(list(self.logs.iterdir()))}.log"

    def put(self, key: str, data: bytes) -> str:
        """Put an object into the store; its URI."""
        self.s3().put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def s3(self) -> Any:
        """A client of the object store that is not the one under test."""
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.node["AWS_ENDPOINT_URL"], **keys)

    def texts(self, prefix: str, ending: str) -> list[str]:
        """Of all objects in the bucket whose keys begin and end like this."""
        found = self.s3().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        keys = [one["Key"] for one in found if one["Key"].endswith(ending)]
        return [self.s3().get_object(Bucket=BUCKET, Key=key)["Body"].read().decode() for key in keys]

    def slide_reads(self) -> Counter[str]:
        """Requests for each slide, by its id, that the store has answered so far."""
        return Counter(re.findall(rf'"GET /{BUCKET}/slides/(\w+)', self.store_log.read_text()))


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    command: Command
    storage: Path
    """Folder of its run and of MLflow's database."""


def mlflow_client(folder: Path) -> MlflowClient:
    """A client of the store beside a training's runs."""
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def the_run(folder: Path) -> Run:
    """The only run of that store."""
    client = mlflow_client(folder)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    return runs[0]
