"""Sums over the steps of an epoch, and the metrics that are computed from them at its end.

Sums and not means, so that an attempt that continues in the middle of an epoch adds to those of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_jobs.training.group import gather
from service.storage.counters import ReadCounters

Sums = dict[str, float]
"""Sums by name, over slides or steps."""


def add(*parts: Mapping[str, float]) -> Sums:
    """Return the sum of several sums, name by name."""
    return {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}


def add_workers(sums: Mapping[str, float], num_workers: int) -> Sums:
    """Return the sum over the workers, the same on each; every worker must call this equally often."""
    return add(*gather(sums, num_workers))


def sum_reads(counters: Sequence[ReadCounters]) -> Sums:
    """Return what the reads of some slides took, in total; the names are those of the metrics' means."""
    return {
        "read_s_per_slide": sum(c.wait_s for c in counters),
        "bytes_per_slide": sum(c.bytes for c in counters),
        "requests_per_slide": sum(c.requests for c in counters),
        "decode_s_per_slide": sum(c.decode_s for c in counters),
        "tiles_per_slide": sum(c.tiles for c in counters),
        "cache_hits_per_slide": sum(c.cache_hits for c in counters),
        "disk_hits_per_slide": sum(c.disk_hits for c in counters),
    }


def compute_epoch_metrics(total: Mapping[str, float], num_workers: int) -> dict[str, float]:
    """Return the metrics ``train/...`` of an epoch: means over its slides, and of gradient norms over its steps.

    Args:
        total: sums over all workers (`add_workers`): `slides`, `steps` (each step counts once per worker), `step_s` and
            `wait_s` (seconds of the steps, and those of them without pixels), and the sums that become means.
        num_workers: number of workers over which times were summed.
    """
    rest = dict(total)
    slides, steps, step_s, wait_s = (rest.pop(name, 0.0) for name in ("slides", "steps", "step_s", "wait_s"))
    result = {
        # A gradient norm is one number per step and not a sum over slides.
        f"train/{name}": value / (steps if "norm" in name else max(slides, 1))
        for name, value in sorted(rest.items())
    }
    return result | {
        "train/slides_per_s": slides * num_workers / step_s,
        "train/wait_share": wait_s / step_s,
    }
