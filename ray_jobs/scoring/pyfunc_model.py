"""The registered model as MLflow runs it: it takes a list of slides and returns a row for each.

MLflow executes this file itself ("models from code"); the checkpoint is an artifact of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

from ray_jobs.models import checkpoints
from ray_jobs.scoring.rows import score_slides
from service.cohort.manifest import Slide
from service.slides.reader import RegionReader


class Scorer(PythonModel):
    """Scores slides by URI."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network once."""
        self.model = checkpoints.load_model(Path(context.artifacts["checkpoint"]))

    def predict(  # type: ignore[override]  # MLflow allows a `predict` without `context`
        self, model_input: list[dict[str, str]]
    ) -> list[dict[str, Any]]:
        """Return rows as `service.results.scores` describes them.

        Args:
            model_input: slides as ``{"slide_id": ..., "uri": ...}``; `slide_id` is optional.
        """
        slides = [
            Slide(row=n, slide_id=row.get("slide_id", row["uri"]), uri=row["uri"], patient_id="")
            for n, row in enumerate(model_input)
        ]
        with RegionReader() as reader:
            return [scored.row for scored in score_slides(self.model, slides, reader)]


mlflow.models.set_model(Scorer())
