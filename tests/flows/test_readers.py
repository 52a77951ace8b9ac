"""Reader actors return the same windows as a reader in the process, also after one of them died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray

from magnet.windows import WindowRequest
from ray_jobs.cluster.reader_actors import RemoteReader, start_readers
from service import storage
from service.errors import NotFoundError, SlideChangedError
from service.settings.train import ComputeSettings
from service.slides.reader import RegionReader
from service.storage.counters import ReadCounters
from tests.flows.harness import BUCKET, FLOW, SAME, Cluster, Service, Trained, mlflow_client, ray_cluster, the_run

pytestmark = FLOW

SLIDES = [f"s3://{BUCKET}/slides/slide_{n:04d}.tif" for n in (0, 1, 2)]
ROW = ("status", "probability", "running", "regions", "levels", "etag", "windows", "reason")
"""Columns that do not depend on which process read the slide."""


@pytest.fixture
def readers(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteReader]:
    """Two reader actors on the cluster; this process can read the object store too."""
    for name, value in service.node.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(service.cluster.address, log_to_driver=False, runtime_env={"working_dir": None})
    try:
        actors = start_readers(ComputeSettings(readers=2, reader_threads=2), deadline_s=20)
        yield RemoteReader(actors, patience_s=60)
    finally:
        ray.shutdown()


def make_request() -> WindowRequest:
    region = np.array([[0.3, -0.2, 0.1], [0.02, 0.1, 0.1], [0.2, 0.5, -0.5], [0.1, 0.0, 0.0]])
    return WindowRequest(1, np.array([2, 0, 1, 2]), region, out_px=64, margin_px=2)


def test_reader_actors_return_the_same_windows_as_a_local_reader_also_after_they_died(
    service: Service, readers: RemoteReader
) -> None:
    with RegionReader(num_threads=2) as local_reader:
        local, remote = local_reader.batch(SLIDES), readers.batch(SLIDES)
        assert remote.info == local.info
        np.testing.assert_array_equal(remote.side_px, local.side_px)
        expected, windows = local.fetch(make_request()), remote.fetch(make_request())
        for name in ("pixels", "place", "level"):
            np.testing.assert_array_equal(getattr(windows, name), getattr(expected, name))
        assert [c.windows for c in remote.counters] == [1, 1, 2]
        assert [c.bytes for c in remote.counters] == [c.bytes for c in local.counters]
        cost = ReadCounters()
        np.testing.assert_array_equal(readers.thumbnail(SLIDES[0], 100, cost), local_reader.thumbnail(SLIDES[0], 100))
        assert cost.requests > 0
    kill_readers(service.cluster)
    np.testing.assert_array_equal(remote.fetch(make_request()).pixels, expected.pixels)
    with pytest.raises(NotFoundError, match=r"slides/none\.tif"):
        readers.batch([SLIDES[0], f"s3://{BUCKET}/slides/none.tif"])


def test_a_slide_that_is_replaced_during_a_zoom_is_an_error(service: Service, readers: RemoteReader) -> None:
    first, second = (storage.read_bytes(uri) for uri in SLIDES[:2])
    uri = service.put("slides/replaced.tif", first)
    batch = readers.batch([uri])
    service.put("slides/replaced.tif", second)
    kill_readers(service.cluster)
    with pytest.raises(SlideChangedError, match=r"slides/replaced\.tif"):
        batch.fetch(WindowRequest(1, np.zeros(1, np.int64), np.array([[0.02, 0.1, 0.1]]), out_px=64, margin_px=2))


def kill_readers(cluster: Cluster) -> None:
    """Kill all reader actors."""
    processes = cluster.workers("ray::ReaderActor")
    assert processes
    for process in processes:
        process.kill()


@pytest.mark.long
def test_a_training_whose_reader_dies_has_the_metrics_of_one_that_reads_itself(
    service: Service, trained: Trained, config: Path, tmp_path: Path
) -> None:
    argv: list[str | Path] = ["ray_jobs/train.py", "--manifest", f"s3://{BUCKET}/manifest.csv", "--config", config]
    argv += ["--storage", tmp_path / "runs", "--set", "compute.readers=1"]
    with ray_cluster(service.node, tmp_path / "ray.log", num_cpus=3) as cluster:
        cluster.wait()
        with cluster.driver(*argv, log=tmp_path / "log") as command:
            command.wait_for("epoch 1/4")
            kill_readers(cluster)
            assert command.finish().status == 0, command.output
    assert "continuing from the checkpoint" not in command.output  # no worker was restarted
    with_readers, without = tmp_path / "runs", trained.storage
    for name in (*SAME, "train/step_loss", "train/bytes_per_slide"):
        histories = [
            [(point.step, point.value) for point in mlflow_client(folder).get_metric_history(run_id, name)]
            for folder, run_id in ((folder, the_run(folder).info.run_id) for folder in (with_readers, without))
        ]
        if name != "train/bytes_per_slide":  # a new reader has an empty cache and reads again
            assert histories[0] == histories[1], name
        assert all(value > 0 for _, value in histories[0] if name.endswith("bytes_per_slide"))


@pytest.mark.long
def test_rows_do_not_depend_on_which_process_reads(
    service: Service, trained: Trained, new_manifest: tuple[str, pd.DataFrame], tmp_path: Path
) -> None:
    """One scoring actor that reads itself, and one that receives windows from reader actors."""
    tables = []
    for readers in ("0", "1"):
        argv: list[str | Path] = [
            "ray_jobs/score.py",
            "--manifest",
            new_manifest[0],
            "--model",
            "models:/magnet@challenger",
        ]
        argv += ["--storage", trained.storage]
        argv += ["--out", tmp_path / readers, "--set", f"compute.readers={readers}"]
        command = service.run(*argv)
        assert command.status == 3, command.output  # two slides cannot be read
        tables.append(pq.read_table(tmp_path / readers / "scores.parquet"))
    for name in ("slide_id", *ROW):
        assert tables[0][name].equals(tables[1][name]), name
