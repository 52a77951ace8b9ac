"""What each Ray Train worker runs: an attempt at the training, with Ray's stream, device and group."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError

from magnet.zoom import MagNet
from ray_jobs.cluster.progress_relay import recorder
from ray_jobs.cluster.reader_actors import reader_for
from ray_jobs.command_line.permanence import passes, root_error
from ray_jobs.tracking.mlflow_run import Tracker
from ray_jobs.tracking.provenance import hardware_tags
from ray_jobs.training.attempt import Attempt
from ray_jobs.training.fit import DoesNotFitError, chosen
from ray_jobs.training.group import gathered
from ray_jobs.training.learner import Learner, NotFiniteError
from ray_jobs.training.preemption import Notice, PreemptedError
from ray_jobs.training.quarantine import QuarantineError
from ray_jobs.training.stream import store_patience_s, stream
from ray_jobs.training.task import Task
from service import storage
from service.errors import MagnetError
from service.queue.incidents import describe
from service.settings.train import TrainSettings

__all__ = ["Task", "train"]

OF_PROGRAM = "an error of this program, report it with this log: "
"""What the reason of an end by such an error begins with."""


def train(config: dict[str, Any], network: type[MagNet] = MagNet) -> str | None:
    """Train as `train_task` does; an error that would come again ends the training instead of being repeated.

    Ray starts the group again when a worker raises an error. Where the error would only come again, a worker that is
    alone returns it; one of several leaves it in the file ``config["failure"]`` and raises it, which frees the others
    from waiting for its gradients, and the group that Ray starts then reads and returns it.
    """
    note = config.get("failure")
    try:
        if note is not None and storage.exists(note):
            return storage.read_bytes(note).decode()
        return train_task(config, network)
    except Exception as error:  # its kind decides whether Ray may start the group again
        cause = root_error(error)
        if passes(cause):
            raise
        traceback.print_exception(error)
        reason = str(cause) if isinstance(cause, MagnetError) else f"{OF_PROGRAM}{describe(cause)}"
        if ray.train.get_context().get_world_size() == 1:
            return reason
        if note is not None:
            _leave(note, reason)
        raise


def _leave(note: str, reason: str) -> None:
    try:
        storage.write_bytes(note, reason.encode())
    except MagnetError as error:
        logging.warning("the reason could not be left for the next attempt: %s", error)


def train_task(config: dict[str, Any], network: type[MagNet] = MagNet) -> str | None:
    """Train the pickled ``config["task"]``, as one worker of the group; ``config["readers"]`` read for it, if any,
    and ``config["progress_relay"]`` takes the progress to the driver.

    Args:
        config: of Ray Train.
        network: what is trained; a benchmark's takes as long as on a GPU.

    Returns:
        Why the training cannot go on, where trying again would end alike: Ray starts anew whoever raises an error.

    Raises:
        RayActorError: a worker's machine is about to be taken away. As preempted, which Ray counts apart from failures.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train lets every library speak at INFO
    task: Task = pickle.loads(config["task"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(task.settings.compute.cpus_per_worker)
    try:
        task, predicted_bytes = fitted(task, gathered(card_bytes(task.settings, device), num_workers), num_workers)
    except DoesNotFitError as error:
        return str(error)
    settings, order = task.settings, task.order
    compute = settings.compute
    torch.manual_seed(settings.recipe.seed)
    model = network(settings.model, fetch_bytes=storage.read_bytes).to(device)
    learner = Learner(model, settings.recipe, order.num_steps, num_workers)
    tracker = _tracker(task, model.device) if rank == 0 else None
    with Notice(lambda: ray.train.get_preemption_info() is not None) as notice:
        attempt = Attempt(
            task,
            learner,
            reader_for(compute, config["readers"], store_patience_s()),
            rank=rank,
            num_workers=num_workers,
            tracker=tracker,
            report=ray.train.report,
            predicted_bytes=predicted_bytes,
            notice=notice,
            record_progress=recorder(config.get("progress_relay")),
        )
        uris, zoom = task.uris, settings.model.zoom
        try:
            attempt.run(lambda step: stream(uris, order, zoom, first_step=step, rank=rank, num_workers=num_workers))
        except (NotFiniteError, QuarantineError, DoesNotFitError) as error:
            return str(error)
        except PreemptedError as error:
            raise RayActorError(error_msg=str(error), preempted=True) from error
    return None


def card_bytes(settings: TrainSettings, device: torch.device) -> float | None:
    """Memory to choose the micro-batch for; None: it is taken from the settings, always so without a GPU."""
    compute = settings.compute
    if device.type != "cuda" or compute.gpu_memory_gb == 0:
        return None
    own = torch.cuda.get_device_properties(device).total_memory * min(1.0, compute.gpus_per_worker or 1.0)
    return own if compute.gpu_memory_gb is None else compute.gpu_memory_gb * 1e9


def fitted(task: Task, cards: Sequence[float | None], num_workers: int) -> tuple[Task, int | None]:
    """A training with the micro-batch for the smallest card of its workers, and the peak predicted for it, in bytes.

    Raises:
        DoesNotFitError: one slide at a time is too much.
    """
    known = [card for card in cards if card is not None]
    if not known:
        return task, None
    settings = task.settings
    memory = chosen(replace(settings, compute=replace(settings.compute, num_workers=num_workers)), min(known))
    recipe = replace(settings.recipe, micro_batch=memory.micro_batch)
    return replace(task, settings=replace(settings, recipe=recipe)), memory.peak_bytes


def _tracker(task: Task, device: torch.device) -> Tracker:
    """The first worker's."""
    tracker = Tracker(task.tracking_uri, task.run_id, task.folder)
    tracker.resume()
    tracker.note_tags(hardware_tags(device) | {"hardware.num_workers": str(task.settings.compute.num_workers)})
    return tracker
