"""What a job asks of its cluster, of one that stays as it is and of one that grows."""

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
from ray_jobs.cluster.connection import ClusterTooSmallError, NodesMissingError, fitted
from service.environment import cluster_most
from service.errors import UsageError
from service.settings.train import ComputeSettings

WORKERS = replace(ComputeSettings(), num_workers=2, cpus_per_worker=4, gpus_per_worker=None, readers=0)


class Cluster:
    """Stands in for Ray: what it has, and whether nodes come when they are waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **have: float) -> None:
        self.grows, self.asked, self.held = True, [], 0
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: have)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True}])
        monkeypatch.setattr(cluster, "placement_group", self.group)
        monkeypatch.setattr(cluster, "remove_placement_group", self.remove)

    def group(self, bundles: list[dict[str, float]]) -> Cluster:
        self.asked, self.held = bundles, self.held + 1
        return self

    def remove(self, _: Cluster) -> None:
        self.held -= 1

    def wait(self, seconds: float) -> bool:
        self.waited_s = seconds
        return self.grows


def test_a_cluster_that_has_enough_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Cluster(monkeypatch, CPU=9, GPU=2)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64,GPU=8")
    assert fitted(WORKERS, extra_cpus=1, why="x") == replace(WORKERS, gpus_per_worker=1)
    assert own.asked == []


@pytest.mark.parametrize(
    ("have", "message"),
    [
        ({"CPU": 8.0}, "the cluster has 8 CPU, this job needs 9: two workers and a reader"),
        ({"CPU": 9.0, "GPU": 1.0}, "the cluster has 1 GPU, this job needs 2"),
    ],
)
def test_one_that_stays_as_it_is_refuses_at_once(
    monkeypatch: pytest.MonkeyPatch, have: dict[str, float], message: str
) -> None:
    own = Cluster(monkeypatch, **have)
    with pytest.raises(ClusterTooSmallError, match=message):
        fitted(WORKERS, extra_cpus=1, why="two workers and a reader")
    assert own.asked == []


def test_one_that_grows_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From no GPU at all, whose workers nevertheless get one each."""
    own = Cluster(monkeypatch, CPU=8)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64, GPU=8")
    assert fitted(WORKERS, extra_cpus=1, why="two workers and a reader").gpus_per_worker == 1
    assert own.asked == [{"CPU": 4.0, "GPU": 1.0}] * 2 + [{"CPU": 1.0}]
    assert own.held == 0
    said = "cluster: 9 CPU (it has 8) and 2 GPU (it has 0) for two workers and a reader; 30 minutes at most"
    assert said in capsys.readouterr().out


def test_readers_are_counted_where_the_cluster_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as it can come to, and at most eight for each worker."""
    own = Cluster(monkeypatch, CPU=0)
    for most, readers in ((14, 5), (64, 16)):
        monkeypatch.setenv("MAGNET_CLUSTER_MOST", f"CPU={most}")
        assert fitted(replace(WORKERS, readers=None), extra_cpus=1, why="x").readers == readers
        assert own.asked == [{"CPU": 4.0}] * 2 + [{"CPU": 1.0}] * (1 + readers)


def test_beyond_what_it_can_grow_to_it_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Cluster(monkeypatch, CPU=8)
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64,GPU=1")
    with pytest.raises(ClusterTooSmallError, match="at most 1 GPU, this job needs 2"):
        fitted(WORKERS, extra_cpus=1, why="x")
    assert own.asked == []


def test_nodes_that_do_not_come_end_the_attempt_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Cluster(monkeypatch, CPU=0)
    own.grows = False
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", "CPU=64")
    monkeypatch.setenv("MAGNET_NODE_WAIT_S", "120")
    with pytest.raises(NodesMissingError, match=r"in 2 minutes the cluster did not come to 9 CPU") as failed:
        fitted(WORKERS, extra_cpus=1, why="x")
    assert (own.waited_s, own.held) == (120, 0)
    assert not isinstance(failed.value, UsageError)  # which would be final


@pytest.mark.parametrize("text", ["CPU", "CPU=many", "CPU:4"])
def test_a_variable_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", text)
    with pytest.raises(UsageError, match="MAGNET_CLUSTER_MOST"):
        cluster_most()


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's file of the cluster that `ray start` left on this machine."""
    path = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(cluster, "get_ray_address_file", lambda _: str(path))
    return path


def test_the_cluster_of_this_machine_is_one_that_answers(note: Path) -> None:
    assert cluster._cluster_here() is None
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        note.write_text(address)
        assert cluster._cluster_here() == address
    assert cluster._cluster_here() is None


@pytest.mark.parametrize("text", ["", "nonsense", "127.0.0.1:x"])
def test_a_file_that_names_no_cluster_is_ignored(note: Path, text: str) -> None:
    note.write_text(text)
    assert cluster._cluster_here() is None


def test_the_cluster_of_another_user_is_not_joined(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        note.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setattr(os, "getuid", lambda: note.stat().st_uid + 1)
        assert cluster._cluster_here() is None


OWN = """
import os, ray
from ray_jobs import cluster
cluster._cluster_here = lambda: None
cluster.connect({})
node = ray._private.worker._global_node
folder = os.path.dirname(node.get_temp_dir_path())
print(folder, oct(os.stat(folder).st_mode & 0o777))
api = ray.remote(lambda: os.environ["RAY_API_SERVER_ADDRESS"])
assert ray.get(api.remote()) == f"http://{node.webui_url}", node.webui_url
"""


@pytest.mark.flow
def test_a_cluster_of_ones_own_has_a_folder_of_its_own_which_goes_with_it() -> None:
    """Otherwise its address replaces that of the user's cluster, and Ray Train asks another one."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", OWN], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder, mode = done.stdout.split()[-2:]
    assert Path(folder).name.startswith("magnet-ray-")
    assert mode == oct(stat.S_IRWXU)
    assert not Path(folder).exists()
