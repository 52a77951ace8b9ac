"""What an epoch sums up step by step, and the metrics that are made of it at its end.

Sums and not means, so that an attempt that goes on in the midst of an epoch adds to what the one before it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_jobs.training.group import gathered
from service.slides.reader_protocol import Batch

Sums = dict[str, float]


def added(*parts: Mapping[str, float]) -> Sums:
    """The sum of several sums, name by name."""
    return {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}


def of_all_workers(mine: Mapping[str, float], num_workers: int) -> Sums:
    """The sum over the workers, the same on each."""
    return added(*gathered(mine, num_workers))


def read_sums(batches: Sequence[Batch]) -> Sums:
    """What reading these slides took."""
    counters = [c for batch in batches for c in batch.counters]
    return {
        "read_s_per_slide": sum(c.wait_s for c in counters),
        "bytes_per_slide": sum(c.bytes for c in counters),
        "requests_per_slide": sum(c.requests for c in counters),
        "decode_s_per_slide": sum(c.decode_s for c in counters),
        "tiles_per_slide": sum(c.tiles for c in counters),
        "cache_hits_per_slide": sum(c.cache_hits for c in counters),
        "disk_hits_per_slide": sum(c.disk_hits for c in counters),
    }


def epoch_metrics(total: Mapping[str, float], num_workers: int) -> Sums:
    """What an epoch logs, as ``train/...``: means over its slides, of gradient norms over its steps.

    Args:
        total: `of_all_workers`: `slides`, `steps` (each counted by each worker), `step_s` and `wait_s` (seconds of the
            steps and of those the seconds without pixels), and what else there is.
        num_workers: among whom the time went.
    """
    rest = dict(total)
    slides, steps, step_s, wait_s = (rest.pop(name, 0.0) for name in ("slides", "steps", "step_s", "wait_s"))
    result = {
        f"train/{name}": value / (steps if "norm" in name else max(slides, 1)) for name, value in sorted(rest.items())
    }
    return result | {
        "train/slides_per_s": slides * num_workers / step_s,
        "train/wait_share": wait_s / step_s,
    }
