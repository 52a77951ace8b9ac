"""The training loop of one Ray Train worker: stream, step, and at the end of each epoch evaluate, log, save."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import distributed

from magnet.health import Looked, complaints, health, movement
from magnet.windows import Ask, Fetch, Windows, in_frames
from magnet.zoom import MagNet
from ray_jobs import checkpoints
from ray_jobs.evaluate import Evaluation, evaluate
from ray_jobs.learner import IN_FLIGHT, Learner, NotFiniteError
from ray_jobs.order import Order
from ray_jobs.progress import Progress, say
from ray_jobs.stream import MicroBatch, stream
from ray_jobs.tracking import SystemMetrics, Tracker
from service import storage
from service.manifest import Slide
from service.reader import RegionReader, SlideBatch
from service.settings import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What each worker is sent."""

    settings: TrainSettings
    train: tuple[Slide, ...]
    val: tuple[Slide, ...]
    tracking_uri: str
    run_id: str

    @property
    def order(self) -> Order:
        """The order of this training."""
        recipe = self.settings.recipe
        return Order(
            num_slides=len(self.train),
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            augment=recipe.augment,
        )


def train(config: dict[str, Any]) -> None:
    """Train the ``config["task"]``, as one worker of the group.

    A worker that starts anew goes on in this order: weights as configured, then the newest checkpoint if there is one,
    then the stream from the checkpoint's step.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train lets every library speak at INFO
    task: Task = config["task"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    settings, order = task.settings, task.order
    recipe, compute = settings.recipe, settings.compute
    torch.set_num_threads(compute.cpus_per_worker)
    torch.manual_seed(recipe.seed)
    model = MagNet(settings.model, fetch_bytes=storage.read_bytes).to(ray.train.torch.get_device())
    learner = Learner(model, recipe, order.num_steps, num_workers)
    step = _restore(learner)

    tracker = Tracker(task.tracking_uri, task.run_id) if rank == 0 else None
    if tracker is not None:
        tracker.resume()
    with (
        RegionReader(tile_cache_bytes=compute.tile_cache_mb << 20, num_threads=compute.reader_threads) as reader,
        ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch") as pool,
        SystemMetrics(tracker),
    ):
        uris = [slide.uri for slide in task.train]
        batches = stream(uris, order, settings.model.zoom, first_step=step, rank=rank, num_workers=num_workers)
        sums: dict[str, float] = {}
        before: Mapping[str, Looked] = {}
        started_s, progress = time.perf_counter(), Progress(step, order.num_steps)
        for mine in _by_step(batches, step, order.num_steps):
            slides = [reader.batch([uris[i] for i in micro.slides]) for micro in mine]
            try:
                done = learner.step(step, [_conversation(task, *pair) for pair in zip(mine, slides, strict=True)], pool)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}. {_advice(mine, task)}") from error
            step += 1
            sums = _sum([sums, done | _costs(slides) | {"steps": 1}])
            if tracker is not None:
                progress.tell(step, sums)
            if order.epochs_done(step) > order.epochs_done(step - 1):
                learner.share_statistics()
                validation = evaluate(model, task.val[rank::num_workers], reader, recipe.precision, num_workers)
                metrics = _means(sums, num_workers, time.perf_counter() - started_s) | validation.metrics("val")
                metrics |= _roi_health(settings, validation.looked, before)
                before = validation.looked
                _publish(task, learner, step, order.epochs_done(step), metrics, validation, tracker)
                sums, started_s = {}, time.perf_counter()


def _by_step(batches: Iterator[MicroBatch], first: int, num_steps: int) -> Iterator[list[MicroBatch]]:
    """This worker's micro-batches, step by step. Steps are counted: each has its turn, also one without any."""
    coming = next(batches, None)
    for step in range(first, num_steps):
        mine = []
        while coming is not None and coming.step == step:
            mine.append(coming)
            coming = next(batches, None)
        yield mine


