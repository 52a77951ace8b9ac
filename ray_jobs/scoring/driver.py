"""A scoring job, from the slides to table and report."""

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

from ray_jobs.cluster import connection as cluster
from ray_jobs.cluster.reader_actors import start_readers
from ray_jobs.command_line.command import worker_environment
from ray_jobs.models import checkpoints, registry
from ray_jobs.scoring.scorer import ScoreBlock
from ray_jobs.tracking import mlflow_run
from service import environment, exit_status, storage
from service.cohort.manifest import Slide
from service.cohort.outlines import Outlines
from service.errors import UsageError
from service.progress.bar import ProgressBar
from service.results import scores
from service.results.localisation import measure_localisation
from service.results.patients import write_patients
from service.results.report import render_report
from service.results.summary import Summary, summarise
from service.settings.score import ScoreSettings

SLIDES_PER_PART = (8, 64)
"""Smallest and largest number of slides that are scored and published together: what a crash loses at most, per
actor. Zooms of different blocks never run at once: a GPU waits at both ends of a block, so blocks must not be short."""
PARTS = 64
"""Number of parts of a scoring, unless their size would leave the limits of `SLIDES_PER_PART`."""
SETTINGS_FILE, REPORT_FILE, LOCALISATION_FILE = "settings.json", "report.html", "localisation.json"
SLIDE = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in ("slide_id", "uri", "patient_id", "stratum")),
        ("label", pa.int64()),
    ]
)
"""Columns of a slide in Ray Data's blocks: those that the score table needs."""


def score(
    slides: list[Slide],
    model_name: str,
    settings: ScoreSettings,
    *,
    runs: str,
    out: str,
    outlines: Outlines | None = None,
) -> int:
    """Score slides on the cluster and write table and report.

    Args:
        slides: slides of the manifest.
        model_name: a name that `registry.resolve` takes.
        settings: settings of the scoring.
        runs: folder of the runs, which may hold the tracking store.
        out: folder of this scoring, a path or URI.
        outlines: outlines of the lesions, if they are known.

    Returns:
        The exit status: `DONE`, or `SLIDES_FAILED` if at least one slide failed.

    Raises:
        ModelNotFoundError: there is no such model.
        UsageError: `out` holds scores with another model or other settings.
        ClusterTooSmallError: the cluster lacks the requested resources.
    """
    uri = mlflow_run.tracking_uri(runs)
    # The model is copied next to the scores: workers on other nodes cannot read this machine's temporary folder.
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, version = registry.resolve(model_name, uri, Path(folder))
        model = checkpoints.publish(checkpoint, storage.join(out, "model"), name=model_name, version=version)
    _require_same_settings(settings, out)
    cluster.connect(worker_environment())
    why = f"{settings.compute.num_workers} scoring worker(s)"
    settings = replace(settings, compute=cluster.fit_to_cluster(settings.compute, extra_cpus=0, why=why))
    cluster.require_shared(out=out)
    started_s = time.monotonic()
    num_new = _score_missing(slides, model, settings, out)
    table = scores.join_parts(out, slides)
    write_patients(out, table)
    summary = summarise(table, num_new, time.monotonic() - started_s)
    lesions_found = None if outlines is None else measure_localisation(table, outlines)
    if lesions_found is not None:
        summary = replace(summary, localisation=lesions_found)
        storage.write_bytes(storage.join(out, LOCALISATION_FILE), lesions_found.to_json())
    storage.write_bytes(storage.join(out, REPORT_FILE), render_report(table, summary))
    _print_summary(summary, out)
    return exit_status.SLIDES_FAILED if summary.status_counts["failed"] else exit_status.DONE


def _require_same_settings(settings: ScoreSettings, out: str) -> None:
    """Store the settings in a new folder; refuse a folder with other settings, whose rows would not be comparable."""
    uri, deciding = storage.join(out, SETTINGS_FILE), settings.row_settings()
    if not storage.exists(uri):
        storage.write_bytes(uri, (json.dumps(deciding, indent=2) + "\n").encode())
    elif (stored := json.loads(storage.read_bytes(uri))) != deciding:
        names = ", ".join(sorted(name for name in deciding if stored.get(name) != deciding[name]))
        raise UsageError(f"this folder holds scores with other settings ({names}); name a new folder", uri=out)


def _score_missing(slides: list[Slide], model: checkpoints.NamedModel, settings: ScoreSettings, out: str) -> int:
    """Publish the rows of all slides that have none yet, and return their number."""
    done = set(scores.read_parts(out)["slide_id"].to_pylist())
    blocks = _make_blocks(slides, done)
    num_todo = sum(map(len, blocks))
    if done:
        print(f"{out}: {len(slides) - num_todo} of {len(slides)} slides are already done", flush=True)
    if not blocks:  # no actor needs to be started
        return 0
    # Ray Data's progress bars count blocks; the bar below counts slides.
    ray.data.DataContext.get_current().enable_progress_bars = False
    compute, count = settings.compute, Counter[str]()
    readers = start_readers(compute, environment.read_storage_deadline_s())
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
    with ProgressBar(total=num_todo, unit="slide", desc="scoring", mininterval=2) as bar:
        for result in results:
            count[result["status"]] += 1
            bar.set_postfix(refused=count["refused"], failed=count["failed"], refresh=False)
            bar.update()
            # A user should not have to wait for the table to learn why slides fail.
            if result["status"] != "scored":
                bar.write(f"{result['slide_id']} {result['status']}: {result['reason']}")
    return num_todo


def _make_blocks(slides: list[Slide], done: set[str]) -> list[pa.Table]:
    """Return the slides to score, in blocks that are published together.

    The blocks follow from the manifest and from what is done. So two drivers that do not know of each other, for
    example a new one and one that is about to die, publish the same parts under the same names.
    """
    columns = SLIDE.names
    smallest, largest = SLIDES_PER_PART
    size = min(max(len(slides) // PARTS, smallest), largest)
    blocks = []
    for start in range(0, len(slides), size):
        todo = [slide for slide in slides[start : start + size] if slide.slide_id not in done]
        if todo:
            rows = [{name: getattr(slide, name) for name in columns} for slide in todo]
            blocks.append(pa.Table.from_pylist(rows, schema=SLIDE))
    return blocks


def _print_summary(summary: Summary, out: str) -> None:
    for line in summary.to_lines():
        print(line)
    for line in result_lines(out, environment.read_service_job()):
        print(line, flush=True)


def result_lines(out: str, job: str | None) -> list[str]:
    """Return where the results are. A user of the service cannot open its folders, and gets commands instead.

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
