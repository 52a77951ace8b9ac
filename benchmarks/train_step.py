"""The cost of the training service: the same steps with Ray and in a bare loop, with fast and slow storage.

    python benchmarks/train_step.py [--num-slides 32] [--ms-per-slide 60] [--latency-ms 0 30] [--workers 1 2] [--json]

An object store on this machine serves generated slides and delays each answer by `--latency-ms`. A sleep stands for the
GPU: the network is tiny, and at the end of each zoom it sleeps `--ms-per-slide` for each of its slides, which leaves
the CPU idle as a GPU of that speed would. Order, learner and reader are the same in both; with Ray there are also the
stream of Ray Data, Ray Train, MLflow (SQLite) and checkpoints. Only the steps of the last epoch are timed, without
imports, headers and empty caches.

`ratio_ray_to_bare` is slides/s with Ray, per worker, divided by slides/s of the bare loop; `wait_share` is the share of
the time of steps in which a worker waited for pixels. Targets: 0.95 and 0.05 at 30 ms and 60 ms per slide. Two workers,
the reads of Ray Data and the store share the cores of this machine; with fewer cores than processes they disturb each
other, and the ratio is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from magnet.windows import WindowRequest, Windows
from magnet.zoom import MagNet, ZoomOptions, ZoomResult
from ray_jobs.cluster import connection as cluster
from ray_jobs.cluster.processes import free_port, run_process
from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.tracking import mlflow_run
from ray_jobs.training import bare_loop
from ray_jobs.training.driver import run_workers
from ray_jobs.training.task import Task
from ray_jobs.training.worker import run_worker
from service import storage
from service.cohort.manifest import Manifest, load_manifest
from service.settings.train import TrainSettings, read_train_settings
from service.slides.reader import RegionReader
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

SETTINGS = [
    "model.zoom={schedule: [3, 2], map_px: 28, view_px: 56, patch_px: 64}",
    "model.classifier.encoder=test_resnet",
    "compute.checkpoint_minutes=1e6",
]


@dataclass(frozen=True)
class Case:
    """What the compared runs have in common."""

    settings: TrainSettings
    manifest: Manifest
    ms_per_slide: float
    """Milliseconds that the simulated GPU computes a slide."""


def make_paced_network(ms_per_slide: float) -> type[MagNet]:
    """Return a network class that takes as long as on a GPU of that speed."""

    class Paced(MagNet):
        """Sleeps at the end of each zoom, while other zooms read."""

        def zoom(
            self, side_px_B: NDArray[np.float64], options: ZoomOptions | None = None
        ) -> Generator[WindowRequest, Windows, ZoomResult]:
            """See `MagNet.zoom`."""
            zoomed = yield from super().zoom(side_px_B, options)
            time.sleep(len(side_px_B) * ms_per_slide / 1e3)
            return zoomed

    return Paced


def measure_bare(case: Case) -> float:
    """Return slides/s of the bare loop in the last epoch."""
    settings = case.settings
    steps_per_epoch = len(case.manifest.slides) // settings.recipe.batch
    ends: list[float] = []
    torch.manual_seed(0)
    with RegionReader(settings.compute.tile_cache_mb << 20, settings.compute.reader_threads) as reader:
        bare_loop.train_bare(
            make_paced_network(case.ms_per_slide)(settings.model, to_be_loaded=True),
            settings.recipe,
            case.manifest.slides,
            reader,
            steps_per_epoch * settings.recipe.epochs,
            lambda step, sums: ends.append(time.perf_counter()),
        )
    return steps_per_epoch * settings.recipe.batch / (ends[-1] - ends[-1 - steps_per_epoch])


def measure_ray(case: Case, num_workers: int, folder: Path) -> dict[str, float]:
    """Return the metrics of the last epoch of a training job."""
    settings = replace(
        case.settings, compute=replace(case.settings.compute, num_workers=num_workers, gpus_per_worker=0)
    )
    uri, name = mlflow_run.tracking_uri(str(folder)), "run"
    run_id, _ = mlflow_run.start_run(uri, experiment="benchmark", name=name, storage=str(folder))
    job = storage.join(str(folder), name)
    task = Task(settings, case.manifest.slides, (), uri, run_id, job)
    # without the checks and the model registry of a whole job, which are no part of a step
    run_workers(task, name, str(folder), partial(run_worker, network=make_paced_network(case.ms_per_slide)))
    store = CheckpointStore(job)
    last = store.list_published()[-1]
    with tempfile.TemporaryDirectory() as place:
        store.fetch(last, Path(place), [checkpoints.SETTINGS_FILE])
        return checkpoints.read_info(Path(place)).metrics


@contextmanager
def object_store(folder: Path, latency_ms: float) -> Iterator[str]:
    """Run an object store over a folder in a separate process; yield the URI of the folder."""
    port = free_port()
    argv = ["python", "-m", "service.testing.fake_store", str(folder)]
    argv += ["--port", str(port), "--latency-ms", str(latency_ms)]
    with run_process(argv, log=None):
        time.sleep(2)  # until it listens
        yield f"http://127.0.0.1:{port}/bucket"


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure all cases."""
    make_cohort(folder / "cohort", CohortSettings(num_slides=args.num_slides, side_px=args.side_px, seed=1))
    batch = f"recipe={{epochs: {args.epochs}, batch: {args.batch}, micro_batch: {args.micro_batch}, seed: 1}}"
    settings = read_train_settings(None, [*SETTINGS, batch])
    cases = []
    for latency_ms in args.latency_ms:
        with object_store(folder / "cohort", latency_ms) as uri:
            manifest = load_manifest(f"{uri}/manifest.csv", need_labels=True)
            case = Case(settings, manifest, args.ms_per_slide)
            bare_rate = measure_bare(case)
            for workers in args.workers:
                metrics = measure_ray(case, workers, Path(tempfile.mkdtemp(dir=folder)))
                cases.append(
                    {
                        "latency_ms": latency_ms,
                        "workers": workers,
                        "bare_slides_per_s": round(bare_rate, 3),
                        "ray_slides_per_s": round(metrics["train/slides_per_s"], 3),
                        "ratio_ray_to_bare": round(metrics["train/slides_per_s"] / bare_rate / workers, 3),
                        "wait_share": round(metrics["train/wait_share"], 3),
                    }
                )
                if not args.json:
                    print(cases[-1], flush=True)
    return cases


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-slides", type=int, default=32)
    parser.add_argument("--side-px", type=int, default=8192, help="side of the slides")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--ms-per-slide", type=float, default=60.0, help="computing time of the simulated GPU")
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0.0, 30.0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Maybe more CPUs than there are: the workers sleep most of the time, and the reads of Ray Data need one too.
    ray.init(
        address="local",
        num_cpus=max(args.workers) + 1,
        include_dashboard=False,
        object_store_memory=cluster.LOCAL_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        cases = measure(args, Path(folder))
    if args.json:
        print(json.dumps({"cores": os.cpu_count(), "ms_per_slide": args.ms_per_slide, "cases": cases}))


if __name__ == "__main__":
    main()
