"""Commands and options of `magnet`. Each command names the function that runs it, as MODULE:FUNCTION in service.cli."""

from __future__ import annotations

import argparse
from typing import Literal

from service.queue.kinds import KINDS

DESCRIPTION = """Train Magnifying Networks and score slides on a service.

MAGNET_URL and MAGNET_TOKEN name the service and the token. Without them, `magnet login`, or `magnet serve` on this
machine, have stored both in ~/.config/magnet/client.json."""

EPILOG = """examples:
  magnet serve                                   run the whole service on this machine
  magnet submit train --manifest s3://lab/cohort.csv --set recipe.epochs=5
  magnet jobs                                    list jobs
  magnet logs -f last                            follow the log of the newest job
  magnet scores 3f2a > scores.csv                jobs may be abbreviated

JOB is a job's id, or 4 or more characters that only this job's id begins or ends with, or `last` or `-` for your
newest job.

exit status:
  0    done
  1    failed, or the service did not answer
  2    wrong input: options, settings, manifest, or an unknown job
  3    a scoring is done, but some slides failed
  4    the job stopped at a point that a repetition would reach again
  130  the job was cancelled, or the command was interrupted

The command's help has its options: magnet COMMAND -h"""


FIRST_TOKEN = """The first token is written into the database, by the service's settings:
  magnet token ada --scope admin --config FILE"""


