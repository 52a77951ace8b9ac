"""The Ray Data actor that turns manifest rows into published rows of the score table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from ray_jobs.checkpoints import NamedModel
from ray_jobs.rows import Scored, score_slides
from service import scores, storage
from service.manifest import Slide
from service.pictures import THUMBNAIL_PX, zoom_picture
from service.reader import RegionReader
from service.settings import ComputeSettings

DONE = pa.schema([(name, pa.string()) for name in ("slide_id", "status", "reason")])
"""What a block passes on."""


class ScoreBlock:
    """Scores the slides of a block, publishes their rows in one piece, and passes on what became of each.

    Args:
        model: what to score with.
        compute: what this actor may use.
        out: folder of the scoring.
        pictures: whether to draw them.
    """

    def __init__(self, model: NamedModel, compute: ComputeSettings, out: str, pictures: bool) -> None:
        torch.set_num_threads(compute.cpus_per_worker)
        device = torch.device("cuda" if compute.gpus_per_worker else "cpu")
        self.named, self.out, self.pictures, self.in_flight = model, out, pictures, compute.slides_in_flight
        self.model = model.load().to(device)
        self.reader = RegionReader(tile_cache_bytes=compute.tile_cache_mb << 20, num_threads=compute.reader_threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Ray Data: slides in, what became of each out."""
        slides = [Slide(**row) for row in block.to_pylist()]
        rows = [
            self._complete(scored)
            for scored in score_slides(
                self.model, slides, self.reader, in_flight=self.in_flight, keep_views=self.pictures
            )
        ]
        scores.write_part(self.out, rows)
        return pa.table({name: [row[name] for row in rows] for name in ("slide_id", "status", "reason")}, schema=DONE)

    def _complete(self, scored: Scored) -> dict[str, Any]:
        row = scored.row
        row |= {"model": self.named.name, "model_version": self.named.version, "model_sha256": self.named.sha256}
        if scored.trace is None:
            return row
        row |= {"threshold": self.named.threshold, "call": int(row["probability"] >= self.named.threshold)}
        if self.pictures:
            row["picture"] = self._draw(scored)
        return row

    def _draw(self, scored: Scored) -> str:
        """Draw a scored slide; the picture's URI. What it reads is counted too."""
        assert scored.trace is not None
        assert scored.batch is not None
        row, trace = scored.row, scored.trace
        thumbnail = self.reader.thumbnail(row["uri"], THUMBNAIL_PX)
        verdict = "positive" if row["call"] else "negative"
        title = f"{row['slide_id']}: probability {row['probability']:.3f} ({verdict}); research use only"
        picture = zoom_picture(
            thumbnail,
            scored.batch.info[0].size_px,
            [region_BN3[0] for region_BN3 in trace.regions],
            trace.views[-1][0],
            row["running"],
            title=title,
        )
        uri = storage.join(self.out, f"pictures/{row['slide_id']}.png")
        storage.write_bytes(uri, picture)
        return uri
