"""A scoring job from its checked manifest to the table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from magnet.metrics import auroc_by_stratum
from ray_jobs import checkpoints, cluster, command, registry, tracking
from ray_jobs.scorer import ScoreBlock
from service import scores, storage
from service.manifest import Slide
from service.settings import ComputeSettings

SLIDES_PER_PART = 8
"""Slides that are scored and published together: what a crash loses at most, per actor."""


def score(
    slides: list[Slide], model_name: str, compute: ComputeSettings, *, runs: str, out: str, pictures: bool
) -> int:
    """Score slides on the cluster and write the table; an exit status.

    Args:
        slides: of the manifest.
        model_name: as `registry.resolve` takes it.
        compute: where and with how much.
        runs: folder of the runs, where the embedded tracking store is.
        out: folder of this scoring, a path or URI.
        pictures: whether to draw them.
    """
    uri = tracking.tracking_uri(runs)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, version = registry.resolve(model_name, uri, Path(folder))
        model = checkpoints.publish(checkpoint, storage.join(out, "model"), name=model_name, version=version)
    cluster.connect(command.worker_environment())
    compute = cluster.fitted(compute, extra_cpus=0, why=f"{compute.num_workers} scoring worker(s)")
    cluster.require_shared(out=out)
    _score(slides, model, compute, out, pictures=pictures)
    table = scores.finish(out, slides)
    _tell(table, out)
    return command.EXIT_SLIDES_FAILED if pc.any(pc.equal(table["status"], "failed")).as_py() else 0


def _score(
    slides: list[Slide], model: checkpoints.NamedModel, compute: ComputeSettings, out: str, *, pictures: bool
) -> None:
    """Publish the rows of all slides that have none yet."""
    done = set(scores.read_parts(out)["slide_id"].to_pylist())
    todo = [slide for slide in slides if slide.slide_id not in done]
    if done:
        print(f"{out}: {len(slides) - len(todo)} of {len(slides)} slides are done already", flush=True)
    if not todo:
        return
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    blocks = -(-len(todo) // SLIDES_PER_PART)
    results = (
        ray.data.from_items([_plain(slide) for slide in todo], override_num_blocks=blocks)
        .map_batches(
            ScoreBlock,
            fn_constructor_args=(model, compute, out, pictures),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=compute.num_workers),
            num_cpus=compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker,
        )
        .iter_rows()
    )
    with tqdm(total=len(todo), unit="slide", desc="scoring", mininterval=2) as bar:
        for result in results:
            bar.update()
            if result["status"] == "failed":
                bar.write(f"{result['slide_id']} failed: {result['reason']}")


def _plain(slide: Slide) -> dict[str, Any]:
    """A slide as Ray Data's blocks hold it: what the score table wants of it."""
    return {name: getattr(slide, name) for name in ("row", "slide_id", "uri", "patient_id", "label", "stratum")}


def _tell(table: pa.Table, out: str) -> None:
    """The scoring in a few lines."""
    count = {s: pc.sum(pc.equal(table["status"], s)).as_py() or 0 for s in ("scored", "failed")}
    print(f"{len(table)} slides: {count['scored']} scored, {count['failed']} failed")
    good = table.filter(pc.equal(table["status"], "scored"))
    if not len(good):
        return
    read, size = np.array(good["bytes_read"], dtype=float), np.array(good["size_bytes"], dtype=float)
    print(
        f"per slide: {np.mean(good['num_regions']):.0f} regions, {np.mean(good['requests']):.0f} requests, "
        f"{read.mean() / 1e6:.2f} MB read of {size.mean() / 1e6:.2f} MB ({read.sum() / size.sum():.1%})"
    )
    labelled = good.filter(pc.is_valid(good["label"]))
    labels = np.array(labelled["label"].to_pylist())
    if 0 < labels.sum() < len(labels):
        strata = [stratum or "" for stratum in labelled["stratum"].to_pylist()]
        for name, found in auroc_by_stratum(labels, np.array(labelled["probability"]), strata).items():
            print(f"AUROC {name}: {found.auroc:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}")
    print(f"table: {out}/scores.parquet and scores.csv; pictures: {out}/pictures/", flush=True)
