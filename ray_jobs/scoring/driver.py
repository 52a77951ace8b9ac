"""A scoring job from its checked manifest to table and report."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from ray_jobs.cluster import connection as cluster
from ray_jobs.cluster.reader_actors import started_readers
from ray_jobs.command_line import command
from ray_jobs.models import checkpoints, registry
from ray_jobs.scoring.scorer import ScoreBlock
from ray_jobs.tracking import mlflow_run
from service import environment, exit_status, storage
from service.cohort.manifest import Slide
from service.cohort.outlines import Outlines
from service.errors import UsageError
from service.results import scores
from service.results.localisation import localisation
from service.results.patients import write_patients
from service.results.report import render_report
from service.results.summary import Summary, summarise
from service.settings.score import ScoreSettings

SLIDES_PER_PART = (8, 64)
"""Slides that are scored and published together, in a small and in a large manifest: what a crash loses at most, per
actor. Zooms in flight do not cross from one block to the next, so that short ones keep a GPU waiting at both ends."""
PARTS = 64
"""Parts that a manifest has before they grow."""
SETTINGS_FILE, REPORT_FILE, LOCALISATION_FILE = "settings.json", "report.html", "localisation.json"
SLIDE = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in ("slide_id", "uri", "patient_id", "stratum")),
        ("label", pa.int64()),
    ]
)
"""A slide as Ray Data's blocks hold it: what the score table wants of it."""


def score(
    slides: list[Slide],
    model_name: str,
    settings: ScoreSettings,
    *,
    runs: str,
    out: str,
    outlines: Outlines | None = None,
) -> int:
    """Score slides on the cluster and write table and report; an exit status.

    Args:
        slides: of the manifest.
        model_name: as `registry.resolve` takes it.
        settings: of the scoring.
        runs: folder of the runs, where the embedded tracking store is.
        out: folder of this scoring, a path or URI.
        outlines: of the lesions, if they are known.
    """
    uri = mlflow_run.tracking_uri(runs)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, version = registry.resolve(model_name, uri, Path(folder))
        model = checkpoints.publish(checkpoint, storage.join(out, "model"), name=model_name, version=version)
    _keep_settings(settings, out)
    cluster.connect(command.worker_environment())
    why = f"{settings.compute.num_workers} scoring worker(s)"
    settings = replace(settings, compute=cluster.fitted(settings.compute, extra_cpus=0, why=why))
    cluster.require_shared(out=out)
    began = time.monotonic()
    num_new = _score(slides, model, settings, out)
    table = scores.finish(out, slides)
    write_patients(out, table)
    summary = summarise(table, num_new, time.monotonic() - began)
    judged = None if outlines is None else localisation(table, outlines)
    if judged is not None:
        summary = replace(summary, localisation=judged)
        storage.write_bytes(storage.join(out, LOCALISATION_FILE), judged.to_json())
    storage.write_bytes(storage.join(out, REPORT_FILE), render_report(table, summary))
    _tell(summary, out)
    return exit_status.SLIDES_FAILED if summary.status_counts["failed"] else exit_status.DONE


def _keep_settings(settings: ScoreSettings, out: str) -> None:
    """A folder of scores holds rows of one kind."""
    uri, own = storage.join(out, SETTINGS_FILE), settings.deciding()
    if not storage.exists(uri):
        storage.write_bytes(uri, (json.dumps(own, indent=2) + "\n").encode())
    elif (kept := json.loads(storage.read_bytes(uri))) != own:
        differs = ", ".join(sorted(name for name in own if kept.get(name) != own[name]))
        raise UsageError(f"holds scores with other settings ({differs}); take a new folder", uri=out)


def _score(slides: list[Slide], model: checkpoints.NamedModel, settings: ScoreSettings, out: str) -> int:
    """Publish the rows of all slides that have none yet; how many these are."""
    done = set(scores.read_parts(out)["slide_id"].to_pylist())
    blocks = _blocks(slides, done)
    num_todo = sum(map(len, blocks))
    if done:
        print(f"{out}: {len(slides) - num_todo} of {len(slides)} slides are done already", flush=True)
    if not blocks:
        return 0
    ray.data.DataContext.get_current().enable_progress_bars = False
    compute, count = settings.compute, Counter[str]()
    readers = started_readers(compute, environment.storage_deadline_s())
    results = (
        ray.data.from_arrow(blocks)
        .map_batches(
            ScoreBlock,
            fn_constructor_args=(model, settings, out, readers),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=compute.num_workers),
            num_cpus=compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker,
        )
        .iter_rows()
    )
    with tqdm(total=num_todo, unit="slide", desc="scoring", mininterval=2) as bar:
        for result in results:
            count[result["status"]] += 1
            bar.set_postfix(refused=count["refused"], failed=count["failed"], refresh=False)
            bar.update()
            if result["status"] != "scored":
                bar.write(f"{result['slide_id']} {result['status']}: {result['reason']}")
    return num_todo


def _blocks(slides: list[Slide], done: set[str]) -> list[pa.Table]:
    """What is to be scored together. A function of the manifest and of what is done, so that two drivers that do not
    know of each other, one of them dying, publish the same parts under the same names."""
    columns = SLIDE.names
    fewest, most = SLIDES_PER_PART
    size = min(max(len(slides) // PARTS, fewest), most)
    blocks = []
    for start in range(0, len(slides), size):
        todo = [slide for slide in slides[start : start + size] if slide.slide_id not in done]
        if todo:
            rows = [{name: getattr(slide, name) for name in columns} for slide in todo]
            blocks.append(pa.Table.from_pylist(rows, schema=SLIDE))
    return blocks


def _tell(summary: Summary, out: str) -> None:
    """The scoring in a few lines."""
    for line in summary.to_lines():
        print(line)
    for line in result_lines(out, environment.service_job()):
        print(line, flush=True)


def result_lines(out: str, job: str | None) -> list[str]:
    """Where the results are: a user of the service cannot open its folders, and fetches them.

    Args:
        out: folder of the results.
        job: id of the service's job; None: the scoring was started by hand.
    """
    if job is None:
        table = f"table: {out}/scores.parquet, scores.csv, patients.csv; pictures: {out}/pictures/"
        return [table, f"report: {out}/{REPORT_FILE}"]
    return [
        f"table: magnet scores {job} > scores.csv; pictures: magnet picture {job} SLIDE_ID",
        f"report: magnet report {job}",
    ]
