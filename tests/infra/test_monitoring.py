"""Alerts and dashboard ask for metrics that are really exported."""

from __future__ import annotations

import copy
import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.infra.schemas import check_rules

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
METRIC = re.compile(r"\b(?:ray|magnet)_[a-z_]+")


def exported() -> set[str]:
    """Names in our metrics, in Ray's reporter (without its prefix) and in Ray's own panels."""
    ours = re.findall(r'Gauge\(\s*"(magnet_[a-z_]+)"', (ROOT / "service/api/metrics.py").read_text())
    modules = files("ray") / "dashboard" / "modules"
    reported = re.findall(r'"((?:node|cluster)_[a-z_]+)"', (modules / "reporter" / "reporter_agent.py").read_text())
    panels = (modules / "metrics" / "dashboards" / "default_dashboard_panels.py").read_text()
    return set(ours) | {f"ray_{name}" for name in reported} | set(re.findall(r"\bray_[a-z_]+", panels))


def unknown(expression: str) -> set[str]:
    return set(METRIC.findall(expression)) - exported()


def test_the_alerts_keep_to_their_schema_and_to_what_is_exported() -> None:
    check_rules(RULES)
    alerts = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert METRIC.search(rule["expr"]), rule["alert"]
        assert not unknown(rule["expr"]), rule["alert"]


def test_the_dashboard_asks_for_what_is_exported() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["targets"]
        for target in panel["targets"]:
            assert METRIC.search(target["expr"])
            assert not unknown(target["expr"]), panel["title"]


def test_a_metric_that_nobody_exports_is_caught() -> None:
    assert unknown("max(magnet_dispatcher_up) + ray_node_gpus_utilisation") == {"ray_node_gpus_utilisation"}
    assert unknown("sum(magnet_jobs_total)") == {"magnet_jobs_total"}


def test_a_broken_alert_is_caught() -> None:
    broken = copy.deepcopy(RULES)
    broken["groups"][0]["rules"][0]["annotation"] = {}
    with pytest.raises(jsonschema.ValidationError, match="annotation"):
        check_rules(broken)
