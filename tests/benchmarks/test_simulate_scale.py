"""The simulation of the reading tier against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulate_scale import BYTES, CORE_S, LAYERS, REQUESTS, Cluster, exponential, simulate, simulate_row


def constant(mean_s: float) -> float:
    return mean_s


def mean_values(demands_s: list[float], zooms: int) -> float:
    """Slides/s of a closed network of one delay (first) and single servers: Reiser and Lavenberg's recursion, 1980."""
    queues = [0.0] * len(demands_s)
    rate = 0.0
    for n in range(1, zooms + 1):
        stays = [d if k == 0 else d * (1 + queues[k]) for k, d in enumerate(demands_s)]
        rate = n / sum(stays)
        queues = [rate * stay for stay in stays]
    return rate


def test_one_zoom_alone_takes_the_sum_of_its_times() -> None:
    cluster = Cluster(in_flight=1, latency_s=0.03, gpu_s=0.02, link_bytes_s=1.25e9)
    by_hand_s = 5 * 0.03 + 2.6e6 / 1.25e9 + (64 * 2 / 366 + 52 * 0.3e-3) + 0.02
    assert simulate(cluster, slides=50, draw=constant) == pytest.approx(1 / by_hand_s)
    assert cluster.bound() == (pytest.approx(1 / by_hand_s), "in flight")


@pytest.mark.parametrize(
    ("changed", "limit", "rate"),
    [
        ({"cores": 4}, "readers", 4 / CORE_S),
        ({"cores": 64, "gpu_s": 0.1}, "gpus", 10.0),
        ({"cores": 64, "link_bytes_s": 26e6}, "link", 10.0),
        ({"cores": 64, "link_bytes_s": 26e6, "cached": 0.5}, "link", 20.0),
    ],
)
def test_with_many_in_flight_the_narrowest_place_decides(changed: dict[str, float], limit: str, rate: float) -> None:
    cluster = replace(Cluster(in_flight=128, gpu_s=0.001), **changed)
    bound, by = cluster.bound()
    assert (bound, by) == (pytest.approx(rate), limit)
    assert simulate(cluster, slides=2000, draw=constant) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("zooms", [1, 3, 8])
def test_exponential_times_give_what_mean_value_analysis_gives(zooms: int) -> None:
    cluster = Cluster(cores=1, in_flight=zooms, gpu_s=0.25, latency_s=0.08, link_bytes_s=2e7)
    demands_s = [LAYERS * 0.08, BYTES / 2e7, CORE_S, 0.25]
    found = simulate(cluster, slides=6000, draw=exponential(1))
    assert found == pytest.approx(mean_values(demands_s, zooms), rel=0.03)


def test_no_simulation_beats_its_bound_and_requests_follow_from_slides() -> None:
    for cluster in (Cluster(), Cluster(gpus=2, cores=8, cached=0.9), Cluster(in_flight=2, latency_s=0.3)):
        found = simulate_row(cluster)
        assert found["slides_s"] <= found["bound_slides_s"] * 1.05
        assert found["requests_s"] == pytest.approx(found["slides_s"] * REQUESTS * (1 - cluster.cached))


def test_a_cached_layer_waits_only_if_a_request_misses() -> None:
    assert Cluster(cached=0.9, latency_s=0.1).demands_s()[0] == pytest.approx(0.5 * (1 - 0.9**10.4))


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"cached": 1.0}, {"cached": -0.1}, {"link_bytes_s": 0.0}])
def test_a_cluster_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Cluster(**wrong)