def _conversation(task: Task, micro: MicroBatch, batch: SlideBatch) -> tuple[int, Any, Fetch, torch.Tensor]:
    """What `Learner.step` wants to know of a micro-batch. The first answer is from the stream, the others are read."""

    def fetch(ask: Ask) -> Windows:
        return micro.roots if ask.layer == 0 else batch.fetch(ask)

    label_B = torch.tensor([float(task.train[i].label or 0) for i in micro.slides])
    return micro.index, batch.side_px, in_frames(fetch, micro.frames), label_B


def _costs(slides: list[SlideBatch]) -> dict[str, float]:
    counters = [c for batch in slides for c in batch.counters]
    return {
        "read_s_per_slide": sum(c.wait_s for c in counters),
        "bytes_per_slide": sum(c.bytes for c in counters),
        "requests_per_slide": sum(c.requests for c in counters),
    }


def _sum(many: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one.get(name, 0.0) for one in many) for one in many for name in one}


def _means(mine: dict[str, float], num_workers: int, elapsed_s: float) -> dict[str, float]:
    """What an epoch logs: means over its slides (gradient norms: over its steps), of all workers alike."""
    everyone = [mine]
    if num_workers > 1:
        everyone = [{} for _ in range(num_workers)]
        distributed.all_gather_object(everyone, mine)
    total = _sum(everyone)
    slides, steps = total.pop("slides"), total.pop("steps")
    means = {f"train/{name}": value / (steps if "norm" in name else slides) for name, value in sorted(total.items())}
    return means | {"train/slides_per_s": slides / elapsed_s}


def _roi_health(
    settings: TrainSettings, looked: Mapping[str, Looked], before: Mapping[str, Looked]
) -> dict[str, float]:
    """Where the model looks on the validation slides, as ``roi/...`` figures; says so when a layer has collapsed."""
    if not looked:
        return {}
    schedule = settings.model.zoom.schedule
    figures = health(list(looked.values()), schedule, settings.model.locator.scale_min) | movement(before, looked)
    if ray.train.get_context().get_world_rank() == 0:
        for sentence in complaints(figures, schedule):
            say(f"warning: {sentence}; see roi/ in MLflow")
    return {f"roi/{name}": value for name, value in figures.items()}


def _publish(
    task: Task,
    learner: Learner,
    step: int,
    epoch: int,
    metrics: dict[str, float],
    validation: Evaluation,
    tracker: Tracker | None,
) -> None:
    """Log an epoch and publish its checkpoint. A barrier: every worker comes here equally often."""
    if tracker is None:
        ray.train.report(metrics)
        return
    say(f"epoch {epoch}/{task.settings.recipe.epochs}  {_line(metrics)}")
    tracker.metrics(metrics | {"step": step}, step=epoch)
    tracker.flush()
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoints.Saved(task.settings.model, step, metrics, validation.threshold)
        checkpoints.save(Path(folder), learner.model, saved, learner.state_dict())
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _line(metrics: dict[str, float]) -> str:
    auroc = "no validation AUROC (one class only)" if "val/loss" in metrics else "no validation"
    if "val/auroc" in metrics:
        auroc = "val AUROC {:.3f} [{:.3f}, {:.3f}]".format(
            *(metrics[f"val/auroc{end}"] for end in ("", "_low", "_high"))
        )
    return f"train loss {metrics['train/loss']:.4f}  {auroc}  {metrics['train/slides_per_s']:.1f} slides/s"


def _restore(learner: Learner) -> int:
    """Load the newest checkpoint of this job's name, if there is one; the step that it was saved after, or 0."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return 0
    with newest.as_directory() as folder:
        checkpoints.load_weights(Path(folder), learner.model)
        learner.load_state_dict(checkpoints.load_training(Path(folder)))
        step = checkpoints.describe(Path(folder)).step
    log.warning("going on from the checkpoint after step %d", step)
    return step


def _advice(mine: list[MicroBatch], task: Task) -> str:
    seen = ", ".join(task.train[i].slide_id for micro in mine for i in micro.slides)
    return f"This worker's slides: {seen}. Lower recipe.learning_rate, set recipe.clip_norm, or use precision fp32"
