"""What is said of an epoch when it is over: where the model looks, and the line for people."""

from __future__ import annotations

from collections.abc import Mapping

from magnet.config import ModelConfig
from magnet.health import Looked, complaints, health, movement

MUCH_WAITING = 0.05
"""Share of a step's time without pixels that is worth a sentence."""


def roi_health(
    looked: Mapping[str, Looked], before: Mapping[str, Looked], model: ModelConfig
) -> tuple[dict[str, float], list[str]]:
    """Where the model looks.

    Args:
        looked: on each validation slide, by slide_id.
        before: the same an epoch ago; empty: unknown.
        model: that looked.

    Returns:
        Figures as ``roi/...``, and a sentence for each layer that has collapsed.
    """
    if not looked:
        return {}, []
    figures = health(list(looked.values()), model.zoom.schedule, model.locator.scale_min)
    figures |= movement(before, looked)
    found = list(complaints(figures, model.zoom.schedule))
    return {f"roi/{name}": value for name, value in figures.items()}, found


def waiting(metrics: Mapping[str, float], in_flight: int, micro_batch: int, per_worker: int) -> list[str]:
    """What to do about steps that wait for pixels, where cutting the batch finer would hide it.

    Args:
        metrics: of the epoch.
        in_flight: micro-batches at once that hide reads, `ZoomConfig.num_in_flight`.
        micro_batch: slides of each.
        per_worker: micro-batches of the busiest worker in a step.
    """
    share = metrics["train/wait_share"]
    if share <= MUCH_WAITING or per_worker >= in_flight or micro_batch == 1:
        return []
    return [
        f"{share:.0%} of the steps' time was waiting for pixels: a worker reads for one micro-batch while it computes "
        f"another, and has {per_worker} in a step where {in_flight} hide reads; lower recipe.micro_batch (now "
        f"{micro_batch}; compute.gpu_memory_gb=0 keeps it), raise recipe.batch, or take fewer workers"
    ]


def line(metrics: Mapping[str, float]) -> str:
    """An epoch in a line for people."""
    auroc = "no validation AUROC (one class only)" if "val/loss" in metrics else "no validation"
    if "val/auroc" in metrics:
        auroc = "val AUROC {:.3f} [{:.3f}, {:.3f}]".format(
            *(metrics[f"val/auroc{end}"] for end in ("", "_low", "_high"))
        )
    return (
        f"train loss {metrics['train/loss']:.4f}  {auroc}  {metrics['train/slides_per_s']:.1f} slides/s"
        f"  waiting {metrics['train/wait_share']:.0%}"
    )
