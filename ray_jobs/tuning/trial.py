"""One trial of a search: a training of its own, in the process that Ray Tune gives it.

It is the same attempt as a training's, with one worker and without Ray Train: trials run side by side, so a trial needs
no workers of its own, nor a placement group that others could keep it waiting for. Root views are read by a thread
here, so that trials that fill the cluster wait for no CPU.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ray import tune

from magnet.zoom import MagNet
from ray_jobs.command_line.permanence import passes, root_error
from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.tracking import mlflow_run
from ray_jobs.tracking.provenance import hardware_tags
from ray_jobs.training.attempt import Attempt
from ray_jobs.training.fit import DoesNotFitError
from ray_jobs.training.learner import Learner, NotFiniteError
from ray_jobs.training.order import Order
from ray_jobs.training.quarantine import QuarantineError
from ray_jobs.training.stream import MicroBatch, read_roots, store_patience_s
from ray_jobs.training.task import Task
from ray_jobs.training.worker import card_bytes, fitted
from ray_jobs.tuning.pareto import Outcome
from service import storage
from service.cohort.manifest import Manifest
from service.queue.incidents import describe
from service.settings.parsing import flat, to_dict
from service.settings.train import TrainSettings
from service.settings.tune import SearchSettings, trial_settings
from service.slides.reader import RegionReader

WORST = -1.0
"""Reported for a trial that has no AUROC: below all that have one."""

CHOSEN_FILE, OUTCOME_FILE = "chosen.json", "outcome.json"
"""In a trial's folder: what was chosen for it; and how it ended, once it has by itself."""


@dataclass(frozen=True, slots=True)
class Search:
    """What every trial is sent."""

    name: str
    base: TrainSettings
    settings: SearchSettings
    manifest: Manifest
    tracking_uri: str
    parent_run: str
    storage: str

    def folder(self, trial: str) -> str:
        """Of a trial."""
        return storage.join(self.storage, f"{self.name}/trials/{trial}")

    def run_name(self, trial: str) -> str:
        """Of a trial's run in MLflow; a trial that starts again finds its own by it."""
        return f"{self.name}-{trial}"


def run_trial(chosen: dict[str, Any], search: Search) -> None:
    """Ray Tune: train with what was chosen, and report every epoch."""
    trial = tune.get_context().get_trial_id()
    if (twin := _ended_alike(search, trial, chosen)) is not None:
        _report(search, twin)
        return
    storage.write_bytes(storage.join(search.folder(trial), CHOSEN_FILE), json.dumps(chosen).encode())
    settings = trial_settings(search.base, chosen)
    run_id, _ = mlflow_run.start_run(
        search.tracking_uri, experiment=settings.experiment, name=search.run_name(trial), storage=search.storage
    )
    tracker = mlflow_run.Tracker(search.tracking_uri, run_id, search.folder(trial))
    tracker.resume()
    tracker.tags({"mlflow.parentRunId": search.parent_run, "trial": trial})
    tracker.params(parameters(settings, search.manifest))
    tracker.begin()
    tracker.datasets(search.manifest)
    status, reason = "complete", ""
    try:
        _train(search, trial, settings, tracker)
    except (DoesNotFitError, torch.OutOfMemoryError) as error:
        status, reason = "does not fit", str(error)
    except (NotFiniteError, QuarantineError) as error:
        status, reason = "failed", str(error)
    except Exception as error:  # its kind decides whether Tune may start the trial again
        if passes(root_error(error)):
            raise  # Tune starts the trial again
        traceback.print_exc()
        status, reason = "failed", describe(error)
    outcome = outcome_of(search, trial, settings, status, reason)
    about = {"chosen": chosen, "outcome": asdict(outcome)}
    storage.write_bytes(storage.join(search.folder(trial), OUTCOME_FILE), json.dumps(about, indent=2).encode())
    tracker.note_tags({"outcome": status, "outcome_reason": reason[:5000]})
    tracker.end("FAILED" if status == "failed" else "FINISHED")
    _report(search, outcome)


def parameters(settings: TrainSettings, manifest: Manifest) -> dict[str, Any]:
    """As a training records them, and what a schedule amounts to."""
    zoom = settings.model.zoom
    about = {"manifest": manifest.uri, "manifest_sha256": manifest.sha256}
    return flat(to_dict(settings)) | about | {"depth": zoom.num_layers, "num_patches": zoom.num_patches}


