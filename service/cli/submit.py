"""Commands that submit jobs: submit, check, watch, schedule. They check settings before they send them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from service.cli import connect
from service.cli.jobs import follow_job
from service.client import Client
from service.client.connection import is_loopback
from service.errors import UsageError
from service.queue.arrivals import Schedule, Watch
from service.queue.requests import Check, Score, Train, Tune, read_places
from service.settings.parsing import parse
from service.settings.score import read_score_settings
from service.settings.train import read_train_settings
from service.settings.tune import read_search_settings


def submit(options: argparse.Namespace) -> int:
    """Submit a job, and follow it with --wait."""
    # Invalid settings are an error before the service is called.
    request = build_request(options)
    with connect.open_client() as client:
        _require_places(client, read_places(request), options)
        job = client.submit(request, priority=options.priority, max_attempts=options.max_attempts, key=options.key)
        # The ID alone, for scripts; the log follows on the next lines.
        print(job.id, flush=True)
        return follow_job(client, job.id) if options.wait else 0


def check(options: argparse.Namespace) -> int:
    """Submit a check, and follow it."""
    request = Check(manifest=_make_absolute(options.manifest), need_labels=options.need_labels)
    with connect.open_client() as client:
        _require_places(client, [request.manifest], options)
        return follow_job(client, client.submit(request).id)


def watch(options: argparse.Namespace) -> int:
    """Watch a folder for new slides."""
    values = {
        "folder": _make_absolute(options.folder),
        "model": _resolve_model(options.model),
        "settle_s": options.settle_s,
    }
    entry = parse(Watch, values, "the command line")
    with connect.open_client() as client:
        _require_places(client, [entry.folder], options)
        print(client.add_recurring(entry).id)
    return 0


def schedule(options: argparse.Namespace) -> int:
    """Submit a job on a schedule."""
    entry = parse(Schedule, {"cron": options.cron, "job": build_request(options)}, "the command line")
    with connect.open_client() as client:
        _require_places(client, read_places(entry.job), options)
        print(client.add_recurring(entry).id)
    return 0


def build_request(options: argparse.Namespace) -> Check | Train | Tune | Score:
    """Return the job that the options describe, with checked settings.

    Raises:
        UsageError: a setting is invalid, or a scoring has no model.
    """
    manifest = _make_absolute(options.manifest)
    if options.kind == "check":
        return Check(manifest=manifest, need_labels=options.need_labels)
    if options.kind == "score":
        if not options.model:
            raise UsageError("a scoring needs --model, such as --model models:/magnet@champion")
        out, outlines = (None if place is None else _make_absolute(place) for place in (options.out, options.outlines))
        return Score(
            manifest=manifest,
            model=_resolve_model(options.model),
            out=out,
            outlines=outlines,
            split=options.split,
            settings=read_score_settings(options.config, options.set),
        )
    training = read_train_settings(options.config, options.set)
    if options.kind == "tune":
        trials = [] if options.trials is None else [f"trials={options.trials}"]
        search = read_search_settings(options.search, [*options.search_set, *trials])
        return Tune(manifest=manifest, search=search, settings=training)
    return Train(manifest=manifest, settings=training)


def _make_absolute(place: str) -> str:
    """Return a path as an absolute one, since the service has another working folder; URIs stay as they are."""
    if "://" in place:
        return place
    # The final slash says that a manifest is a folder, and `resolve` removes it.
    return str(Path(place).expanduser().resolve()) + ("/" if place.endswith("/") else "")


def _resolve_model(name: str) -> str:
    """Return the name of a registered model unchanged, and the path of a folder as an absolute one."""
    return name if name.startswith(("models:", "runs:")) else _make_absolute(name)


def _require_places(client: Client, places: list[str], options: argparse.Namespace) -> None:
    """Refuse local paths that do not exist, if the service runs on this machine.

    Raises:
        UsageError: a path does not exist.
    """
    if options.no_path_check or not is_loopback(client.url):
        return
    for place in places:
        if "://" not in place and not _may_exist(place):
            raise UsageError(
                f"{place}: no such file or folder; check the path. If the service runs in a container or behind a "
                "tunnel and has the path, add --no-path-check"
            )


def _may_exist(path: str) -> bool:
    """Return whether a path exists, or is in a folder that only the service may read."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
