"""Fits a training's batch to a card: which micro-batches, with how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from magnet.config import ModelConfig, RecipeConfig
from magnet.memory import Memory, step_memory
from magnet.plan import USABLE_SHARE, Cut, cuts, largest_that_fits
from service.errors import UsageError
from service.settings.train import TrainSettings


class DoesNotFitError(UsageError):
    """A schedule needs more memory than the card has, slide by slide. To act: whoever wrote the settings."""


def predicted(settings: TrainSettings, cut: Cut) -> Memory:
    """Peak memory of a worker's step whose batch is cut this way."""
    # What decides over the schedule of the training decides nothing here: one measurement serves all such trials.
    recipe = replace(settings.recipe, seed=0, epochs=1, learning_rate=1.0, locator_learning_rate=None)
    in_flight = min(cut.per_worker, settings.model.zoom.num_in_flight)
    return _predicted(settings.model, recipe, cut.micro_batch, in_flight, cut.per_worker > 1)


@cache
def _predicted(model: ModelConfig, recipe: RecipeConfig, micro_batch: int, in_flight: int, more: bool) -> Memory:
    return step_memory(model, recipe, micro_batch, in_flight=in_flight, accumulated=more)


def ways(settings: TrainSettings) -> list[Cut]:
    """All ways to cut the batch, the largest micro-batches first."""
    return cuts(settings.recipe.batch, settings.compute.num_workers)


def fits(peak_bytes: float, card_bytes: float) -> bool:
    """Whether a step leaves the card what it needs for itself."""
    return peak_bytes <= USABLE_SHARE * card_bytes


def chosen(settings: TrainSettings, card_bytes: float) -> Memory:
    """The micro-batch for a card, with its prediction.

    Raises:
        DoesNotFitError: one slide at a time is too much.
    """

    def fitting(cut: Cut) -> bool:
        return fits(predicted(settings, cut).peak_bytes, card_bytes)

    options = ways(settings)
    cut = largest_that_fits(options, fitting)
    if cut is None:
        raise DoesNotFitError(refusal(settings, predicted(settings, options[-1]).peak_bytes, card_bytes))
    return predicted(settings, cut)


def refusal(settings: TrainSettings, peak_bytes: float, card_bytes: float) -> str:
    """Why a schedule cannot be trained on a card, and what to do."""
    zoom, classifier = settings.model.zoom, settings.model.classifier
    return (
        f"schedule {','.join(map(str, zoom.schedule))} does not fit: one slide at a time needs {peak_bytes / 1e9:.1f} "
        f"GB, a card of {card_bytes / 1e9:.1f} GB has {USABLE_SHARE * card_bytes / 1e9:.1f} GB to use. "
        + " ".join(_advice(settings.recipe.precision, classifier.checkpointing))
    )


def _advice(precision: str, checkpointing: bool) -> Iterator[str]:
    yield "Take fewer regions per parent (model.zoom.schedule) or a smaller model.classifier.encoder."
    if not checkpointing:
        yield "model.classifier.checkpointing=true recomputes activations instead of keeping them."
    if precision == "fp32":
        yield "recipe.precision=bf16 nearly halves them."
