"""The Ray Data actor that turns manifest rows into published rows of the score table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from ray.actor import ActorHandle

from ray_jobs.cluster.reader_actors import reader_for
from ray_jobs.models.checkpoints import NamedModel
from ray_jobs.scoring import evidence
from ray_jobs.scoring.rows import Scored, score_slides
from service import environment
from service.cohort.manifest import Slide
from service.results import scores
from service.settings.score import ScoreSettings
from service.slides.reader_protocol import Reader

DONE = pa.schema([(name, pa.string()) for name in ("slide_id", "status", "reason")])
"""What a block passes on."""


class ScoreBlock:
    """Scores the slides of a block, publishes their rows in one piece, and passes on what became of each.

    Args:
        model: what to score with.
        settings: of the scoring; `compute` says what this actor may use.
        out: folder of the scoring.
        readers: what reads for it, if anything does.
    """

    def __init__(
        self, model: NamedModel, settings: ScoreSettings, out: str, readers: Sequence[ActorHandle[Any]] = ()
    ) -> None:
        compute = settings.compute
        torch.set_num_threads(compute.cpus_per_worker)
        device = torch.device("cuda" if compute.gpus_per_worker else "cpu")
        self.named, self.settings, self.out = model, settings, out
        self.model = model.load().to(device)
        self.reader = reader_for(compute, readers, environment.storage_deadline_s())

    def __call__(self, block: pa.Table) -> pa.Table:
        """Ray Data: slides in, what became of each out."""
        slides = [Slide(**row) for row in block.to_pylist()]
        # An actor may have died between publishing a block and saying so.
        part = scores.read_part(self.out, [slide.slide_id for slide in slides])
        if part is not None:
            return part.select(DONE.names).cast(DONE)
        scored = score_slides(
            self.model,
            slides,
            self.reader,
            self.settings,
            in_flight=self.settings.compute.slides_in_flight,
            keep_views=self.settings.pictures,
        )
        rows = [completed(one, self.named, self.reader, self.out, pictures=self.settings.pictures) for one in scored]
        scores.write_part(self.out, rows)
        return pa.Table.from_pylist([{name: row[name] for name in DONE.names} for row in rows], schema=DONE)


def completed(scored: Scored, model: NamedModel, reader: Reader, out: str, *, pictures: bool) -> dict[str, Any]:
    """A slide's whole row: which model said so, its call, and where its pictures are, which are drawn here.

    Args:
        scored: with a trace that kept its views, for pictures.
        model: what it was scored with.
        reader: of the thumbnail.
        out: folder of the pictures.
        pictures: whether they are wanted.
    """
    row = scored.row
    row |= {"model": model.name, "model_version": model.version, "model_sha256": model.sha256}
    if scored.zoomed is not None:
        row |= {"threshold": model.threshold, "call": int(row["probability"] >= model.threshold)}
        if pictures:
            row |= evidence.publish(scored, reader, out)
    return row
