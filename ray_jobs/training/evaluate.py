"""A model's judgement of labelled slides, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magnet.health import Looked
from magnet.metrics import auroc_by_stratum
from magnet.windows import Fetch, drive_many
from magnet.zoom import MagNet, Zoomed, ZoomOptions
from ray_jobs.training.group import gathered
from ray_jobs.training.learner import autocast
from ray_jobs.training.prefetch import WaitClock, ahead
from ray_jobs.training.quarantine import SlideLostError, losses_of, watched
from service.cohort.manifest import Slide
from service.slides.reader_protocol import Batch, Reader

IN_FLIGHT = 16
"""Slides whose zooms run at once: a GPU ends one in less time than a read takes."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of labelled slides."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    strata: list[str]
    looked: Mapping[str, Looked] = field(default_factory=dict)
    """Where the model looked, by slide_id."""
    slide_ids: list[str] = field(default_factory=list)
    lost: Mapping[str, str] = field(default_factory=dict)
    """Why a slide could not be read and has no score, by its URI."""
    bytes_per_slide: float = 0.0
    """Read for the scores, mean; what the reader had at hand is not counted."""

    @property
    def both_classes(self) -> bool:
        """Whether there is an AUROC at all."""
        return 0 < self.labels.sum() < len(self.labels)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        p = np.clip(np.where(self.labels == 1, self.probabilities, 1 - self.probabilities), 1e-7, 1)
        return float(-np.log(p).mean()) if len(p) else math.nan

    @property
    def threshold(self) -> float:
        """Probability that separates the classes best (Youden's J); 0.5 where there is only one class."""
        if not self.both_classes:
            return 0.5
        values = np.unique(self.probabilities)
        cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
        positive, negative = self.probabilities[self.labels == 1], self.probabilities[self.labels == 0]
        return float(max(cuts, key=lambda cut: (positive >= cut).mean() - (negative >= cut).mean()))

    def to_dict(self) -> dict[str, Any]:
        """Each slide's score, as JSON can hold it."""
        return {
            "slide_id": self.slide_ids,
            "label": self.labels.tolist(),
            "probability": self.probabilities.tolist(),
            "stratum": self.strata,
            "threshold": self.threshold,
        }

    def metrics(self, prefix: str) -> dict[str, float]:
        """AUROC with interval, over all and by stratum, loss, bytes; `selection` is what models are chosen by."""
        if not len(self.labels):
            return {}
        result = {f"{prefix}/loss": self.loss, f"{prefix}/selection": -self.loss}
        result[f"{prefix}/bytes_per_slide"] = self.bytes_per_slide
        if not self.both_classes:
            return result
        for stratum, found in auroc_by_stratum(self.labels, self.probabilities, self.strata).items():
            name = f"{prefix}/auroc" if stratum == "all" else f"{prefix}/auroc_{stratum.replace('+', '_')}"
            result |= {name: found.auroc, f"{name}_low": found.low, f"{name}_high": found.high}
        # Of two models with the same AUROC the one with the smaller loss.
        return result | {f"{prefix}/selection": result[f"{prefix}/auroc"] - 1e-3 * min(self.loss, 10.0)}


def zooms_of(
    model: MagNet,
    slides: Sequence[Slide],
    reader: Reader,
    precision: str,
    lost: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[tuple[Slide, Batch, Zoomed]]:
    """Zooms into slides, one by one, with several in flight.

    Args:
        model: is put into evaluation mode.
        slides: to zoom into.
        reader: of their regions.
        precision: "fp32" or "bf16".
        lost: takes the URI of each unreadable slide and why, and the others go on; None: its error is raised.
        **options: fields of `ZoomOptions`.
    """

    def begin() -> Iterator[tuple[tuple[Slide, Batch], Any, Fetch]]:
        for slide in slides:
            try:
                with losses_of([slide.uri]):
                    batch = reader.batch([slide.uri])
            except SlideLostError as error:
                lose(error)
            else:
                yield (
                    (slide, batch),
                    model.zoom(batch.side_px, ZoomOptions(**options)),
                    watched(batch.fetch, [slide.uri]),
                )

    def lose(error: SlideLostError) -> None:
        if lost is None:
            raise error.__cause__ or error
        lost[error.uri] = error.reason

    model.eval()
    with (
        ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch") as pool,
        torch.inference_mode(),
        autocast(precision, model.device),
    ):
        for (slide, batch), end in drive_many(ahead(begin(), WaitClock()), pool, IN_FLIGHT, SlideLostError):
            if isinstance(end, SlideLostError):
                lose(end)
            else:
                yield slide, batch, end


def evaluate(
    model: MagNet, slides: Sequence[Slide], reader: Reader, precision: str, num_workers: int = 1
) -> Evaluation:
    """Scores of this worker's share of the slides, joined with the others': the same on every worker.

    Slides that cannot be read are left out, and named in `Evaluation.lost`.
    """
    lost: dict[str, str] = {}
    mine = [
        (
            int(slide.label or 0),
            float(zoomed.logit_B.double().sigmoid()[0]),
            slide.stratum or "",
            slide.slide_id,
            _looked(zoomed),
            sum(counters.bytes for counters in batch.counters),
        )
        for slide, batch, zoomed in zooms_of(model, slides, reader, precision, lost)
    ]
    everyone = gathered((mine, lost), num_workers)
    rows = sorted((row for worker, _ in everyone for row in worker), key=lambda row: row[:4])
    return Evaluation(
        labels=np.array([row[0] for row in rows], dtype=np.int64),
        probabilities=np.array([row[1] for row in rows], dtype=np.float64),
        strata=[row[2] for row in rows],
        looked={row[3]: row[4] for row in rows},
        slide_ids=[row[3] for row in rows],
        lost={uri: reason for _, one in everyone for uri, reason in one.items()},
        bytes_per_slide=sum(row[5] for row in rows) / max(len(rows), 1),
    )


def _looked(zoomed: Zoomed) -> Looked:
    """Of the zoom into one slide."""
    layers = zoomed.trace.layers
    return Looked(tuple(layer.region_BN3[0] for layer in layers), tuple(layer.tissue_BN[0] for layer in layers))
