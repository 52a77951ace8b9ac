"""What a scoring is told, beside its slides, its model and where the table goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from magnet.config import CLOSED
from service.settings import train as settings
from service.settings.train import ComputeSettings
from service.slides.quality import GateSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomSettings:
    """What decides over a slide's row."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    gate: GateSettings | None = field(default_factory=GateSettings)
    """Which slides are refused; null: none."""
    frames: Literal[1, 2, 4, 8] = 1
    """Mirrored and rotated views of each slide whose probabilities are averaged."""
    stop_when_settled: float | None = None
    """End a slide once its probability moves no more than this over the last patches; null: read them all."""
    max_bytes_per_slide: int | None = None
    """End a slide once this many bytes were read of it; a few last patches are read all the same. null: no bound."""

    def __post_init__(self) -> None:
        if self.stop_when_settled is not None and not 0 <= self.stop_when_settled < 1:
            raise ValueError(f"stop_when_settled = {self.stop_when_settled}: must be 0 or more and below 1")
        if self.max_bytes_per_slide is not None and self.max_bytes_per_slide < 1:
            raise ValueError(f"max_bytes_per_slide = {self.max_bytes_per_slide}: must be 1 or more")

    @property
    def may_end_early(self) -> bool:
        """Whether the last patches are read a few at a time."""
        return self.stop_when_settled is not None or self.max_bytes_per_slide is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings(ZoomSettings):
    """A scoring job."""

    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Where it runs; changes no row."""
    pictures: bool = True
    """Zoom trees, overlays and GeoJSON."""

    def deciding(self) -> dict[str, Any]:
        """What of it decides over the rows: a folder of scores holds rows of one kind."""
        return {name: value for name, value in settings.to_dict(self).items() if name not in ("compute", "pictures")}


def score_settings(config_uri: str | None, overrides: Sequence[str]) -> ScoreSettings:
    """Settings of a scoring from a YAML file and ``key.key=value`` words.

    Raises:
        SettingsError: naming every key that is unknown or has a wrong value.
    """
    return settings.parse(ScoreSettings, settings.written(config_uri, overrides), config_uri or "the command line")
