"""A figure of the regions that a MagNet looks at on the same slides, from the start of its training to the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from learning import World
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magnet.regions import to_level0
from magnet.zoom import MagNet
from ray_jobs.training.evaluate import zoom_slides
from service.cohort.manifest import Slide
from service.results.pictures import LAYER_COLOURS

NUM_SNAPSHOTS, CELL_PX, GAP_PX, HEAD_PX = 6, 220, 6, 24
LESION = "#d03b3b"


@dataclass
class RegionHistory:
    """Regions on a macro, a micro and a negative slide, at `NUM_SNAPSHOTS` steps of a training."""

    world: World
    num_steps: int
    """Number of steps of the training."""
    snapshots: list[tuple[int, list[list[NDArray[np.float64]]]]] = field(default_factory=list)
    """Step, and boxes (N, 3) in level-0 pixels by slide and layer."""

    @property
    def slides(self) -> list[Slide]:
        """First held-out slide of each stratum."""
        kinds = {slide.stratum: slide for slide in reversed(self.world.test)}
        return [kinds[name] for name in ("macro", "micro", "negative") if name in kinds]

    def record(self, step: int, model: MagNet) -> None:
        """Take a snapshot after a step, if it is one of those to show."""
        if step * NUM_SNAPSHOTS // self.num_steps == (step - 1) * NUM_SNAPSHOTS // self.num_steps and step != 1:
            return
        boxes_by_slide = []
        for _, batch, zoomed in zoom_slides(model, self.slides, self.world.reader, "fp32"):
            boxes_by_slide.append([to_level0(layer[0], batch.info[0].size_px) for layer in zoomed.trace.regions])
        model.train()  # the zooms put it into evaluation mode
        self.snapshots.append((step, boxes_by_slide))

    def draw(self, path: Path) -> None:
        """Draw the snapshots; rows are slides, columns are steps."""
        rows, columns = len(self.slides), len(self.snapshots)
        canvas = Image.new("RGB", (columns * (CELL_PX + GAP_PX), HEAD_PX + rows * (CELL_PX + GAP_PX)), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
        for column, (step, boxes_by_slide) in enumerate(self.snapshots):
            left = column * (CELL_PX + GAP_PX)
            draw.text((left + 4, 4), f"step {step}", fill="#0b0b0b", font=font)
            for row, slide in enumerate(self.slides):
                self._draw_cell(canvas, draw, slide, boxes_by_slide[row], left, HEAD_PX + row * (CELL_PX + GAP_PX))
        canvas.save(path)

    def _draw_cell(
        self,
        canvas: Image.Image,
        draw: ImageDraw.ImageDraw,
        slide: Slide,
        boxes: list[NDArray[np.float64]],
        left: int,
        top: int,
    ) -> None:
        """Draw a slide's thumbnail with its lesions and boxes at a corner (left, top), in pixels of the figure."""
        thumbnail = self.world.reader.thumbnail(slide.uri, CELL_PX)
        scale = thumbnail.shape[1] / self.world.reader.info(slide.uri).size_px[0]
        canvas.paste(Image.fromarray(thumbnail), (left, top))
        for part in shapely.get_parts(self.world.lesions.get(slide.slide_id, shapely.Polygon())):
            ring = [(left + x * scale, top + y * scale) for x, y in part.exterior.coords]
            draw.line(ring, fill=LESION, width=2)
        for layer in range(1, len(boxes)):
            for x, y, side in (boxes[layer] * scale).tolist():
                corner = (left + x, top + y, left + x + max(side, 3), top + y + max(side, 3))
                draw.rectangle(corner, outline=LAYER_COLOURS[layer], width=2)
