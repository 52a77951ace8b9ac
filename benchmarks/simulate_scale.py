"""How many slides a second a cluster scores, by readers, latency, cache and GPUs: a simulation of its reading tier.

    python benchmarks/simulate_scale.py --json
    python benchmarks/simulate_scale.py --picture scale.png

A closed queueing network. Each GPU keeps `in_flight` zooms. A zoom asks layer by layer; a layer waits for the store
(latency, which no other zoom makes longer), for the link between bucket and cluster, for a reader's core, for its GPU.
Link and GPUs serve in order of arrival, and so do the readers' cores, one for a zoom at a time. Times are exponential
about their means, which is worse than life; a zoom that ends makes room for the next one at once.

What is measured comes from benchmarks/RESULTS.md. A GPU's time for a slide has not been measured: `--gpu-s` is a guess
to be replaced by your own (one scoring's slides/s on one GPU, with pixels at hand).
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
"""Of a (3, 2, 3, 2) zoom, in which the root counts as one: each is a round of requests."""
REGIONS = 64
"""1 + 3 + 6 + 18 + 36, of that zoom."""
REQUESTS, BYTES = 52, 2.6e6
"""Of that zoom of a slide of 100,000 px over HTTP: RESULTS.md, "Reading regions"."""
CORE_S = REGIONS * 2 / 366 + REQUESTS * 0.3e-3
"""Seconds of a reader's core for that zoom: 366 regions/s on two cores (local, D, turns of 36), .3 ms a request."""
ROUNDS = 1
"""Rounds of requests in a layer: at 30 ms a turn of 36 regions took one."""
PREFIX_REQUESTS = 5500
"""Requests/s that Amazon states for one prefix."""
STATIONS = ("store", "link", "readers", "gpus")

Draw = Callable[[float], float]
"""A time from its mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the simulation is given."""

    gpus: int = 1
    cores: int = 8
    """Readers' cores, all nodes together."""
    latency_s: float = 0.03
    """Of the store, to the last byte of a small range."""
    cached: float = 0.0
    """Share of requests that a node's disk cache answers, 0 to 1."""
    link_bytes_s: float = 1.25e9
    """Between bucket and cluster: 10 Gbit/s."""
    in_flight: int = 16
    """Zooms that each GPU keeps going."""
    gpu_s: float = 0.02
    """Of a GPU for a slide; not measured."""

    def __post_init__(self) -> None:
        if min(self.gpus, self.cores, self.in_flight) < 1:
            raise ValueError(f"gpus, cores and in_flight must be 1 or more: {self}")
        if not 0 <= self.cached < 1 or min(self.latency_s, self.gpu_s) < 0 or self.link_bytes_s <= 0:
            raise ValueError(f"cached must be in [0, 1), times and the link's width positive: {self}")

    def demands_s(self) -> tuple[float, float, float, float]:
        """Seconds of a slide at each of `STATIONS`, on one server."""
        miss = 1 - self.cached
        # A layer waits for the slowest of its requests: it waits unless all of them are cached.
        waits = LAYERS * ROUNDS * (1 - self.cached ** (REQUESTS / LAYERS))
        return waits * self.latency_s, BYTES * miss / self.link_bytes_s, CORE_S, self.gpu_s

    def servers(self) -> tuple[int, int, int, int]:
        """Of each station; any number of requests wait for the store at once."""
        return self.gpus * self.in_flight, 1, self.cores, self.gpus

    def bound(self) -> tuple[float, str]:
        """The most slides/s that are possible, and what stands in the way: a station, or too few zooms in flight."""
        each = zip(STATIONS[1:], self.servers()[1:], self.demands_s()[1:], strict=True)
        rates = {name: number / demand for name, number, demand in each if demand > 0}
        rates["in flight"] = self.gpus * self.in_flight / sum(self.demands_s())
        name = min(rates, key=rates.__getitem__)
        return rates[name], name


def simulate(cluster: Cluster, *, slides: int, draw: Draw) -> float:
    """Slides/s over the second half of `slides` slides, when the queues have filled.

    Args:
        cluster: what is simulated.
        slides: that are scored.
        draw: a time from its mean: exponential, or the mean itself.
    """
    means = [demand / LAYERS for demand in cluster.demands_s()]
    free, waiting = list(cluster.servers()), [deque[int]() for _ in STATIONS]
    number = itertools.count()
    events: list[tuple[float, int, int, int]] = []  # time, order among equals, station that is done, step of the zoom
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
    """Times that are exponential about their means."""
    source = random.Random(seed)
    return lambda mean_s: source.expovariate(1 / mean_s) if mean_s > 0 else 0.0


def row(cluster: Cluster, seed: int = 0) -> dict[str, float | int | str]:
    """One cluster's figures."""
    slides = max(400, 12 * cluster.gpus * cluster.in_flight)
    rate = simulate(cluster, slides=slides, draw=exponential(seed))
    bound, by = cluster.bound()
    return asdict(cluster) | {
        "slides_s": rate,
        "slides_day": rate * 86_400,
        "bound_slides_s": bound,
        "limited_by": by,
        "requests_s": rate * REQUESTS * (1 - cluster.cached),
        "prefixes": rate * REQUESTS * (1 - cluster.cached) / PREFIX_REQUESTS,
        "gigabit_s": rate * BYTES * (1 - cluster.cached) * 8e-9,
        "gpu_busy": rate * cluster.gpu_s / cluster.gpus,
    }


Panels = list[tuple[str, list[tuple[str, list[Cluster]]]]]
CORES = (2, 4, 8, 16, 32, 64)


def panels(base: Cluster) -> Panels:
    """What is compared: by latency, by cache at a far store, by in flight, by GPUs."""

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
    """Slides/s for each GPU against readers' cores for each GPU; dashed: the bound."""
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), layout="constrained")
    for axis, (title, lines) in zip(axes, rows, strict=True):
        for label, points in lines:
            x = [float(p["cores"]) / float(p["gpus"]) for p in points]
            (line,) = axis.plot(x, [float(p["slides_s"]) / float(p["gpus"]) for p in points], "o-", label=label)
            bound = [float(p["bound_slides_s"]) / float(p["gpus"]) for p in points]
            axis.plot(x, bound, "--", color=line.get_color(), linewidth=0.8)
        axis.set(title=title, xscale="log", xlabel="readers' cores for each GPU", ylim=(0, None))
        axis.set_xticks(CORES, [str(c) for c in CORES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("slides/s for each GPU (dashed: bound)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gpu-s", type=float, default=0.02, help="seconds of a GPU for a slide (default 0.02, a guess)"
    )
    parser.add_argument("--link-gbit", type=float, default=10.0, help="between bucket and cluster (default 10)")
    parser.add_argument("--picture", type=Path, help="where a PNG goes")
    parser.add_argument("--json", action="store_true", help="every point as a line of JSON")
    options = parser.parse_args()
    base = Cluster(gpu_s=options.gpu_s, link_bytes_s=options.link_gbit * 1e9 / 8)
    rows = [(title, [(label, [row(c) for c in points]) for label, points in lines]) for title, lines in panels(base)]
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
