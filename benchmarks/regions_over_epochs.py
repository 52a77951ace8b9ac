"""A picture of where a MagNet looks on the same slides, from the start of its training to the end."""

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
from ray_jobs.training.evaluate import zooms_of
from service.cohort.manifest import Slide
from service.results.pictures import LAYER_COLOURS

NUM_MOMENTS, CELL_PX, GAP_PX, HEAD_PX = 6, 220, 6, 24
LESION = "#d03b3b"


@dataclass
class Diary:
    """Where the model looks at `NUM_MOMENTS` moments of its training, on a macro, a micro and a negative slide."""

    world: World
    num_steps: int
    moments: list[tuple[int, list[list[NDArray[np.float64]]]]] = field(default_factory=list)

    @property
    def slides(self) -> list[Slide]:
        """The first held-out slide of each kind."""
        kinds = {slide.stratum: slide for slide in reversed(self.world.test)}
        return [kinds[name] for name in ("macro", "micro", "negative") if name in kinds]

    def note(self, step: int, model: MagNet) -> None:
        """Look now, if it is time."""
        if step * NUM_MOMENTS // self.num_steps == (step - 1) * NUM_MOMENTS // self.num_steps and step != 1:
            return
        seen = []
        for _, batch, zoomed in zooms_of(model, self.slides, self.world.reader, "fp32"):
            seen.append([to_level0(layer[0], batch.info[0].size_px) for layer in zoomed.trace.regions])
        model.train()
        self.moments.append((step, seen))

    def draw(self, path: Path) -> None:
        """Rows: slides; columns: moments."""
        rows, columns = len(self.slides), len(self.moments)
        canvas = Image.new("RGB", (columns * (CELL_PX + GAP_PX), HEAD_PX + rows * (CELL_PX + GAP_PX)), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
        for column, (step, seen) in enumerate(self.moments):
            left = column * (CELL_PX + GAP_PX)
            draw.text((left + 4, 4), f"step {step}", fill="#0b0b0b", font=font)
            for row, slide in enumerate(self.slides):
                self._cell(canvas, draw, slide, seen[row], left, HEAD_PX + row * (CELL_PX + GAP_PX))
        canvas.save(path)

    def _cell(
        self,
        canvas: Image.Image,
        draw: ImageDraw.ImageDraw,
        slide: Slide,
        boxes: list[NDArray[np.float64]],
        left: int,
        top: int,
    ) -> None:
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
