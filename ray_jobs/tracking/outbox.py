"""What a job has to tell MLflow and could not yet: metrics, tags and texts, as lines of JSON that outlive a process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Points:
    """Metrics of one step or one epoch; they are sent together or not at all."""

    step: int
    """Where they stand on the x axis."""
    time_ms: int
    values: dict[str, float]


@dataclass(slots=True)
class Unsent:
    """Notes in the order in which they were made."""

    points: list[Points] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Artifacts by their path; a later one replaces an earlier one of that path."""

    def __bool__(self) -> bool:
        return bool(self.points or self.tags or self.texts)

    def lacks(self, names: Iterable[str], step: int) -> bool:
        """Whether none of these metrics is noted for that step or a later one."""
        newest = next((points.step for points in reversed(self.points) if points.values.keys() & set(names)), -1)
        return newest < step

    def to_bytes(self) -> bytes:
        """One note a line."""
        lines: list[dict[str, Any]] = [asdict(one) for one in self.points]
        lines += [{"tag": name, "value": value} for name, value in self.tags.items()]
        lines += [{"file": path, "text": text} for path, text in self.texts.items()]
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Unsent:
        """What `to_bytes` wrote."""
        result = cls()
        for text in data.decode().splitlines():
            line = json.loads(text)
            if "tag" in line:
                result.tags[line["tag"]] = line["value"]
            elif "file" in line:
                result.texts[line["file"]] = line["text"]
            else:
                result.points.append(Points(**line))
        return result
