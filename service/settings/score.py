"""Settings of a scoring. Slides, model and output folder are arguments of the job, not settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from magnet.config import FORBID_EXTRA
from service.settings.parsing import parse, read_values, to_dict
from service.settings.train import ComputeSettings
from service.slides.quality import GateSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomSettings:
    """Settings that change the row of a slide."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    gate: GateSettings | None = field(default_factory=GateSettings)
    """Thresholds of the quality gate, which refuses unsuitable slides; null: no slide is refused."""
    frames: Literal[1, 2, 4, 8] = 1
    """Number of mirrored and rotated views of each slide whose probabilities are averaged."""
    stop_when_settled: float | None = None
    """End a slide when its probability has moved no more than this over the last patches, 0 to below 1; null: read all
    patches."""
    max_bytes_per_slide: int | None = None
    """End a slide when this many bytes of it were read; the patches in progress are still read. null: no limit."""

    def __post_init__(self) -> None:
        if self.stop_when_settled is not None and not 0 <= self.stop_when_settled < 1:
            raise ValueError(f"stop_when_settled = {self.stop_when_settled}: must be 0 or more and below 1, or null")
        if self.max_bytes_per_slide is not None and self.max_bytes_per_slide < 1:
            raise ValueError(f"max_bytes_per_slide = {self.max_bytes_per_slide}: must be 1 or more, or null")

    @property
    def may_end_early(self) -> bool:
        """Whether slides may end early, so that the last patches are read a few at a time."""
        return self.stop_when_settled is not None or self.max_bytes_per_slide is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings(ZoomSettings):
    """Settings of a scoring job."""

    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Resources of the job; they change no row."""
    pictures: bool = True
    """Whether to write zoom trees, overlays and GeoJSON."""

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that change rows. All rows in one folder of scores must have the same."""
        return {name: value for name, value in to_dict(self).items() if name not in ("compute", "pictures")}


def read_score_settings(config_uri: str | None, overrides: Sequence[str]) -> ScoreSettings:
    """Read the settings of a scoring.

    Args:
        config_uri: YAML file, a path or URI; None for no file.
        overrides: texts such as ``gate.max_pen=0.5``.

    Raises:
        SettingsError: with one line for each key that is unknown or has a wrong value.
    """
    return parse(ScoreSettings, read_values(config_uri, overrides), config_uri or "the command line")
