"""The command line of the service.

    magnet serve                                     everything on this machine: API, dispatcher, Ray, MLflow
    magnet submit train --manifest s3://lab/cohort.csv --set recipe.epochs=5
    magnet jobs                                      what runs and what has ended
    magnet logs -f JOB

`magnet COMMAND -h` tells more. MAGNET_URL and MAGNET_TOKEN name the service; without them it is the one that
`magnet serve` started here. Exit status: 0 done, 1 failed or not possible, 2 wrong input.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from service import doctor, exit_status, job_table, storage
from service.backup import backup, restore
from service.client import Client, ServiceError
from service.environment import client_settings
from service.errors import MagnetError, UsageError
from service.queue.arrivals import Watch
from service.queue.requests import KINDS, Check, Score, Train, Tune
from service.score_settings import ScoreSettings, score_settings
from service.service_settings import service_settings
from service.serving import admin_token, dispatch, serve_api
from service.settings import TrainSettings, train_settings
from service.tune_settings import search_settings


def main() -> None:
    """The entry point: run the command line to its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # of `magnet logs JOB | head`
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status."""
    if arguments and arguments[0] in FORWARDED:
        return _forward(arguments[0], arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (UsageError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_status.USAGE if isinstance(error, UsageError) or error.status in (400, 422) else exit_status.FAILED
    except MagnetError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the job goes on: magnet jobs", file=sys.stderr)
        return exit_status.INTERRUPTED
    return exit_status.FAILED


FORWARDED = {"serve": "ray_jobs.serve", "plan": "ray_jobs.plan"}
"""Commands that need Ray or torch: processes of their own."""


def _forward(name: str, arguments: Sequence[str]) -> int:
    module = FORWARDED[name]
    if importlib.util.find_spec(module) is None:
        print(f"error: this installation has no {module}", file=sys.stderr)
        return exit_status.USAGE
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def _client() -> Client:
    known = client_settings()
    return Client(known.url, known.token)


def _submit(options: argparse.Namespace) -> int:
    with _client() as client:
        job = client.submit(
            _request(options), priority=options.priority, max_attempts=options.max_attempts, key=options.key
        )
        print(job.id, flush=True)
        return _follow(client, job.id) if options.wait else 0


def _request(options: argparse.Namespace) -> Check | Train | Tune | Score:
    """The job that is asked for, its settings checked here already."""
    manifest = _absolute(options.manifest)
    if options.kind == "check":
        return Check(manifest=manifest, need_labels=options.need_labels)
    if options.kind == "score":
        if not options.model:
            raise UsageError("--model is wanted for a scoring, such as models:/magnet@champion")
        out, outlines = (None if place is None else _absolute(place) for place in (options.out, options.outlines))
        scoring: ScoreSettings = score_settings(options.config, options.set)
        return Score(
            manifest=manifest, model=options.model, out=out, outlines=outlines, split=options.split, settings=scoring
        )
    training: TrainSettings = train_settings(options.config, options.set)
    if options.kind == "tune":
        trials = [] if options.trials is None else [f"trials={options.trials}"]
        search = search_settings(options.search, [*options.search_set, *trials])
        return Tune(manifest=manifest, search=search, settings=training)
    return Train(manifest=manifest, settings=training)


def _absolute(place: str) -> str:
    """A path made absolute, a folder's slash kept: the service has another working folder."""
    if "://" in place:
        return place
    return str(Path(place).expanduser().resolve()) + ("/" if place.endswith("/") else "")


def _check(options: argparse.Namespace) -> int:
    with _client() as client:
        job = client.submit(Check(manifest=_absolute(options.manifest), need_labels=options.need_labels))
        return _follow(client, job.id)


def _follow(client: Client, job_id: str) -> int:
    """Print a job's log until it has ended; 0 if it is done."""
    for text in client.logs(job_id, follow=True):
        print(text, end="", flush=True)
    job = client.wait(job_id)
    print(f"{job.id}: {job.state}{f', {job.reason}' if job.reason else ''}", flush=True)
    return 0 if job.state == "done" else exit_status.FAILED


