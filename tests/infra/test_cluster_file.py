"""The cluster file for cloud machines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from service.environment import read_cluster_limit
from tests.infra.schemas import Manifest, check_ray_cluster_file

CLUSTER: Manifest = yaml.safe_load((Path(__file__).parents[2] / "infra" / "ray" / "cluster.yaml").read_text())


def test_the_cluster_file_keeps_to_rays_schema() -> None:
    check_ray_cluster_file(CLUSTER)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(idle_timeout_minuts=1),
        lambda c: c["available_node_types"]["gpu"].update(max_worker=1),
        lambda c: c["available_node_types"]["gpu"]["resources"].update(GPU="1"),
        lambda c: c["available_node_types"]["readers"].pop("node_config"),
    ],
    ids=["top key", "node type's key", "wrong type", "missing key"],
)
def test_a_broken_cluster_file_is_caught(damage: Callable[[Manifest], object]) -> None:
    broken = copy.deepcopy(CLUSTER)
    damage(broken)
    with pytest.raises(jsonschema.ValidationError):
        check_ray_cluster_file(broken)


def test_jobs_know_what_the_cluster_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it begins without a GPU."""
    [words] = [one for one in CLUSTER["docker"]["run_options"] if "MAGNET_CLUSTER_MOST" in one]
    monkeypatch.setenv("MAGNET_CLUSTER_MOST", words.removeprefix("--env MAGNET_CLUSTER_MOST="))
    groups = [one for one in CLUSTER["available_node_types"].values() if "max_workers" in one]
    sums = {name: sum(one["max_workers"] * one["resources"].get(name, 0) for one in groups) for name in ("CPU", "GPU")}
    assert read_cluster_limit() == sums
    assert CLUSTER["available_node_types"]["gpu"]["min_workers"] == 0


def test_the_head_takes_no_tasks_and_is_not_on_spot() -> None:
    types = CLUSTER["available_node_types"]
    assert types[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
