"""What is said of an epoch when it is over: where the model looks, and the line for people."""

from __future__ import annotations

from collections.abc import Mapping

from magnet.config import ModelConfig
from magnet.health import Looked, complaints, health, movement


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
