"""The entry point of each Ray Train worker: it runs an attempt, and decides which errors Ray may retry."""

from __future__ import annotations

import logging
import pickle
import traceback
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError

from magnet.zoom import MagNet
from ray_jobs.cluster.progress_relay import make_progress_sink
from ray_jobs.cluster.reader_actors import make_reader
from ray_jobs.command_line.transient_errors import find_root_error, is_transient
from ray_jobs.tracking.mlflow_run import SystemMetrics, Tracker
from ray_jobs.tracking.provenance import hardware_tags
from ray_jobs.training.build import build_attempt
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.stream import stream
from ray_jobs.training.learner import NotFiniteError
from ray_jobs.training.memory.fit import DoesNotFitError
from ray_jobs.training.preemption import PreemptedError, PreemptionNotice
from ray_jobs.training.quarantine import QuarantineError
from ray_jobs.training.task import Task
from service import storage
from service.errors import MagnetError
from service.queue.incidents import describe

PROGRAM_ERROR = "this is an error of the program; report it together with this log: "
"""Beginning of the reason that `run_worker` returns for an error of the program."""


def run_worker(config: dict[str, Any], network: type[MagNet] = MagNet) -> str | None:
    """Run an attempt; an error that a retry would repeat ends the training instead of being retried.

    Ray starts the group again when a worker raises an error. Where a retry would end in the same way, a single worker
    returns the reason instead. One of several workers writes it into the file ``config["failure"]`` and raises, which
    frees the others from waiting for its gradients; the group that Ray then starts reads and returns it.

    Args:
        config: configuration from the driver, see `run_attempt`; and the path or URI ``failure``, None in benchmarks.
        network: class of the model; a benchmark replaces it.

    Returns:
        Reason why the training cannot continue; None at its end.
    """
    failure_uri = config.get("failure")
    try:
        if failure_uri is not None and storage.exists(failure_uri):
            return storage.read_bytes(failure_uri).decode()
        return run_attempt(config, network)
    except Exception as error:  # its kind decides whether Ray may start the group again
        cause = find_root_error(error)
        if is_transient(cause):
            raise
        traceback.print_exception(error)  # the reason that is returned has no traceback
        reason = str(cause) if isinstance(cause, MagnetError) else f"{PROGRAM_ERROR}{describe(cause)}"
        if ray.train.get_context().get_world_size() == 1:
            return reason
        if failure_uri is not None:
            _write_reason(failure_uri, reason)
        raise


def _write_reason(uri: str, reason: str) -> None:
    try:
        storage.write_bytes(uri, reason.encode())
    except MagnetError as error:
        logging.warning("could not store the reason of the failure for the next attempt: %s", error)


def run_attempt(config: dict[str, Any], network: type[MagNet] = MagNet) -> str | None:
    """Train as one worker of the group, from the newest checkpoint on.

    Args:
        config: configuration of Ray Train: a pickled `Task` as ``task``, the reader actors as ``readers``, and
            as ``progress_relay`` the actor that takes the progress to the driver's node, if any.
        network: class of the model; a benchmark replaces it.

    Returns:
        Reason why the training cannot continue, where a retry would end in the same way; None at its end.

    Raises:
        RayActorError: a worker's machine is about to be taken away. Ray counts such ends apart from failures.
    """
    task: Task = pickle.loads(config["task"])
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    tracker = Tracker(task.tracking_uri, task.run_id, task.folder) if rank == 0 else None
    notice = PreemptionNotice(lambda: ray.train.get_preemption_info() is not None)
    try:
        attempt = build_attempt(
            task,
            device,
            make_reader(task.settings.compute, config["readers"], get_store_deadline_s()),
            network=network,
            rank=rank,
            num_workers=num_workers,
            tracker=tracker,
            monitor=SystemMetrics(tracker),
            report=ray.train.report,
            notice=notice,
            record_progress=make_progress_sink(config.get("progress_relay")),
        )
        if tracker is not None:
            _resume_record(tracker, device, task.settings.compute.num_workers)
        uris, order, zoom = attempt.task.uris, attempt.task.order, attempt.task.settings.model.zoom
        # Until the loop runs there is nothing to save, and SIGTERM may end the process.
        with notice:
            attempt.run(lambda step: stream(uris, order, zoom, first_step=step, rank=rank, num_workers=num_workers))
    except (NotFiniteError, QuarantineError, DoesNotFitError) as error:
        return str(error)
    except PreemptedError as error:
        raise RayActorError(error_msg=str(error), preempted=True) from error
    return None


def _resume_record(tracker: Tracker, device: torch.device, num_workers: int) -> None:
    """Take over what an earlier attempt could not send, and note the hardware of this one."""
    tracker.load_outbox()
    tracker.add_tags(hardware_tags(device) | {"hardware.num_workers": str(num_workers)})