class Commands:
    """The parsers of the commands."""

    def __init__(self, root: argparse.ArgumentParser) -> None:
        self._parsers = root.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, runs: str, what: str, example: str = "") -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: as it is typed.
            runs: MODULE:FUNCTION below `service.cli`; empty for a forwarded command.
            what: help in one line.
            example: of its use.
        """
        own = self._parsers.add_parser(
            name,
            help=what,
            description=what[:1].upper() + what[1:] + ".",
            epilog=f"example:\n  {example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(runs=runs)
        return own


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="magnet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(root)
    _add_submitting(commands)
    _add_jobs(commands)
    _add_results(commands)
    _add_recurring(commands)
    _add_tokens(commands)
    _add_operating(commands)
    return root


def _add_submitting(commands: Commands) -> None:
    own = commands.add(
        "submit",
        "submit:submit",
        "submit a job",
        "magnet submit score --manifest s3://lab/new/ --model models:/magnet@champion --wait",
    )
    _add_job_options(own)
    own.add_argument("--priority", type=int, default=0, help="-10 to 10, higher is earlier among your jobs")
    own.add_argument("--max-attempts", type=int, default=5, help="attempts of a job that keeps failing (default: 5)")
    own.add_argument("--key", help="idempotency key: a second submission with the same key makes no second job")
    own.add_argument("--wait", action="store_true", help="follow its log; the exit status is the job's")
    own = commands.add(
        "check", "submit:check", "check a manifest and open each of its slides", "magnet check s3://lab/cohort.csv"
    )
    own.add_argument("manifest", help="CSV or Parquet, or a folder of slides; a path or URI")
    own.add_argument("--need-labels", action="store_true", help="check labels and splits as a training does")
    _add_path_check(own)


def _add_job_options(own: argparse.ArgumentParser) -> None:
    add = own.add_argument
    add("kind", choices=KINDS)
    add("--manifest", required=True, help="CSV or Parquet, or for check and score a folder; a path or URI")
    add("--config", help="YAML file of settings, as for train.py and score.py; read on this machine")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. recipe.epochs=5")
    add("--model", help="for score: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder")
    add("--out", help="for score: folder of the results (default: the job's own)")
    add("--outlines", help="for score: outlines of lesions, if known")
    add("--split", choices=("train", "val", "test"), help="for score: only these slides")
    add("--trials", type=int, help="for tune: number of trainings")
    add("--search", metavar="FILE", help="for tune: YAML file, as for tune.py; read on this machine")
    add("--search-set", action="append", default=[], metavar="KEY=VALUE", help="for tune: any setting of the search")
    add("--need-labels", action="store_true", help="for check: check labels and splits as a training does")
    _add_path_check(own)


def _add_path_check(own: argparse.ArgumentParser) -> None:
    own.add_argument(
        "--no-path-check",
        action="store_true",
        help="local paths may be missing on this machine: the service runs in a container or behind a tunnel",
    )


def _add_jobs(commands: Commands) -> None:
    own = commands.add("jobs", "jobs:list_jobs", "list jobs, newest first", "magnet jobs --state running --owner ada")
    own.add_argument("--state", choices=("queued", "starting", "running", "done", "failed", "cancelled"))
    own.add_argument("--kind", choices=KINDS)
    own.add_argument("--owner", metavar="NAME", help="jobs of one user; for admins, who otherwise see all jobs")
    own.add_argument("--mine", action="store_true", help="your own jobs only; for admins, who otherwise see all jobs")
    own.add_argument("--before", type=int, metavar="N", help="older jobs: the number that the last list ended with")
    own.add_argument("--limit", type=int, default=50, help="jobs in the list (default: 50, at most 500)")
    own.add_argument("--json", action="store_true", help="print JSON")
    own = commands.add("show", "jobs:show", "show a job: state, progress, attempts, links", "magnet show last")
    own.add_argument("job", metavar="JOB")
    own.add_argument("--json", action="store_true", help="print JSON")
    own = commands.add("logs", "jobs:logs", "print a job's log", "magnet logs -f 3f2a")
    own.add_argument("job", metavar="JOB")
    own.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    own.add_argument("--attempt", type=int, metavar="N", help="default: the newest, and with -f those after it")
    own = commands.add("events", "jobs:events", "print what happened to a job", "magnet events -f last")
    own.add_argument("job", metavar="JOB")
    own.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
    own = commands.add("cancel", "jobs:cancel", "cancel jobs", "magnet cancel 3f2a 9b01")
    own.add_argument("job", metavar="JOB", nargs="+")
    own = commands.add(
        "retry",
        "jobs:retry",
        "queue a failed or cancelled job again; it continues where it stopped",
        "magnet retry last",
    )
    own.add_argument("job", metavar="JOB")
    own = commands.add("delete", "jobs:delete", "delete jobs with their logs and results", "magnet delete 3f2a --yes")
    own.add_argument("job", metavar="JOB", nargs="+")
    own.add_argument("--yes", action="store_true", help="do not ask")
    own = commands.add("priority", "jobs:prioritise", "change a waiting job's priority", "magnet priority 3f2a 5")
    own.add_argument("job", metavar="JOB")
    own.add_argument("priority", type=int, help="-10 to 10, higher is earlier among your jobs")


def _add_results(commands: Commands) -> None:
    own = commands.add("scores", "results:scores", "fetch a scoring's table", "magnet scores last > scores.csv")
    own.add_argument("job", metavar="JOB")
    own.add_argument("--format", choices=("csv", "parquet", "json"), default="csv")
    own.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    own = commands.add(
        "report", "results:report", "fetch a scoring's report (HTML)", "magnet report last -o cohort.html"
    )
    own.add_argument("job", metavar="JOB")
    own.add_argument(
        "-o", "--output", metavar="FILE", help="default: JOB-report.html in this folder; - for standard output"
    )
    own = commands.add(
        "picture", "results:picture", "fetch a slide's picture or GeoJSON", "magnet picture last slide-7"
    )
    own.add_argument("job", metavar="JOB")
    own.add_argument("slide", metavar="SLIDE_ID")
    own.add_argument("--what", choices=("picture", "overlay", "geojson"), default="picture")
    own.add_argument("-o", "--output", metavar="FILE", help="default: SLIDE_ID-WHAT.jpg in this folder")
    own = commands.add(
        "best", "results:best", "fetch the config of a search's best schedule", "magnet best last > best.yaml"
    )
    own.add_argument("job", metavar="JOB")
    own.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    own = commands.add(
        "promote", "results:promote", "give a model version an alias", "magnet promote models:/magnet@challenger"
    )
    own.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    own.add_argument("--alias", default="champion", help="default: champion")


def _add_recurring(commands: Commands) -> None:
    own = commands.add(
        "watch", "submit:watch", "score the slides that arrive in a folder", "magnet watch s3://lab/inbox/"
    )
    own.add_argument("folder", help="a path or a URI that can be listed")
    own.add_argument("--model", default="models:/magnet@champion", help="default: models:/magnet@champion")
    own.add_argument("--settle-s", type=float, default=60.0, help="seconds in which a slide must not have changed (60)")
    _add_path_check(own)
    own = commands.add(
        "schedule",
        "submit:schedule",
        "submit a job at the times of a cron expression, in UTC",
        'magnet schedule "0 2 * * *" score --manifest s3://lab/new/ --model models:/magnet@champion',
    )
    own.add_argument("cron", help='minute, hour, day of month, month, day of week, e.g. "0 2 * * *"')
    _add_job_options(own)
    for name, what in (("watches", "watch"), ("schedules", "schedule")):
        own = commands.add(name, "recurring:list_entries", f"list {name}")
        own.set_defaults(what=what)
        own.add_argument("--json", action="store_true", help="print JSON")
    for name, what in (("unwatch", "watch"), ("unschedule", "schedule")):
        own = commands.add(name, "recurring:remove", f"end a {what}; the jobs that it submitted continue")
        own.set_defaults(what=what)
        own.add_argument("id", metavar="ID", help=f"as `magnet {what}{'es' if what == 'watch' else 's'}` lists it")


def _add_tokens(commands: Commands) -> None:
    own = commands.add(
        "login", "login:login", "log in by the lab's OpenID Connect provider", "magnet login https://magnet.lab"
    )
    own.add_argument("url", nargs="?", help="address of the service (default: MAGNET_URL, or the stored one)")
    commands.add("logout", "login:logout", "revoke the stored token and remove it from this machine")
    commands.add("whoami", "tokens:whoami", "show owner, scope and end of the token in use")
    own = _with_config(commands.add("token", "tokens:make", "make a token; for admins", "magnet token ada --days 30"))
    own.add_argument("owner", help="user whose jobs the token's requests make")
    own.add_argument(
        "--scope", choices=("read", "submit", "promote", "admin"), default="submit", help="default: submit"
    )
    own.epilog = f"{own.epilog}\n\n{FIRST_TOKEN}"
    own.add_argument("--days", type=_days, help="until it expires, or never (default: the service's token_days)")
    own = commands.add(
        "tokens", "tokens:list_or_revoke", "list tokens, or revoke some", "magnet tokens --revoke 0123456789ab"
    )
    own.add_argument("--revoke", metavar="ID", nargs="+", help="end these tokens at once")
    own.add_argument("--json", action="store_true", help="print JSON")
    own = commands.add("rotate", "tokens:rotate", "replace the token in use by a new one")
    own.add_argument("--grace-s", type=float, default=60.0, help="seconds in which the old one stays valid (60)")


def _add_operating(commands: Commands) -> None:
    own = commands.add("audit", "admin:audit", "print the audit log; for admins", "magnet audit --jsonl > audit.jsonl")
    own.add_argument("--after", type=int, default=0, metavar="N", help="only rows after the one with this number")
    own.add_argument("--jsonl", action="store_true", help="print JSON lines, which --verify checks")
    own.add_argument("--verify", metavar="FILE", help="check that no row of an exported log was changed or removed")
    config = "--config ~/magnet-service/service.yaml"
    _with_config(
        commands.add(
            "doctor", "admin:doctor", "check the service's parts and say how to fix them", f"magnet doctor {config}"
        )
    )
    what = "write queue, MLflow's file, secrets and settings into an archive"
    own = _with_config(commands.add("backup", "admin:backup", what, f"magnet backup {config} magnet.tar"))
    own.add_argument("file", help="archive to write, such as magnet.tar")
    what = "replace a stopped service's state by an archive's"
    own = _with_config(commands.add("restore", "admin:restore", what, f"magnet restore {config} magnet.tar"))
    own.add_argument("file", help="archive that `magnet backup` wrote")
    _with_config(commands.add("api", "admin:api", "serve the HTTP API", f"magnet api {config}"))
    _with_config(commands.add("dispatch", "admin:dispatch", "run the jobs of the queue", f"magnet dispatch {config}"))
    commands.add("serve", "", "run API, dispatcher, Ray and MLflow on this machine")
    commands.add("plan", "", "predict what a schedule costs, without running it")


def _days(text: str) -> float | Literal["never"]:
    return "never" if text == "never" else float(text)


def _with_config(own: argparse.ArgumentParser) -> argparse.ArgumentParser:
    own.add_argument("--config", metavar="FILE", help="YAML file with the service's settings")
    own.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the service")
    return own