def outcome_of(search: Search, trial: str, settings: TrainSettings, status: str, reason: str) -> Outcome:
    """With the figures of the trial's best epoch, if it came to one."""
    zoom = settings.model.zoom
    plain = Outcome(trial, ",".join(map(str, zoom.schedule)), zoom.num_patches, status, reason)
    store = CheckpointStore(search.folder(trial))
    if (best := store.best()) is None or best.selection is None:
        return plain
    with TemporaryDirectory() as name:
        store.fetch(best, Path(name), [checkpoints.SETTINGS_FILE])
        metrics = checkpoints.describe(Path(name)).metrics
    auroc, size = metrics["val/auroc"], metrics["val/bytes_per_slide"]
    return replace(plain, auroc=auroc, bytes_per_slide=size, objective=search.settings.objective(auroc, size))


def settings_of(search: Search, trial: str) -> TrainSettings:
    """Those that a trial which was begun trains with."""
    uri = storage.join(search.folder(trial), CHOSEN_FILE)
    return trial_settings(search.base, json.loads(storage.read_bytes(uri)))


def recorded(search: Search, trial: str) -> Outcome | None:
    """How a trial ended by itself; None if it did not."""
    uri = storage.join(search.folder(trial), OUTCOME_FILE)
    return Outcome(**json.loads(storage.read_bytes(uri))["outcome"]) if storage.exists(uri) else None


def _ended_alike(search: Search, trial: str, chosen: dict[str, Any]) -> Outcome | None:
    """How a trial with the same choices ended: samplers choose among few schedules more than once."""
    for uri in storage.list_uris(storage.join(search.storage, f"{search.name}/trials")):
        if storage.name(uri) == OUTCOME_FILE:
            about = json.loads(storage.read_bytes(uri))
            if about["chosen"] == chosen:
                return Outcome(**about["outcome"])
    return None


def _train(search: Search, trial: str, settings: TrainSettings, tracker: mlflow_run.Tracker) -> None:
    """All steps that are left of the trial."""
    logging.getLogger().setLevel(logging.WARNING)
    compute = settings.compute
    torch.set_num_threads(compute.cpus_per_worker)
    device = torch.device("cuda" if compute.gpus_per_worker else "cpu")
    manifest, folder = search.manifest, search.folder(trial)
    task = Task(settings, manifest.split("train"), manifest.split("val"), tracker.uri, tracker.run_id, folder)
    task, predicted_bytes = fitted(task, [card_bytes(settings, device)], 1)
    torch.manual_seed(settings.recipe.seed)
    model = MagNet(settings.model, fetch_bytes=storage.read_bytes).to(device)
    learner = Learner(model, task.settings.recipe, task.order.num_steps)
    tracker.note_tags(hardware_tags(device))

    def cold_reader() -> RegionReader:
        """For the cost of a schedule: bytes that another trial or epoch left at hand would make it look cheap."""
        return RegionReader(
            compute.tile_cache_mb << 20, compute.reader_threads, disk_cache_bytes=0, deadline_s=store_patience_s()
        )

    with RegionReader(compute.tile_cache_mb << 20, compute.reader_threads, deadline_s=store_patience_s()) as reader:

        def report(metrics: dict[str, float]) -> None:
            value = search.settings.objective(metrics["val/auroc"], metrics["val/bytes_per_slide"])
            tune.report({"epoch": task.order.epochs_done(attempt.step), "objective": value})

        attempt = Attempt(
            task,
            learner,
            reader,
            tracker=tracker,
            report=report,
            predicted_bytes=predicted_bytes,
            cold_reader=cold_reader,
        )
        attempt.run(lambda step: _stream(reader, task.uris, task.order, settings, step))


def _stream(
    reader: RegionReader, uris: list[str], order: Order, settings: TrainSettings, first_step: int
) -> Iterator[MicroBatch]:
    """The order's micro-batches from a step on, their roots read here."""
    for step, index in order.share(first_step, 0, 1):
        positions = order.micro_batch_of(step, index)
        slides = order.slides(positions)
        roots, reasons = read_roots(reader, [uris[i] for i in slides], settings.model.zoom)
        lost = {int(i): reason for i, reason in zip(slides, reasons, strict=True) if reason}
        yield MicroBatch(step, index, slides, order.frames(positions), roots, lost)


def _report(search: Search, outcome: Outcome) -> None:
    """The last word of a trial: its best epoch, one past the last so that ASHA ends it here and not before."""
    value = WORST if outcome.objective is None else outcome.objective
    tune.report({"epoch": search.base.recipe.epochs + 1, "objective": value})
