"""The Ray cluster of a job: the one it was submitted to, one that runs on this machine, or a small new one."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._common.utils import get_ray_address_file  # there is no public function for it
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.cluster.processes import free_port
from service import environment
from service.errors import MagnetError, UsageError
from service.progress.file import append_progress
from service.progress.record import Progress
from service.settings.train import ComputeSettings

log = logging.getLogger(__name__)

READERS_PER_WORKER = 8
"""Maximum number of reader actors per worker, if the settings do not set their number."""
LOCAL_OBJECT_STORE_BYTES = 512 << 20
"""Shared memory in bytes of a cluster that a job starts for itself."""


class ClusterTooSmallError(UsageError):
    """The cluster lacks the requested resources. To act: the user who submits the job. A retry does not help."""


class NodesMissingError(MagnetError):
    """An autoscaling cluster did not grow in time. To act: its operator. A retry can help."""


class NotSharedError(UsageError):
    """A folder or database is on one node of several. To act: the user who submits the job. A retry does not help."""


def connect(env_vars: dict[str, str]) -> None:
    """Connect to the job's cluster or to one that runs on this machine; start one if there is none.

    Args:
        env_vars: environment variables for all workers of the job.
    """
    # A submitted job already has a runtime environment, and Ray refuses a second one that sets the same variables.
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        options["runtime_env"] = {"env_vars": env_vars | {"RAY_DATA_LOG_LEVEL": "WARNING"}}
    if (address := os.environ.get("RAY_ADDRESS") or _find_local_cluster()) is not None:
        ray.init(address=address, **options)
        return
    _start_cluster(options)


def _start_cluster(options: Mapping[str, Any]) -> None:
    """Start a cluster for this process alone: on the loopback interface, without a token in the user's home.

    The cluster has a separate folder: otherwise Ray would write its address to the file by which other jobs find
    their cluster. RAY_API_SERVER_ADDRESS is set since Ray Train would otherwise ask any cluster that it finds on this
    machine about its actors.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # otherwise Ray writes a token to the user's home
    # A training needs two CPUs: for its worker, and for the process that reads slides ahead.
    num_cpus, port = max(2, os.cpu_count() or 2), free_port()
    log.warning("no Ray cluster runs here: starting one with %d CPUs for this job", num_cpus)
    folder = tempfile.mkdtemp(prefix="magnet-ray-", dir="/tmp")  # mode 700; paths of sockets have at most 107 bytes
    atexit.register(_stop_cluster, folder)
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        dashboard_port=port,
        _node_ip_address="127.0.0.1",
        _temp_dir=f"{folder}/r",  # Ray makes this folder accessible to all users
        **options,
    )


def _stop_cluster(folder: str) -> None:
    """Stop this process's cluster and remove its folder."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _find_local_cluster() -> str | None:
    """Return the address of the cluster that this user started with `ray start` on this machine, if it is reachable.

    Ray's own search also returns clusters of other users and of `magnet serve`, and waits minutes for a cluster that
    was killed.
    """
    try:
        with open(get_ray_address_file(None)) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            address = file.read().strip()
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return None
    return address


def fit_to_cluster(compute: ComputeSettings, *, extra_cpus: int, why: str) -> ComputeSettings:
    """Fit the settings to this cluster, and wait for nodes if it is autoscaling.

    A job that the cluster can never hold is refused: Ray would let it wait forever.

    Args:
        compute: settings; `gpus_per_worker` and `readers` may be None.
        extra_cpus: CPU cores needed in addition to those of the workers.
        why: what the resources are for.

    Returns:
        The same settings with `gpus_per_worker` and `readers` set.

    Raises:
        ClusterTooSmallError: the cluster is too small and cannot grow enough.
        NodesMissingError: the cluster could grow enough, but did not in time.
    """
    have, most = ray.cluster_resources(), environment.read_cluster_limit()
    limit = {name: max(have.get(name, 0), most.get(name, 0)) for name in ("CPU", "GPU")}
    compute = _set_open_settings(compute, limit, extra_cpus, several_nodes=bool(most) or _num_nodes() > 1)
    why = f"{why}, and {compute.readers} reader(s)" if compute.readers else why
    worker = {"CPU": float(compute.cpus_per_worker), "GPU": float(compute.gpus_per_worker or 0)}
    bundles = [worker] * compute.num_workers + [{"CPU": 1.0}] * (extra_cpus + (compute.readers or 0))
    wanted = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in limit}
    for name, count in wanted.items():
        if limit[name] < count:
            raise ClusterTooSmallError(
                f"the cluster has {'at most ' if most else ''}{limit[name]:g} {name}, this job needs {count:g}: {why}. "
                f"Add nodes, or lower compute.num_workers, compute.readers, compute.cpus_per_worker or "
                f"compute.gpus_per_worker."
            )
    missing = {name: count for name, count in wanted.items() if have.get(name, 0) < count}
    if missing:
        needs = " and ".join(f"{count:g} {name} (it has {have.get(name, 0):g})" for name, count in missing.items())
        _wait_for_nodes(bundles, f"{needs} for {why}")
    return compute


def _set_open_settings(
    compute: ComputeSettings, limit: Mapping[str, float], extra_cpus: int, *, several_nodes: bool
) -> ComputeSettings:
    """Set `gpus_per_worker` and `readers` for a cluster that has `limit`, or can grow to it."""
    if compute.gpus_per_worker is None:
        compute = replace(compute, gpus_per_worker=1 if limit["GPU"] else 0)
    if compute.readers is None:
        spare = int(limit["CPU"]) - compute.num_workers * compute.cpus_per_worker - extra_cpus if several_nodes else 0
        compute = replace(compute, readers=max(0, min(spare, READERS_PER_WORKER * compute.num_workers)))
    return compute


def _wait_for_nodes(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Wait until an autoscaling cluster has room for all bundles at once.

    The autoscaler adds nodes for a pending placement group. Unlike `request_resources`, of which a cluster has one for
    all jobs, a placement group ends with its job. It is removed at once: the nodes stay, since the autoscaler removes
    only nodes that were idle for minutes.
    """
    patience_s = environment.read_node_wait_s()
    activity = f"waiting for the cluster: {what}; {patience_s / 60:.0f} minutes at most"
    print(activity, flush=True)
    append_progress(Progress(activity=activity))
    group = placement_group([{name: count for name, count in bundle.items() if count} for bundle in bundles])
    try:
        if not group.wait(patience_s):
            raise NodesMissingError(
                f"the cluster did not grow to {what} within {patience_s / 60:.0f} minutes. Check `ray status` and the "
                f"quota of machines, or lower compute.num_workers"
            )
    finally:
        remove_placement_group(group)
    print("the nodes have joined the cluster", flush=True)


def require_shared(**places: str) -> None:
    """Refuse places that only one node of the cluster can access.

    Args:
        **places: paths and URIs by the option that names them.

    Raises:
        NotSharedError: the cluster has several nodes and one of the places is a path.
    """
    nodes = _num_nodes()
    for option, place in places.items():
        if nodes > 1 and ("://" not in place or place.startswith(("sqlite:", "file:"))):
            raise NotSharedError(
                f"{option} is {place}, which the other {nodes - 1} node(s) of this cluster cannot access; "
                f"use s3:// for --storage and --out, and a server for MLFLOW_TRACKING_URI"
            )


def _num_nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())
