"""How a job is fitted to its cluster, with and without autoscaling, and which cluster it joins."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.cluster import connection as cluster
from ray_jobs.cluster.connection import ClusterTooSmallError, NodesMissingError, fit_to_cluster
from service.environment import read_cluster_limit
from service.errors import UsageError
from service.settings.train import ComputeSettings

WORKERS = replace(ComputeSettings(), num_workers=2, cpus_per_worker=4, gpus_per_worker=None, readers=0)


class Cluster:
    """A fake of Ray: its resources, and whether nodes join when a job waits for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **have: float) -> None:
        self.grows, self.requested, self.num_groups = True, [], 0
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: have)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True}])
        monkeypatch.setattr(cluster, "placement_group", self.group)
        monkeypatch.setattr(cluster, "remove_placement_group", self.remove)

    def group(self, bundles: list[dict[str, float]]) -> Cluster:
        self.requested, self.num_groups = bundles, self.num_groups + 1
        return self

    def remove(self, _: Cluster) -> None:
        self.num_groups -= 1

    def wait(self, seconds: float) -> bool:
        self.waited_s = seconds
        return self.grows


def test_a_cluster_with_enough_resources_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cluster(monkeypatch, CPU=9, GPU=2)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64,GPU=8")
    assert fit_to_cluster(WORKERS, extra_cpus=1, why="x") == replace(WORKERS, gpus_per_worker=1)
    assert fake.requested == []


@pytest.mark.parametrize(
    ("have", "message"),
    [
        ({"CPU": 8.0}, "the cluster has 8 CPU, this job needs 9: two workers and a reader"),
        ({"CPU": 9.0, "GPU": 1.0}, "the cluster has 1 GPU, this job needs 2"),
    ],
)
def test_a_cluster_that_is_too_small_and_cannot_grow_refuses_the_job(
    monkeypatch: pytest.MonkeyPatch, have: dict[str, float], message: str
) -> None:
    fake = Cluster(monkeypatch, **have)
    with pytest.raises(ClusterTooSmallError, match=message):
        fit_to_cluster(WORKERS, extra_cpus=1, why="two workers and a reader")
    assert fake.requested == []


def test_a_job_waits_for_a_cluster_that_can_grow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster has no GPU yet, but each worker gets one."""
    fake = Cluster(monkeypatch, CPU=8)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64, GPU=8")
    assert fit_to_cluster(WORKERS, extra_cpus=1, why="two workers and a reader").gpus_per_worker == 1
    assert fake.requested == [{"CPU": 4.0, "GPU": 1.0}] * 2 + [{"CPU": 1.0}]
    assert fake.num_groups == 0
    message = "cluster: 9 CPU (it has 8) and 2 GPU (it has 0) for two workers and a reader; 30 minutes at most"
    assert message in capsys.readouterr().out


def test_the_number_of_readers_follows_from_the_largest_size_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """One per spare CPU, and at most eight per worker."""
    fake = Cluster(monkeypatch, CPU=0)
    for most, readers in ((14, 5), (64, 16)):
        monkeypatch.setenv("MAGNET_CLUSTER_MOST", f"CPU={most}")
        assert fit_to_cluster(replace(WORKERS, readers=None), extra_cpus=1, why="x").readers == readers
        assert fake.requested == [{"CPU": 4.0}] * 2 + [{"CPU": 1.0}] * (1 + readers)


def test_a_job_that_exceeds_the_largest_size_of_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cluster(monkeypatch, CPU=8)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64,GPU=1")
    with pytest.raises(ClusterTooSmallError, match="at most 1 GPU, this job needs 2"):
        fit_to_cluster(WORKERS, extra_cpus=1, why="x")
    assert fake.requested == []


def test_a_cluster_that_does_not_grow_in_time_ends_the_attempt_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cluster(monkeypatch, CPU=0)
    fake.grows = False
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64")
    monkeypatch.setenv("MAGNET_NODE_WAIT_S", "120")
    with pytest.raises(NodesMissingError, match=r"did not grow to 9 CPU .* within 2 minutes") as failed:
        fit_to_cluster(WORKERS, extra_cpus=1, why="x")
    assert (fake.waited_s, fake.num_groups) == (120, 0)
    assert not isinstance(failed.value, UsageError)  # a usage error would end the job


@pytest.mark.parametrize("text", ["CPU", "CPU=many", "CPU:4"])
def test_a_wrong_size_of_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", text)
    with pytest.raises(UsageError, match="MAGNET_CLUSTER_MOST"):
        read_cluster_limit()


@pytest.fixture
def address_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` stores the address of its cluster."""
    path = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(cluster, "get_ray_address_file", lambda _: str(path))
    return path


def test_a_local_cluster_is_joined_only_while_it_is_reachable(address_file: Path) -> None:
    assert cluster._find_local_cluster() is None
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        address_file.write_text(address)
        assert cluster._find_local_cluster() == address
    assert cluster._find_local_cluster() is None


@pytest.mark.parametrize("text", ["", "nonsense", "127.0.0.1:x"])
def test_an_address_file_without_an_address_is_ignored(address_file: Path, text: str) -> None:
    address_file.write_text(text)
    assert cluster._find_local_cluster() is None


def test_the_cluster_of_another_user_is_not_joined(address_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address_file.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setattr(os, "getuid", lambda: address_file.stat().st_uid + 1)
        assert cluster._find_local_cluster() is None


START_A_CLUSTER = """
import os, ray
from ray_jobs.cluster import connection as cluster
cluster._find_local_cluster = lambda: None
cluster.connect({})
node = ray._private.worker._global_node
folder = os.path.dirname(node.get_temp_dir_path())
print(folder, oct(os.stat(folder).st_mode & 0o777))
api = ray.remote(lambda: os.environ["RAY_API_SERVER_ADDRESS"])
assert ray.get(api.remote()) == f"http://{node.webui_url}", node.webui_url
"""


@pytest.mark.flow
def test_a_cluster_that_a_job_starts_has_a_private_folder_which_is_removed_with_it() -> None:
    """Otherwise its address replaces that of the user's cluster, and Ray Train asks another cluster."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", START_A_CLUSTER], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder, mode = done.stdout.split()[-2:]
    assert Path(folder).name.startswith("magnet-ray-")
    assert mode == oct(stat.S_IRWXU)
    assert not Path(folder).exists()
