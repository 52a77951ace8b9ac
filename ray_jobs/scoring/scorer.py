"""The Ray Data actor that turns rows of the manifest into published rows of the score table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from ray.actor import ActorHandle

from ray_jobs.cluster.reader_actors import make_reader
from ray_jobs.models.checkpoints import NamedModel
from ray_jobs.scoring import evidence
from ray_jobs.scoring.rows import ScoredSlide, score_slides
from service import environment
from service.cohort.manifest import Slide
from service.results import scores
from service.settings.score import ScoreSettings
from service.slides.reader_protocol import Reader

DONE = pa.schema([(name, pa.string()) for name in ("slide_id", "status", "reason")])
"""Columns that a block passes to the driver."""


class ScoreBlock:
    """Scores the slides of a block, publishes their rows as one part, and returns the status of each slide.

    Args:
        model: model to score with.
        settings: settings of the scoring; `compute` says what this actor may use.
        out: folder of the scoring.
        readers: reader actors; without any this actor reads slides itself.
    """

    def __init__(
        self, model: NamedModel, settings: ScoreSettings, out: str, readers: Sequence[ActorHandle[Any]] = ()
    ) -> None:
        compute = settings.compute
        torch.set_num_threads(compute.cpus_per_worker)
        device = torch.device("cuda" if compute.gpus_per_worker else "cpu")
        self.named, self.settings, self.out = model, settings, out
        self.model = model.load().to(device)
        self.reader = make_reader(compute, readers, environment.read_storage_deadline_s())

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score a block for Ray Data: takes slides, returns the `DONE` columns."""
        slides = [Slide(**row) for row in block.to_pylist()]
        # An actor may have died after it published a block and before it returned.
        part = scores.read_part(self.out, [slide.slide_id for slide in slides])
        if part is not None:
            return part.select(DONE.names).cast(DONE)
        pictures = self.settings.pictures
        scored_slides = score_slides(
            self.model,
            slides,
            self.reader,
            self.settings,
            in_flight=self.settings.compute.slides_in_flight,
            keep_views=pictures,
        )
        rows = [complete_row(scored, self.named, self.reader, self.out, pictures=pictures) for scored in scored_slides]
        scores.write_part(self.out, rows)
        return pa.Table.from_pylist([{name: row[name] for name in DONE.names} for row in rows], schema=DONE)


def complete_row(scored: ScoredSlide, model: NamedModel, reader: Reader, out: str, *, pictures: bool) -> dict[str, Any]:
    """Return the complete row of a slide: with the model, its call, and the pictures, which are drawn here.

    Args:
        scored: the slide; for pictures its trace must have kept the views.
        model: model that scored the slide.
        reader: reads the thumbnail.
        out: folder of the scoring.
        pictures: whether to draw pictures.
    """
    row = scored.row | {"model": model.name, "model_version": model.version, "model_sha256": model.sha256}
    if scored.zoomed is not None:
        row |= {"threshold": model.threshold, "call": int(row["probability"] >= model.threshold)}
        if pictures:
            row |= evidence.publish(scored, row, reader, out)
    return row