def _jobs(options: argparse.Namespace) -> int:
    with _client() as client:
        page = client.jobs(state=options.state, kind=options.kind, before=options.before, limit=options.limit)
    print(page.model_dump_json(indent=2) if options.json else job_table.table(page.jobs))
    if page.next is not None and not options.json:
        print(f"older ones: magnet jobs --before {page.next}")
    return 0


def _show(options: argparse.Namespace) -> int:
    with _client() as client:
        job = client.job(options.job)
    print(job.model_dump_json(indent=2) if options.json else job_table.details(job))
    return 0


def _logs(options: argparse.Namespace) -> int:
    with _client() as client:
        for text in client.logs(options.job, attempt=options.attempt, follow=options.follow):
            print(text, end="", flush=True)
    return 0


def _cancel(options: argparse.Namespace) -> int:
    with _client() as client:
        for job_id in options.job:
            job = client.cancel(job_id)
            print(f"{job.id}: {job.state}")
    return 0


def _retry(options: argparse.Namespace) -> int:
    with _client() as client:
        print(f"{options.job}: {client.retry(options.job).state}")
    return 0


def _priority(options: argparse.Namespace) -> int:
    with _client() as client:
        print(f"{options.job}: priority {client.prioritise(options.job, options.priority).priority}")
    return 0


def _scores(options: argparse.Namespace) -> int:
    with _client() as client:
        _write(client.scores(options.job, options.format), options.output)
    return 0


def _picture(options: argparse.Namespace) -> int:
    suffix = "geojson" if options.what == "geojson" else "jpg"
    output = options.output or f"{options.slide}-{options.what}.{suffix}"
    with _client() as client:
        _write(client.slide(options.job, options.slide, options.what), output)
    print(output)
    return 0


