"""What each worker of a training is sent."""

from __future__ import annotations

from dataclasses import dataclass

from ray_jobs.training.order import Order
from service.cohort.manifest import Slide
from service.settings.train import TrainSettings


@dataclass(frozen=True, slots=True)
class Task:
    """A training."""

    settings: TrainSettings
    train: tuple[Slide, ...]
    val: tuple[Slide, ...]
    tracking_uri: str
    run_id: str
    folder: str
    """Of the job, a path or URI: its checkpoints, and what MLflow has not taken yet."""

    @property
    def uris(self) -> list[str]:
        """Of the training slides, as the order counts them."""
        return [slide.uri for slide in self.train]

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
