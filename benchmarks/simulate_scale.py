"""Simulates how many slides per second a cluster scores, by readers, latency, cache and GPUs.

    python benchmarks/simulate_scale.py --json
    python benchmarks/simulate_scale.py --picture scale.png

The model is a closed queueing network. Each GPU has `in_flight` zooms. A zoom makes its requests layer by layer; a
layer waits for the store (its latency does not depend on other zooms), for the link between bucket and cluster, for a
core of the readers and for its GPU. Link, cores and GPUs serve in the order of arrival; a zoom uses one core at a time.
Times are exponentially distributed, which is worse than in reality; a zoom that ends is replaced by a new one
immediately.

Measured values come from benchmarks/RESULTS.md. The time of a GPU for a slide has not been measured: `--gpu-s` is a
guess, to be replaced by your own value (from the slides/s of a scoring on one GPU whose pixels are cached).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

LAYERS = 5
"""Layers of a (3, 2, 3, 2) zoom, the root included: each is a round of requests."""
REGIONS = 64
"""Regions of that zoom: 1 + 3 + 6 + 18 + 36."""
REQUESTS, BYTES = 52, 2.6e6
"""Requests and bytes of that zoom into a slide of 100,000 px over HTTP. Source: RESULTS.md, "Reading regions"."""
CORE_S = REGIONS * 2 / 366 + REQUESTS * 0.3e-3
"""Seconds of a core for that zoom: 366 regions/s on two cores (RESULTS.md: local, D, 36 at once), 0.3 ms a request."""
ROUNDS = 1
"""Rounds of requests in a layer: at 30 ms, 36 regions took one."""
PREFIX_REQUESTS = 5500
"""Requests/s that Amazon documents for one prefix."""
STATIONS = ("store", "link", "readers", "gpus")

Draw = Callable[[float], float]
"""Draws a time, given its mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster to be simulated."""

    gpus: int = 1
    """Number of GPUs."""
    cores: int = 8
    """Number of cores of the readers, on all nodes together."""
    latency_s: float = 0.03
    """Latency of the store in seconds, to the last byte of a small range."""
    cached: float = 0.0
    """Share of requests that the disk cache of a node answers, 0 to less than 1."""
    link_bytes_s: float = 1.25e9
    """Bandwidth between bucket and cluster in bytes per second; 10 Gbit/s."""
    in_flight: int = 16
    """Zooms at once for each GPU."""
    gpu_s: float = 0.02
    """Seconds of a GPU for a slide; not measured."""

    def __post_init__(self) -> None:
        if min(self.gpus, self.cores, self.in_flight) < 1:
            raise ValueError(f"gpus, cores and in_flight must be 1 or more: {self}")
        if not 0 <= self.cached < 1 or min(self.latency_s, self.gpu_s) < 0 or self.link_bytes_s <= 0:
            raise ValueError(f"cached must be in [0, 1), latency_s and gpu_s 0 or more, link_bytes_s positive: {self}")

    def demands_s(self) -> tuple[float, float, float, float]:
        """Return the seconds that a slide takes at each of `STATIONS`, on one server."""
        miss = 1 - self.cached
        # A layer waits for the slowest of its requests, unless all of them are cached.
        waits = LAYERS * ROUNDS * (1 - self.cached ** (REQUESTS / LAYERS))
        return waits * self.latency_s, BYTES * miss / self.link_bytes_s, CORE_S, self.gpu_s

    def servers(self) -> tuple[int, int, int, int]:
        """Return the number of servers at each station; at the store all requests are served at once."""
        return self.gpus * self.in_flight, 1, self.cores, self.gpus

    def bound(self) -> tuple[float, str]:
        """Return the upper bound of slides/s, and what limits it: a station, or the number of zooms in flight."""
        stations = zip(STATIONS[1:], self.servers()[1:], self.demands_s()[1:], strict=True)
        rates = {name: number / demand for name, number, demand in stations if demand > 0}
        rates["in flight"] = self.gpus * self.in_flight / sum(self.demands_s())
        name = min(rates, key=rates.__getitem__)
        return rates[name], name


def simulate(cluster: Cluster, *, slides: int, draw: Draw) -> float:
    """Simulate a scoring, and return slides/s over its second half, when the queues have filled.

    Args:
        cluster: cluster to simulate.
        slides: number of slides to score.
        draw: draws a time, given its mean.
    """
    means = [demand / LAYERS for demand in cluster.demands_s()]
    free, waiting = list(cluster.servers()), [deque[int]() for _ in STATIONS]
    number = itertools.count()
    events: list[
        tuple[float, int, int, int]
    ] = []  # time, order among equal times, station that is done, step of the zoom
    steps = LAYERS * len(STATIONS)

    def arrive(now_s: float, step: int) -> None:
        station = step % len(STATIONS)
        if free[station]:
            free[station] -= 1
            heapq.heappush(events, (now_s + draw(means[station]), next(number), station, step))
        else:
            waiting[station].append(step)

    for _ in range(cluster.gpus * cluster.in_flight):
        arrive(0.0, 0)
    done, half_s, now_s = 0, 0.0, 0.0
    while done < slides:
        now_s, _, station, step = heapq.heappop(events)
        free[station] += 1
        if waiting[station]:
            arrive(now_s, waiting[station].popleft())
        if step + 1 == steps:
            done += 1
            half_s = now_s if done == slides // 2 else half_s
        arrive(now_s, (step + 1) % steps)
    return (slides - slides // 2) / (now_s - half_s)


def exponential(seed: int) -> Draw:
    """Return a function that draws exponentially distributed times."""
    source = random.Random(seed)
    return lambda mean_s: source.expovariate(1 / mean_s) if mean_s > 0 else 0.0


def simulate_row(cluster: Cluster, seed: int = 0) -> dict[str, float | int | str]:
    """Simulate a cluster; return its settings and results by name."""
    # Long enough for every zoom in flight to be replaced several times.
    slides = max(400, 12 * cluster.gpus * cluster.in_flight)
    rate = simulate(cluster, slides=slides, draw=exponential(seed))
    bound, limit = cluster.bound()
    return asdict(cluster) | {
        "slides_s": rate,
        "slides_day": rate * 86_400,
        "bound_slides_s": bound,
        "limited_by": limit,
        "requests_s": rate * REQUESTS * (1 - cluster.cached),
        "prefixes": rate * REQUESTS * (1 - cluster.cached) / PREFIX_REQUESTS,
        "gigabit_s": rate * BYTES * (1 - cluster.cached) * 8e-9,
        "gpu_busy": rate * cluster.gpu_s / cluster.gpus,
    }


Panels = list[tuple[str, list[tuple[str, list[Cluster]]]]]
CORES = (2, 4, 8, 16, 32, 64)


def make_panels(base: Cluster) -> Panels:
    """Return the clusters to compare, by panel and line: latency, zooms in flight, cache, GPUs."""

    def lines(name: str, values: Sequence[float], start: Cluster, form: str) -> list[tuple[str, list[Cluster]]]:
        return [(form.format(v), [replace(start, **{name: v}, cores=c * start.gpus) for c in CORES]) for v in values]

    far, narrow = replace(base, latency_s=0.1), replace(base, gpus=8, link_bytes_s=base.link_bytes_s / 10)
    return [
        ("Latency of the store (1 GPU)", lines("latency_s", (0.002, 0.03, 0.1, 0.3), base, "{:g} s")),
        ("Zooms in flight, store at 0.1 s", lines("in_flight", (1, 4, 16, 64), far, "{:g} a GPU")),
        ("Cache, 8 GPUs behind 1 Gbit/s", lines("cached", (0.0, 0.5, 0.8, 0.95), narrow, "{:.0%} cached")),
        (
            "GPUs, 10 Gbit/s",
            [line for g in (1, 4, 16, 64) for line in lines("gpus", (g,), replace(base, gpus=g), "{:g}")],
        ),
    ]


def draw_picture(rows: list[tuple[str, list[tuple[str, list[dict[str, float | int | str]]]]]], path: Path) -> None:
    """Draw slides/s per GPU against cores of readers per GPU; the dashed line is the upper bound."""
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), layout="constrained")
    for axis, (title, lines) in zip(axes, rows, strict=True):
        for label, points in lines:
            x = [float(p["cores"]) / float(p["gpus"]) for p in points]
            (line,) = axis.plot(x, [float(p["slides_s"]) / float(p["gpus"]) for p in points], "o-", label=label)
            bound = [float(p["bound_slides_s"]) / float(p["gpus"]) for p in points]
            axis.plot(x, bound, "--", color=line.get_color(), linewidth=0.8)
        axis.set(title=title, xscale="log", xlabel="cores of readers for each GPU", ylim=(0, None))
        axis.set_xticks(CORES, [str(c) for c in CORES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("slides/s for each GPU (dashed: bound)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Simulate, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gpu-s", type=float, default=0.02, help="seconds that a GPU computes a slide (default 0.02, a guess)"
    )
    parser.add_argument(
        "--link-gbit", type=float, default=10.0, help="bandwidth between bucket and cluster in Gbit/s (default 10)"
    )
    parser.add_argument("--picture", type=Path, help="file for a PNG figure")
    parser.add_argument("--json", action="store_true", help="print each point as a line of JSON")
    options = parser.parse_args()
    base = Cluster(gpu_s=options.gpu_s, link_bytes_s=options.link_gbit * 1e9 / 8)
    rows = [
        (title, [(label, [simulate_row(c) for c in points]) for label, points in lines])
        for title, lines in make_panels(base)
    ]
    if options.picture:
        mpl.use("Agg")
        draw_picture(rows, options.picture)
    for title, lines in rows:
        if not options.json:
            print(f"{title}\n  {'':>12} {'cores':>6} {'slides/s':>9} {'slides/day':>11} {'GPU busy':>8}  limited by")
        for label, points in lines:
            for p in points:
                if options.json:
                    print(json.dumps({"panel": title, "line": label} | p))
                else:
                    print(
                        f"  {label:>12} {p['cores']:>6} {p['slides_s']:>9.1f} {p['slides_day']:>11,.0f} "
                        f"{p['gpu_busy']:>8.0%}  {p['limited_by']}"
                    )


if __name__ == "__main__":
    main()
