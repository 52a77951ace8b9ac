"""The task of a training: what the driver sends to each worker."""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.training.input.order import Order
from service.cohort.manifest import Slide
from service.settings.train import TrainSettings


@dataclass(frozen=True, slots=True)
class Task:
    """A training."""

    settings: TrainSettings
    """Checked settings."""
    train: tuple[Slide, ...]
    """Slides to train on."""
    val: tuple[Slide, ...]
    """Slides to validate on; empty if there are none."""
    tracking_uri: str
    """URI of the MLflow server or database."""
    run_id: str
    """Id of the run in MLflow."""
    folder: str
    """Folder of the job, a path or URI: its checkpoints, and the records that MLflow has not yet received."""

    @property
    def uris(self) -> list[str]:
        """URIs of the training slides, in the order of their indices."""
        return [slide.uri for slide in self.train]

    @property
    def order(self) -> Order:
        """Order in which the slides are trained on."""
        recipe = self.settings.recipe
        return Order(
            num_slides=len(self.train),
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            epochs=recipe.epochs,
            seed=recipe.seed,
            augment=recipe.augment,
        )
