"""The Ray cluster that a job runs on: the one it was submitted to, one that runs here, or a small one of its own."""

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
from ray._common.utils import get_ray_address_file  # there is no public way to ask
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.cluster.processes import free_port
from service import environment
from service.errors import MagnetError, UsageError
from service.progress.file import append_progress
from service.progress.record import Progress
from service.settings.train import ComputeSettings

log = logging.getLogger(__name__)

READERS_PER_WORKER = 8
"""At most, where the settings leave their number open."""
LOCAL_OBJECT_STORE_BYTES = 512 << 20
"""Shared memory of a cluster that a job starts for itself."""


class ClusterTooSmallError(UsageError):
    """The cluster has not what the job asks for. To act: whoever submits it. Retrying does not help."""


class NodesMissingError(MagnetError):
    """A cluster that grows did not grow in time. To act: its operator. A retry can help."""


class NotSharedError(UsageError):
    """A folder or database of one node in a cluster of several. To act: whoever submits. Retrying does not help."""


def connect(env_vars: dict[str, str]) -> None:
    """Join the job's cluster, or one that runs on this machine; start one if there is none.

    Args:
        env_vars: set for every worker of the job.
    """
    # A submitted job has its environment already, and Ray takes none that repeats it.
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        options["runtime_env"] = {"env_vars": env_vars | {"RAY_DATA_LOG_LEVEL": "WARNING"}}
    if (address := os.environ.get("RAY_ADDRESS") or _cluster_here()) is not None:
        ray.init(address=address, **options)
        return
    _start_own(options)


def _start_own(options: Mapping[str, Any]) -> None:
    """Start a cluster for this process alone: loopback, no token written into the user's home, a folder of its own.

    Without that folder its address goes into Ray's file of the current cluster, by which other jobs find theirs, and
    without RAY_API_SERVER_ADDRESS Ray Train asks whichever cluster it finds about its own actors.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    num_cpus, port = max(2, os.cpu_count() or 2), free_port()
    log.warning("no Ray cluster runs here: starting one with %d CPUs for this job", num_cpus)
    folder = tempfile.mkdtemp(prefix="magnet-ray-", dir="/tmp")  # mode 700; paths of sockets have at most 107 bytes
    atexit.register(_end_own, folder)
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        dashboard_port=port,
        _node_ip_address="127.0.0.1",
        _temp_dir=f"{folder}/r",  # Ray opens it to everybody
        **options,
    )


def _end_own(folder: str) -> None:
    """Stop this process's cluster and remove its folder."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _cluster_here() -> str | None:
    """Address of the cluster that this user's `ray start` left on this machine, if it still answers.

    Ray's own search also returns clusters that belong to other users or to `magnet serve`, and waits minutes for one
    that was killed.
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


def fitted(compute: ComputeSettings, *, extra_cpus: int, why: str) -> ComputeSettings:
    """Settings for this cluster, which has what they ask for: where it grows, its nodes are waited for.

    Refuses a job that would wait for ever for CPUs or GPUs that nobody has.

    Args:
        compute: `gpus_per_worker` and `readers` may be open.
        extra_cpus: cores needed beside the workers'.
        why: what all are for.

    Returns:
        The same with `gpus_per_worker` and `readers` decided.

    Raises:
        ClusterTooSmallError: the cluster has too little, and cannot grow so far.
        NodesMissingError: it can, but did not in time.
    """
    have, most = ray.cluster_resources(), environment.cluster_most()
    reach = {name: max(have.get(name, 0), most.get(name, 0)) for name in ("CPU", "GPU")}
    compute = _decided(compute, reach, extra_cpus, several_nodes=bool(most) or _num_nodes() > 1)
    why = f"{why}, and {compute.readers} reader(s)" if compute.readers else why
    worker = {"CPU": float(compute.cpus_per_worker), "GPU": float(compute.gpus_per_worker or 0)}
    bundles = [worker] * compute.num_workers + [{"CPU": 1.0}] * (extra_cpus + (compute.readers or 0))
    wanted = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in reach}
    for name, count in wanted.items():
        if reach[name] < count:
            raise ClusterTooSmallError(
                f"the cluster has {'at most ' if most else ''}{reach[name]:g} {name}, this job needs {count:g}: {why}. "
                f"Add nodes, or lower compute.num_workers, compute.readers, compute.cpus_per_worker or "
                f"compute.gpus_per_worker."
            )
    missing = {name: count for name, count in wanted.items() if have.get(name, 0) < count}
    if missing:
        told = " and ".join(f"{count:g} {name} (it has {have.get(name, 0):g})" for name, count in missing.items())
        _wait_for_nodes(bundles, f"{told} for {why}")
    return compute


def _decided(
    compute: ComputeSettings, reach: Mapping[str, float], extra_cpus: int, *, several_nodes: bool
) -> ComputeSettings:
    """With nothing left open, for a cluster that has or comes to `reach`."""
    if compute.gpus_per_worker is None:
        compute = replace(compute, gpus_per_worker=1 if reach["GPU"] else 0)
    if compute.readers is None:
        spare = int(reach["CPU"]) - compute.num_workers * compute.cpus_per_worker - extra_cpus if several_nodes else 0
        compute = replace(compute, readers=max(0, min(spare, READERS_PER_WORKER * compute.num_workers)))
    return compute


def _wait_for_nodes(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Wait until a growing cluster has room for all of this at once.

    A placement group that waits is what an autoscaler goes by, and unlike `request_resources`, of which a cluster has
    one for all jobs, it ends with its job. It is given back at once: nodes stay until they were idle for minutes.
    """
    patience_s = environment.node_wait_s()
    activity = f"waiting for the cluster: {what}; {patience_s / 60:.0f} minutes at most"
    print(activity, flush=True)
    append_progress(Progress(activity=activity))
    group = placement_group([{name: count for name, count in one.items() if count} for one in bundles])
    try:
        if not group.wait(patience_s):
            raise NodesMissingError(
                f"in {patience_s / 60:.0f} minutes the cluster did not come to {what}. Look at `ray status` and at the "
                f"quota of the machines, or lower compute.num_workers"
            )
    finally:
        remove_placement_group(group)
    print("the nodes are there", flush=True)


def require_shared(**places: str) -> None:
    """Refuse places that only one of a cluster's nodes can see.

    Args:
        **places: paths and URIs, by the option that names them.

    Raises:
        NotSharedError: if the cluster has several nodes and one of the places is a path.
    """
    nodes = _num_nodes()
    for option, place in places.items():
        if nodes > 1 and ("://" not in place or place.startswith(("sqlite:", "file:"))):
            raise NotSharedError(
                f"{option} is {place}, which the other {nodes - 1} node(s) of this cluster cannot see; "
                f"use s3:// for --storage and --out, and a server for MLFLOW_TRACKING_URI"
            )


def _num_nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())