def _write(data: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        storage.write_bytes(output, data)


def _watch(options: argparse.Namespace) -> int:
    asked = Watch(folder=_absolute(options.folder), model=options.model, settle_s=options.settle_s)
    with _client() as client:
        print(client.add_recurring(asked).id)
    return 0


def _watches(_: argparse.Namespace) -> int:
    with _client() as client:
        for one in client.recurring():
            print(f"{one.id}  {one.owner}  {one.body.get('folder') or one.body.get('cron')}  {one.note or 'not yet'}")
    return 0


def _unwatch(options: argparse.Namespace) -> int:
    with _client() as client:
        client.remove_recurring(options.id)
    return 0


def _token(options: argparse.Namespace) -> int:
    """Make a token: over the API, or where there is none yet, in the database."""
    if options.config or options.set:
        if options.scope != "admin":
            raise UsageError("--config makes the first token, which is an admin's; ask the service for others")
        print(admin_token(service_settings(options.config, options.set), options.owner))
        return 0
    with _client() as client:
        print(client.new_token(options.owner, options.scope, options.days).secret)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    found = doctor.findings(service_settings(options.config, options.set))
    for finding in found:
        print(finding.line())
    wrong = [finding.what for finding in found if not finding.well]
    print(f"to be mended: {', '.join(wrong)}" if wrong else "all is well")
    return exit_status.FAILED if wrong else 0


def _api(options: argparse.Namespace) -> int:
    serve_api(service_settings(options.config, options.set))
    return 0


def _dispatch(options: argparse.Namespace) -> int:
    dispatch(service_settings(options.config, options.set))
    return 0


def _backup(options: argparse.Namespace) -> int:
    manifest = backup(service_settings(options.config, options.set), Path(options.file))
    print(f"{options.file}: {', '.join(manifest['members'])}; {manifest['rows']['jobs']} jobs")
    return 0


def _restore(options: argparse.Namespace) -> int:
    replaced = restore(service_settings(options.config, options.set), Path(options.file))
    print("restored; start the service" + (f". What it replaced: {replaced}" if replaced else ""))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, does: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=what, description=what)
        own.set_defaults(command=does)
        return own

    _add_submit(command("submit", _submit, "submit a job"))
    own = command("check", _check, "check a manifest and open each of its slides")
    own.add_argument("manifest")
    own.add_argument("--need-labels", action="store_true", help="as a training does")
    own = command("jobs", _jobs, "list jobs, newest first")
    own.add_argument("--state", choices=("queued", "starting", "running", "done", "failed", "cancelled"))
    own.add_argument("--kind", choices=KINDS)
    own.add_argument("--before", type=int, help="older ones: as the list told")
    own.add_argument("--limit", type=int, default=50)
    own.add_argument("--json", action="store_true")
    own = command("show", _show, "show a job: state, progress, attempts, links")
    own.add_argument("job")
    own.add_argument("--json", action="store_true")
    own = command("logs", _logs, "print what a job printed")
    own.add_argument("job")
    own.add_argument("-f", "--follow", action="store_true", help="until it has ended")
    own.add_argument("--attempt", type=int, help="default: the newest")
    command("cancel", _cancel, "cancel jobs").add_argument("job", nargs="+")
    command("retry", _retry, "queue a failed or cancelled job again; it goes on where it stopped").add_argument("job")
    own = command("priority", _priority, "change a waiting job's priority")
    own.add_argument("job")
    own.add_argument("priority", type=int, help="-10 to 10, higher is earlier among your jobs")
    own = command("scores", _scores, "fetch a scoring's table")
    own.add_argument("job")
    own.add_argument("--format", choices=("csv", "parquet", "json"), default="csv")
    own.add_argument("-o", "--output", help="default: standard output")
    own = command("picture", _picture, "fetch a slide's picture or GeoJSON")
    own.add_argument("job")
    own.add_argument("slide")
    own.add_argument("--what", choices=("picture", "overlay", "geojson"), default="picture")
    own.add_argument("-o", "--output", help="default: SLIDE-WHAT.jpg here")
    own = command("watch", _watch, "score the slides that arrive in a folder")
    own.add_argument("folder")
    own.add_argument("--model", default="models:/magnet@champion")
    own.add_argument("--settle-s", type=float, default=60.0, help="seconds that a slide must have stayed as it is")
    command("watches", _watches, "list watches and schedules")
    command("unwatch", _unwatch, "end a watch or schedule").add_argument("id")
    own = _with_config(command("token", _token, "make a token"))
    own.add_argument("owner")
    own.add_argument("--scope", choices=("read", "submit", "admin"), default="submit")
    own.add_argument("--days", type=float, help="until it expires (default: never)")
    _with_config(command("doctor", _doctor, "look whether all is well, and say how to mend what is not"))
    own = _with_config(command("backup", _backup, "write queue, MLflow's file, secrets and settings into an archive"))
    own.add_argument("file", help="archive to write, such as magnet.tar")
    own = _with_config(command("restore", _restore, "replace a stopped service's state by an archive's"))
    own.add_argument("file", help="archive that `magnet backup` wrote")
    _with_config(command("api", _api, "serve the HTTP API"))
    _with_config(command("dispatch", _dispatch, "run the jobs of the queue"))
    commands.add_parser("serve", help="everything on this machine: API, dispatcher, Ray, MLflow")
    commands.add_parser("plan", help="what a schedule costs, before it is run")
    return parser


def _with_config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", help="YAML file with the service's settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any of them")
    return parser


def _add_submit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kind", choices=KINDS)
    add("--manifest", required=True, help="CSV or Parquet, or for check and score a folder; a path or URI")
    add("--config", help="YAML file of settings, as of train.py and score.py; read here")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. recipe.epochs=5")
    add("--model", help="of a scoring: models:/NAME@ALIAS, ...")
    add("--out", help="of a scoring: folder of the results (default: one in the service's storage)")
    add("--outlines", help="of a scoring: lesions, if they are known")
    add("--split", choices=("train", "val", "test"), help="of a scoring: only these slides")
    add("--trials", type=int, help="of a search: how many trainings")
    add("--search", metavar="FILE", help="of a search: YAML file, as of tune.py; read here")
    add("--search-set", action="append", default=[], metavar="KEY=VALUE", help="of a search: any of its settings")
    add("--need-labels", action="store_true", help="of a check: as a training does")
    add("--priority", type=int, default=0, help="-10 to 10, higher is earlier among your jobs")
    add("--max-attempts", type=int, default=5)
    add("--key", help="idempotency key: the same again makes no second job")
    add("--wait", action="store_true", help="print its log until it has ended; the exit status tells how")
