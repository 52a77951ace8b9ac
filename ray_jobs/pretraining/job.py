"""A pretraining from its settings to the file of weights."""

from __future__ import annotations

import torch

from ray_jobs.command_line.manifests import require_readable
from ray_jobs.pretraining.driver import Budget, ProgressReport, pretrain, save_weights
from service.cohort.manifest import Manifest
from service.settings.train import TrainSettings
from service.slides.reader import RegionReader


def pretrain_to_file(
    settings: TrainSettings, manifest: Manifest, *, steps: int | None, minutes: float, batch: int, out: str
) -> None:
    """Pretrain an encoder, write its weights, and print the settings that load them.

    Args:
        settings: settings of the training that will use the weights.
        manifest: slides to pretrain on.
        steps: number of optimizer steps; None: `minutes` decides.
        minutes: wall time.
        batch: regions per step, 2 or more.
        out: path or URI of the file, ending in ``.safetensors``.

    Raises:
        ManifestError: slides cannot be opened; the message lists all of them.
    """
    compute, budget = settings.compute, Budget(steps=steps, minutes=minutes)
    torch.set_num_threads(compute.cpus_per_worker)
    # One reader for the check and the training: it keeps what it has read of the slides.
    with RegionReader(compute.tile_cache_mb << 20, compute.reader_threads) as reader:
        require_readable(manifest, reader, manifest.uri)
        report = ProgressReport(budget, batch)
        encoder = pretrain(settings, manifest.slides, reader, budget, batch=batch, after_step=report)
    digest = save_weights(encoder, out)
    print(f"wrote {settings.model.classifier.encoder} to {out}; settings for the training's config:")
    print(f"model:\n  classifier:\n    weights: {out}\n    weights_sha256: {digest}", flush=True)
