"""What is derived and printed at the end of an epoch: where the model looks, warnings, and a line of text."""

from __future__ import annotations

from collections.abc import Mapping

from magnet.config import ModelConfig
from magnet.health import ViewedRegions, describe_collapses, measure_health, measure_movement

MAX_WAIT_SHARE = 0.05
"""Share of the steps' time without pixels above which there is a warning."""


def measure_region_health(
    viewed: Mapping[str, ViewedRegions], viewed_before: Mapping[str, ViewedRegions], model: ModelConfig
) -> tuple[dict[str, float], list[str]]:
    """Measure where the model looks.

    Args:
        viewed: regions viewed on each validation slide, by slide_id.
        viewed_before: the same at the end of the epoch before; empty if it is not known.
        model: configuration of the model.

    Returns:
        Metrics ``roi/...``, and a sentence for each layer that has collapsed; both empty without validation slides.
    """
    if not viewed:
        return {}, []
    metrics = measure_health(list(viewed.values()), model.zoom.schedule, model.locator.scale_min)
    metrics |= measure_movement(viewed_before, viewed)
    warnings = list(describe_collapses(metrics, model.zoom.schedule))
    return {f"roi/{name}": value for name, value in metrics.items()}, warnings


def advise_on_waiting(metrics: Mapping[str, float], in_flight: int, micro_batch: int, per_worker: int) -> list[str]:
    """Return what to do about steps that wait for pixels, where smaller micro-batches would hide it.

    Args:
        metrics: metrics of the epoch.
        in_flight: number of micro-batches at once that hide reads, `ZoomConfig.num_in_flight`.
        micro_batch: slides of a micro-batch.
        per_worker: micro-batches of the busiest worker in a step.
    """
    share = metrics["train/wait_share"]
    # A worker with enough micro-batches waits because the store is slow, which no other cut of the batch changes.
    if share <= MAX_WAIT_SHARE or per_worker >= in_flight or micro_batch == 1:
        return []
    return [
        f"{share:.0%} of the steps' time was waiting for pixels: a worker reads for one micro-batch while it computes "
        f"another, and has {per_worker} in a step where {in_flight} hide reads; lower recipe.micro_batch (now "
        f"{micro_batch}; compute.gpu_memory_gb=0 keeps it), raise recipe.batch, or use fewer workers"
    ]


def format_epoch(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an epoch as a line of text."""
    auroc = "no validation AUROC (one class only)" if "val/loss" in metrics else "no validation"
    if "val/auroc" in metrics:
        auroc = "val AUROC {:.3f} [{:.3f}, {:.3f}]".format(
            *(metrics[f"val/auroc{end}"] for end in ("", "_low", "_high"))
        )
    return (
        f"train loss {metrics['train/loss']:.4f}  {auroc}  {metrics['train/slides_per_s']:.1f} slides/s"
        f"  waiting {metrics['train/wait_share']:.0%}"
    )
