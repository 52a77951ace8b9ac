"""Fixtures of the flow tests: a Ray cluster, an object store with a cohort, and a model trained on it."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from ray_jobs.cluster.processes import free_port
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings
from tests.flows.harness import BUCKET, CONFIG, MANIFEST, Service, Trained, answers, ray_cluster, running

COHORT = CohortSettings(num_slides=16, side_px=2048, seed=5, split={"train": 0.5, "val": 0.25, "test": 0.25})


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A process that a shell starts in the background ignores Ctrl-C, and so do its children; these tests need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small cohort."""
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    make_cohort(folder, COHORT)
    return folder


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A cluster with two CPUs, and an object store that holds the cohort."""
    folder = tmp_path_factory.mktemp("service")
    store_port = free_port()
    node = {
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",  # the trainings here take seconds
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "MAGNET_CACHE_DIR": str(folder / "cache"),
    }
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store_port)]
    (folder / "logs").mkdir()
    with running(moto, {}, folder / "moto.log") as store, ray_cluster(node, folder / "ray.log") as cluster:
        slides: Path = request.getfixturevalue("cohort")  # created while the other two start
        running_service = Service(cluster, store.log, folder / "logs")
        store.wait_for(lambda: answers(f"http://127.0.0.1:{store_port}/moto-api/"))
        _upload(running_service, slides)
        cluster.wait()
        yield running_service


def _upload(service: Service, folder: Path) -> None:
    client = service.s3()
    client.create_bucket(Bucket=BUCKET)
    for path in [folder / "manifest.csv", *(folder / "slides").iterdir()]:
        client.upload_file(str(path), BUCKET, path.relative_to(folder).as_posix())


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config file of the smallest network."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="session")
def trained(service: Service, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training job, submitted from the repository's root as a user does."""
    storage = tmp_path_factory.mktemp("runs")
    command = service.job("ray_jobs/train.py", "--manifest", MANIFEST, "--config", config, "--storage", storage)
    assert command.status == 0, command.output
    return Trained(command, storage)


@pytest.fixture(scope="session")
def new_manifest(service: Service, cohort: Path) -> tuple[str, pd.DataFrame]:
    """A manifest without labels: the cohort, an empty glass, a corrupt slide, and a missing one."""
    frame = pd.read_csv(cohort / "manifest.csv")[["slide_id", "uri"]]
    service.put("slides/broken.tif", b"II*\0" + bytes(range(256)) * 40)
    glass = io.BytesIO()
    tifffile.imwrite(glass, np.full((1024, 1024, 3), 244, np.uint8), tile=(256, 256), metadata=None)
    service.put("slides/blank.tif", glass.getvalue())
    names = ["broken", "missing", "blank"]
    bad = pd.DataFrame({"slide_id": names, "uri": [f"slides/{name}.tif" for name in names]})
    frame = pd.concat([frame.iloc[:5], bad, frame.iloc[5:]], ignore_index=True)
    text = io.StringIO()
    frame.to_csv(text, index=False)
    return service.put("new.csv", text.getvalue().encode()), frame
