"""Scores of labelled slides by a model, and metrics of how good they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magnet.health import ViewedRegions
from magnet.metrics import auroc_by_stratum
from magnet.windows import Fetch, drive_many
from magnet.zoom import MagNet, ZoomOptions, ZoomResult
from ray_jobs.training.group import gather
from ray_jobs.training.input.prefetch import prefetch
from ray_jobs.training.learner import autocast
from ray_jobs.training.quarantine import SlideLostError, fetch_or_lose, raise_lost
from ray_jobs.training.timer import WaitTimer
from service.cohort.manifest import Slide
from service.slides.reader_protocol import Batch, Reader

IN_FLIGHT = 16
"""Number of slides whose zooms run at once: a GPU computes one in less time than a read takes."""


@dataclass(frozen=True, slots=True, order=True)
class SlideScore:
    """The score of one slide. Scores are sorted by their fields in this order, up to `slide_id`."""

    label: int
    """Label, 0 or 1."""
    probability: float
    """Predicted probability of label 1."""
    stratum: str
    """Stratum; empty if there is none."""
    slide_id: str
    """Id of the slide, unique."""
    viewed: ViewedRegions = field(compare=False)
    """Regions that the model looked at."""
    num_bytes: int = field(compare=False)
    """Bytes read for the score, without what the reader had cached."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of labelled slides."""

    labels: NDArray[np.int64]
    """(N,) label of each slide, 0 or 1."""
    probabilities: NDArray[np.float64]
    """(N,) predicted probabilities of label 1."""
    strata: list[str]
    """Stratum of each slide; empty if there is none."""
    viewed: Mapping[str, ViewedRegions] = field(default_factory=dict)
    """Regions that the model looked at, by slide_id."""
    slide_ids: list[str] = field(default_factory=list)
    """Id of each slide."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Reason by URI of each slide that could not be read and has no score."""
    bytes_per_slide: float = 0.0
    """Mean of the bytes read for a score, without what the reader had cached."""

    @classmethod
    def of(cls, scores: Sequence[SlideScore], lost: Mapping[str, str]) -> Evaluation:
        """Collect the scores of slides.

        Args:
            scores: score of each slide.
            lost: reason by URI of each slide without a score.
        """
        ordered = sorted(scores)  # the same order, and so the same sums, with any number of workers
        return cls(
            labels=np.array([score.label for score in ordered], dtype=np.int64),
            probabilities=np.array([score.probability for score in ordered], dtype=np.float64),
            strata=[score.stratum for score in ordered],
            viewed={score.slide_id: score.viewed for score in ordered},
            slide_ids=[score.slide_id for score in ordered],
            lost=lost,
            bytes_per_slide=sum(score.num_bytes for score in ordered) / max(len(ordered), 1),
        )

    @property
    def both_classes(self) -> bool:
        """Whether there are slides of both labels, so that there is an AUROC."""
        return 0 < self.labels.sum() < len(self.labels)

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN without slides."""
        # Clipped, so that one confident mistake does not make the mean infinite.
        p = np.clip(np.where(self.labels == 1, self.probabilities, 1 - self.probabilities), 1e-7, 1)
        return float(-np.log(p).mean()) if len(p) else math.nan

    @property
    def threshold(self) -> float:
        """Probability that separates the classes best (Youden's J); 0.5 if there is only one class."""
        if not self.both_classes:
            return 0.5
        values = np.unique(self.probabilities)
        # Between two scores, so that rounding in another run moves no slide across the threshold.
        cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
        positive, negative = self.probabilities[self.labels == 1], self.probabilities[self.labels == 0]
        return float(max(cuts, key=lambda cut: (positive >= cut).mean() - (negative >= cut).mean()))

    def to_dict(self) -> dict[str, Any]:
        """Return the score of each slide and the threshold, as JSON can hold them."""
        return {
            "slide_id": self.slide_ids,
            "label": self.labels.tolist(),
            "probability": self.probabilities.tolist(),
            "stratum": self.strata,
            "threshold": self.threshold,
        }

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the metrics ``prefix/...``; empty without slides.

        AUROC with its interval, over all slides and by stratum, loss, and bytes; `selection` is the value by which the
        best model is selected, higher is better.
        """
        if not len(self.labels):
            return {}
        result = {f"{prefix}/loss": self.loss, f"{prefix}/selection": -self.loss}
        result[f"{prefix}/bytes_per_slide"] = self.bytes_per_slide
        if not self.both_classes:
            return result
        for stratum, area in auroc_by_stratum(self.labels, self.probabilities, self.strata).items():
            # MLflow accepts no "+" in the name of a metric.
            name = f"{prefix}/auroc" if stratum == "all" else f"{prefix}/auroc_{stratum.replace('+', '_')}"
            result |= {name: area.auroc, f"{name}_low": area.low, f"{name}_high": area.high}
        # Of two models with the same AUROC the one with the smaller loss is better.
        return result | {f"{prefix}/selection": result[f"{prefix}/auroc"] - 1e-3 * min(self.loss, 10.0)}


def zoom_slides(
    model: MagNet,
    slides: Sequence[Slide],
    reader: Reader,
    precision: str,
    lost: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[tuple[Slide, Batch, ZoomResult]]:
    """Zoom into slides one by one, with several in flight; yield each slide, its open file and the result.

    Args:
        model: network; it is put into evaluation mode.
        slides: slides to zoom into.
        reader: reads the slides.
        precision: "fp32" or "bf16".
        lost: receives URI and reason of each unreadable slide, and the others continue; None: the error is raised.
        **options: fields of `ZoomOptions`.
    """

    def start_zooms() -> Iterator[tuple[tuple[Slide, Batch], Any, Fetch]]:
        for slide in slides:
            try:
                with raise_lost([slide.uri]):
                    batch = reader.batch([slide.uri])
            except SlideLostError as error:
                lose(error)
            else:
                yield (
                    (slide, batch),
                    model.zoom(batch.side_px, ZoomOptions(**options)),
                    fetch_or_lose(batch.fetch, [slide.uri]),
                )

    def lose(error: SlideLostError) -> None:
        if lost is None:
            raise error.__cause__ or error  # the original error, which callers know
        lost[error.uri] = error.reason

    model.eval()
    with (
        ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch") as pool,
        torch.inference_mode(),
        autocast(precision, model.device),
    ):
        zooms = prefetch(start_zooms(), WaitTimer())
        for (slide, batch), result in drive_many(zooms, pool, IN_FLIGHT, SlideLostError):
            if isinstance(result, SlideLostError):
                lose(result)
            else:
                yield slide, batch, result


def evaluate(
    model: MagNet, slides: Sequence[Slide], reader: Reader, precision: str, num_workers: int = 1
) -> Evaluation:
    """Score this worker's share of the slides, and combine the scores of all workers: the same on each.

    Slides that cannot be read are left out and listed in `Evaluation.lost`.

    Args:
        model: network; it is put into evaluation mode.
        slides: this worker's share.
        reader: reads the slides.
        precision: "fp32" or "bf16".
        num_workers: number of workers in the group.
    """
    lost: dict[str, str] = {}
    scores = [
        SlideScore(
            label=int(slide.label or 0),
            probability=float(zoomed.logit_B.double().sigmoid()[0]),
            stratum=slide.stratum or "",
            slide_id=slide.slide_id,
            viewed=_viewed(zoomed),
            num_bytes=sum(counters.bytes for counters in batch.counters),
        )
        for slide, batch, zoomed in zoom_slides(model, slides, reader, precision, lost)
    ]
    shares = gather((scores, lost), num_workers)
    return Evaluation.of(
        [score for share, _ in shares for score in share],
        {uri: reason for _, share in shares for uri, reason in share.items()},
    )


def _viewed(zoomed: ZoomResult) -> ViewedRegions:
    """Return the regions that a zoom into one slide looked at."""
    layers = zoomed.trace.layers
    return ViewedRegions(tuple(layer.region_BN3[0] for layer in layers), tuple(layer.tissue_BN[0] for layer in layers))
