"""The service in front of a real Ray cluster: from a manifest in the bucket to a picture of a slide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ray_jobs.cluster.processes import free_port
from service.client.client import Client
from service.operations.serving import create_admin_token
from service.queue.requests import Check, Score
from service.settings.service import read_service_settings
from tests.flows.harness import FLOW, MANIFEST, ROOT, Service, Trained, answers, running

pytestmark = [*FLOW, pytest.mark.long]


@pytest.fixture
def client(service: Service, trained: Trained, tmp_path: Path) -> Iterator[Client]:
    """Start an API and a dispatcher in front of the cluster; return a client of the API."""
    config, mlflow = tmp_path / "service.yaml", f"sqlite:///{trained.storage}/mlflow.db"
    values = {"storage": str(tmp_path), "ray": service.jobs_url, "port": free_port(), "mlflow": mlflow}
    values |= {"python": sys.executable, "places": [{"prefix": "s3://cohort"}], "job_env": {"PYTHONPATH": str(ROOT)}}
    config.write_text(yaml.safe_dump(values))
    magnet = ["python", "-c", "from service.cli.main import main; main()"]
    token = create_admin_token(read_service_settings(str(config), []), "lab")
    environment = service.node | {"PYTHONPATH": str(ROOT)}
    with (
        running([*magnet, "dispatch", "--config", config], environment, service.new_log()),
        running([*magnet, "api", "--config", config], environment, service.new_log()) as api,
        Client(f"http://127.0.0.1:{values['port']}", token) as started,
    ):
        api.wait_for(lambda: answers(f"{started.url}/healthz"))
        yield started


def test_a_manifest_is_checked_and_scored_and_a_slide_is_shown(client: Client, cohort: Path) -> None:
    num_slides = int((pd.read_csv(cohort / "manifest.csv")["split"] == "test").sum())
    check = client.submit(Check(manifest=MANIFEST, need_labels=True))
    score = client.submit(Score(manifest=MANIFEST, model="models:/magnet@challenger", split="test"))
    checked = client.wait(check.id, timeout_s=120)
    log = "".join(client.logs(check.id))
    assert (checked.state, checked.attempt) == ("done", 1), log
    assert "all 16 slides open" in log
    scored = client.wait(score.id, timeout_s=240)
    assert scored.state == "done", "".join(client.logs(score.id))
    assert (scored.progress.done, scored.progress.total) == (num_slides, num_slides)
    rows = client.scores(score.id, "csv").decode().splitlines()
    assert len(rows) == 1 + num_slides
    slide_id = rows[1].split(",")[0]
    assert client.slide(score.id, slide_id)[:2] == b"\xff\xd8"  # a JPEG
    assert b'"FeatureCollection"' in client.slide(score.id, slide_id, "geojson")
