"""The Ray cluster that a job runs on: the one it was submitted to, one that runs here, or a small one of its own."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from typing import Any

import ray
from ray._private.services import get_ray_address_from_environment  # there is no public way to ask

from service.errors import UsageError
from service.settings import ComputeSettings

log = logging.getLogger(__name__)

READERS_PER_WORKER = 8
"""At most, where the settings leave their number open."""
LOCAL_OBJECT_STORE_BYTES = 512 << 20
"""Shared memory of a cluster that a job starts for itself."""


class ClusterTooSmallError(UsageError):
    """The cluster has not what the job asks for. To act: whoever submits it. Retrying does not help."""


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
    # Of its own and for this process alone: loopback, no token written into the user's home.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    num_cpus = max(2, os.cpu_count() or 2)
    log.warning("no Ray cluster runs here: starting one with %d CPUs for this job", num_cpus)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        **options,
    )


def _cluster_here() -> str | None:
    """Address of the cluster that `ray start` left on this machine, if it still answers.

    Ray remembers a cluster that was killed, and waits minutes for it.
    """
    try:
        address = get_ray_address_from_environment("auto", None)
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=2).close()
    except (ConnectionError, OSError, ValueError):
        return None
    return str(address)


def fitted(compute: ComputeSettings, *, extra_cpus: int, why: str) -> ComputeSettings:
    """Settings for this cluster. Refuses a job that would wait for ever for CPUs or GPUs that nobody has.

    Args:
        compute: `gpus_per_worker` and `readers` may be open.
        extra_cpus: cores needed beside the workers'.
        why: what all are for.

    Returns:
        The same with `gpus_per_worker` and `readers` decided.

    Raises:
        ClusterTooSmallError: if the cluster has too little.
    """
    have = ray.cluster_resources()
    if compute.gpus_per_worker is None:
        compute = replace(compute, gpus_per_worker=1 if have.get("GPU", 0) else 0)
    cpus = compute.num_workers * compute.cpus_per_worker + extra_cpus
    if compute.readers is None:
        spare = int(have.get("CPU", 0)) - cpus if _num_nodes() > 1 else 0
        compute = replace(compute, readers=max(0, min(spare, READERS_PER_WORKER * compute.num_workers)))
    if compute.readers:
        cpus, why = cpus + compute.readers, f"{why}, and {compute.readers} reader(s)"
    gpus = compute.num_workers * (compute.gpus_per_worker or 0)
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if have.get(name, 0) < wanted:
            raise ClusterTooSmallError(
                f"the cluster has {have.get(name, 0):g} {name}, this job needs {wanted:g}: {why}. "
                f"Add nodes, or lower compute.num_workers, compute.readers, compute.cpus_per_worker or "
                f"compute.gpus_per_worker."
            )
    return compute


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
