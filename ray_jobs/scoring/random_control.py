"""A control for a scored cohort: the same classifier on as many boxes of the same sizes, at random places on tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magnet.controls import RandomTissue
from magnet.metrics import auroc_by_stratum
from magnet.regions import to_level0
from magnet.zoom import MagNet
from ray_jobs.models import checkpoints
from ray_jobs.training.evaluate import zoom_slides
from service import storage
from service.cohort.manifest import Slide
from service.cohort.outlines import MIN_HIT_COVERAGE, Outlines, measure_coverage
from service.errors import UsageError
from service.results import scores
from service.slides.reader import RegionReader

Boxes = NDArray[np.float64]
"""(N, 3) left, top and side of squares in level-0 pixels."""


@dataclass(frozen=True, slots=True)
class Control:
    """Result of the control, one entry per slide."""

    boxes: list[Boxes]
    """Random boxes."""
    logits: list[float]
    """Scores of the classifier on these boxes."""


def compare_scores(out: str, lesions: Outlines, seed: int) -> list[str]:
    """Compare the scores in a folder with those of random boxes.

    Args:
        out: folder that `score.py` wrote, an absolute path or URI.
        lesions: outlines by slide_id.
        seed: seed of the boxes' places.

    Returns:
        A table of AUROCs and of lesions found, in lines of text.

    Raises:
        UsageError: the folder does not hold scored slides of both labels.
    """
    rows = [row for row in scores.read_parts(out).to_pylist() if row["status"] == "scored" and row["label"] is not None]
    if len({row["label"] for row in rows}) < 2:
        raise UsageError(
            "no scored slides of both labels; name a folder that score.py wrote for slides with labels", uri=out
        )
    # The scoring keeps a copy of its model next to the scores.
    model = checkpoints.NamedModel(storage.join(out, "model"), "", "", "", 0.5).load()
    boxes = [_last_boxes(row) for row in rows]
    return _format_table(rows, boxes, run_control(rows, boxes, model, seed), lesions)


def run_control(rows: Sequence[Mapping[str, Any]], boxes: Sequence[Boxes], model: MagNet, seed: int) -> Control:
    """Score slides by random boxes.

    Args:
        rows: scored rows of the score table.
        boxes: last patches of each slide.
        model: the model that scored the slides.
        seed: seed of the boxes' places.
    """
    torch.set_num_threads(1)
    with RegionReader() as reader:
        # The control has one size for each last patch: its mean over the slides, as a share of the root square.
        side = [max(reader.info(row["uri"]).size_px) for row in rows]
        sizes = np.mean([box[:, 2] / length for box, length in zip(boxes, side, strict=True)], axis=0)
        control = RandomTissue(model.config, sizes.tolist(), to_be_loaded=True)
        # All weights are the model's. Only the sizes of the boxes belong to the control.
        control.load_state_dict({**model.state_dict(), "half_side_N": control.half_side_N})
        slides = [Slide(row=0, **{n: row[n] for n in ("slide_id", "uri", "patient_id", "label")}) for row in rows]
        random_boxes, logits = [], []
        places = torch.Generator().manual_seed(seed)
        for _, batch, zoomed in zoom_slides(control, slides, reader, "fp32", generator=places):
            random_boxes.append(to_level0(zoomed.trace.regions[-1][0], batch.info[0].size_px))
            logits.append(float(zoomed.logit_B[0]))
    return Control(random_boxes, logits)


def _format_table(
    rows: Sequence[Mapping[str, Any]], boxes: Sequence[Boxes], control: Control, lesions: Outlines
) -> list[str]:
    labels, strata = [row["label"] for row in rows], [row["stratum"] or "" for row in rows]
    magnet_aurocs = auroc_by_stratum(labels, [row["probability"] for row in rows], strata)
    random_aurocs = auroc_by_stratum(labels, control.logits, strata)
    lines = [_format_line("", "MagNet", "random tissue boxes")]
    for name in magnet_aurocs:
        cells = (f"{a.auroc:.3f} [{a.low:.3f}, {a.high:.3f}]" for a in (magnet_aurocs[name], random_aurocs[name]))
        lines.append(_format_line(f"AUROC {name}", *cells))
    outlined = [n for n, row in enumerate(rows) if row["label"] == 1 and row["slide_id"] in lesions]
    num_hits = [
        sum(_hits(slide_boxes[n], lesions[rows[n]["slide_id"]]) for n in outlined)
        for slide_boxes in (boxes, control.boxes)
    ]
    lines.append(_format_line("lesion found", *(f"{number} of {len(outlined)}" for number in num_hits)))
    lines.append(
        f"(A lesion is found if it covers at least {100 * MIN_HIT_COVERAGE:.0f} % of a last patch; both use the same "
        f"number of patches)"
    )
    return lines


def _format_line(name: str, magnet: str, random: str) -> str:
    return f"{name:<18}{magnet:>24}{random:>26}"


def _last_boxes(row: Mapping[str, Any]) -> Boxes:
    """Return the last patches of a scored slide."""
    last = max(region["layer"] for region in row["regions"])
    patches = [region for region in row["regions"] if region["layer"] == last]
    return np.array([[patch["x_l0"], patch["y_l0"], patch["side_l0"]] for patch in patches])


def _hits(boxes: Boxes, lesion: Any) -> bool:
    """Return whether one of the boxes shows the lesion."""
    return bool((measure_coverage(boxes, lesion) >= MIN_HIT_COVERAGE).any())
