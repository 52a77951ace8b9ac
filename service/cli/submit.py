"""Commands that send settings: submit, check, watch, schedule. Settings are checked on this machine first."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from service.cli import connect
from service.cli.jobs import follow_job
from service.client.client import Client
from service.client.connection import is_loopback
from service.errors import UsageError
from service.queue.arrivals import Schedule, Watch
from service.queue.requests import Check, Score, Train, Tune, read_places
from service.settings.parsing import parse
from service.settings.score import score_settings
from service.settings.train import train_settings
from service.settings.tune import search_settings


def submit(options: argparse.Namespace) -> int:
    """Submit a job, and follow it if that is asked for."""
    request = request_of(options)
    with connect.open_client() as client:
        _require_places(client, read_places(request), options)
        job = client.submit(request, priority=options.priority, max_attempts=options.max_attempts, key=options.key)
        print(job.id, flush=True)
        return follow_job(client, job.id) if options.wait else 0


def check(options: argparse.Namespace) -> int:
    """Submit a check and follow it."""
    request = Check(manifest=_absolute(options.manifest), need_labels=options.need_labels)
    with connect.open_client() as client:
        _require_places(client, [request.manifest], options)
        return follow_job(client, client.submit(request).id)


def watch(options: argparse.Namespace) -> int:
    """Watch a folder."""
    values = {"folder": _absolute(options.folder), "model": _model(options.model), "settle_s": options.settle_s}
    asked = parse(Watch, values, "the command line")
    with connect.open_client() as client:
        _require_places(client, [asked.folder], options)
        print(client.add_recurring(asked).id)
    return 0


def schedule(options: argparse.Namespace) -> int:
    """Submit a job again and again."""
    asked = parse(Schedule, {"cron": options.cron, "job": request_of(options)}, "the command line")
    with connect.open_client() as client:
        _require_places(client, read_places(asked.job), options)
        print(client.add_recurring(asked).id)
    return 0


def request_of(options: argparse.Namespace) -> Check | Train | Tune | Score:
    """The job that the options describe, with checked settings.

    Raises:
        UsageError: the settings are wrong, or a scoring has no model.
    """
    manifest = _absolute(options.manifest)
    if options.kind == "check":
        return Check(manifest=manifest, need_labels=options.need_labels)
    if options.kind == "score":
        if not options.model:
            raise UsageError("a scoring needs --model, such as --model models:/magnet@champion")
        out, outlines = (None if place is None else _absolute(place) for place in (options.out, options.outlines))
        return Score(
            manifest=manifest,
            model=_model(options.model),
            out=out,
            outlines=outlines,
            split=options.split,
            settings=score_settings(options.config, options.set),
        )
    training = train_settings(options.config, options.set)
    if options.kind == "tune":
        trials = [] if options.trials is None else [f"trials={options.trials}"]
        search = search_settings(options.search, [*options.search_set, *trials])
        return Tune(manifest=manifest, search=search, settings=training)
    return Train(manifest=manifest, settings=training)


def _absolute(place: str) -> str:
    """A path made absolute, since the service has another working folder; a folder's final slash is kept."""
    if "://" in place:
        return place
    return str(Path(place).expanduser().resolve()) + ("/" if place.endswith("/") else "")


def _model(name: str) -> str:
    """A model's name as it is; a folder's path made absolute."""
    return name if name.startswith(("models:", "runs:")) else _absolute(name)


def _require_places(client: Client, places: list[str], options: argparse.Namespace) -> None:
    """Refuse local paths that do not exist, where the service sees the same disks.

    Raises:
        UsageError: naming the path.
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
    """Whether a path exists, or lies where only the service may look."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
