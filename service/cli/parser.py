"""Commands and options of `magnet`; each command names its function as MODULE:FUNCTION in `service.cli`.

The help texts are part of the user documentation: `magnet COMMAND -h` must be enough to use a command.
"""

from __future__ import annotations

import argparse
from typing import Literal

from service.queue.kinds import KINDS

DESCRIPTION = """Train Magnifying Networks and score slides on a service.

MAGNET_URL and MAGNET_TOKEN name the service and the token. Without them, the commands use the address and the token
that `magnet login` or `magnet serve` has stored in ~/.config/magnet/client.json."""

EPILOG = """examples:
  magnet serve                                   run a whole service on this machine
  magnet submit train --manifest s3://lab/cohort.csv --set recipe.epochs=5
  magnet jobs                                    list jobs
  magnet logs -f last                            follow the log of your newest job
  magnet scores 3f2a > scores.csv                save the scores of an abbreviated job

JOB is the ID of a job; or at least 4 characters with which the ID of only one job starts or ends; or `last` or `-`
for your newest job.

exit status:
  0    the job is done
  1    the job failed, or the service did not respond
  2    the input is wrong: options, settings, manifest, or an unknown job
  3    a scoring is done, but some slides failed
  4    the job stopped for a reason that a retry would meet again
  130  the job was cancelled, or the command was interrupted

For the options of a command: magnet COMMAND -h"""


FIRST_TOKEN = """The first token is created in the database, with the settings of the service:
  magnet token ada --scope admin --config FILE"""

PRIORITY_HELP = "-10 to 10; your jobs with a higher priority start earlier"
FOLLOW_HELP = "continue until the job has ended"
JSON_HELP = "print JSON"


class Commands:
    """The commands of the command line.

    Args:
        root: parser of the whole command line.
    """

    def __init__(self, root: argparse.ArgumentParser) -> None:
        self._parsers = root.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, target: str, summary: str, example: str = "") -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: name of the command.
            target: MODULE:FUNCTION in `service.cli`; empty for a command that `main` forwards to a script.
            summary: one line of help, without a final full stop.
            example: an example of its use.

        Returns:
            The command's parser, for its options.
        """
        # The raw formatter keeps the line breaks of examples.
        command = self._parsers.add_parser(
            name,
            help=summary,
            description=summary[:1].upper() + summary[1:] + ".",
            epilog=f"example:\n  {example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # A name, not the function itself: importing every command would delay the help.
        command.set_defaults(target=target)
        return command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="magnet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(root)
    _add_submission_commands(commands)
    _add_job_commands(commands)
    _add_result_commands(commands)
    _add_recurring_commands(commands)
    _add_token_commands(commands)
    _add_operator_commands(commands)
    return root


def _add_submission_commands(commands: Commands) -> None:
    command = commands.add(
        "submit",
        "submit:submit",
        "submit a job",
        "magnet submit score --manifest s3://lab/new/ --model models:/magnet@champion --wait",
    )
    _add_job_options(command)
    command.add_argument("--priority", type=int, default=0, help=f"{PRIORITY_HELP} (default: 0)")
    command.add_argument(
        "--max-attempts", type=int, default=5, help="maximum number of attempts if the job fails (default: 5)"
    )
    command.add_argument("--key", help="idempotency key: a repeated key returns the first job and creates no other")
    command.add_argument(
        "--wait", action="store_true", help="follow the log until the job has ended; the exit status is the job's"
    )
    command = commands.add(
        "check", "submit:check", "check a manifest and open each of its slides", "magnet check s3://lab/cohort.csv"
    )
    command.add_argument("manifest", help="path or URI of a CSV or Parquet table, or of a folder of slides")
    command.add_argument("--need-labels", action="store_true", help="also check labels and splits, as for a training")
    _add_path_check(command)


def _add_job_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("kind", choices=KINDS, help="kind of the job")
    add(
        "--manifest",
        required=True,
        help="path or URI of a CSV or Parquet table; for check and score also of a folder of slides",
    )
    add("--config", metavar="FILE", help="YAML file of settings, as for train.py and score.py; read on this machine")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as recipe.epochs=5")
    add("--model", help="for score: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder")
    add("--out", help="for score: folder of the results (default: a folder of the service)")
    add("--outlines", help="for score: known outlines of lesions, to measure the localisation")
    add("--split", choices=("train", "val", "test"), help="for score: only slides of this split")
    add("--trials", type=int, help="for tune: number of trials")
    add("--search", metavar="FILE", help="for tune: YAML file of the search, as for tune.py; read on this machine")
    add("--search-set", action="append", default=[], metavar="KEY=VALUE", help="for tune: any setting of the search")
    add("--need-labels", action="store_true", help="for check: also check labels and splits, as for a training")
    _add_path_check(command)


def _add_path_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-path-check",
        action="store_true",
        help="accept local paths that this machine lacks: the service runs in a container or behind a tunnel",
    )


def _add_job_commands(commands: Commands) -> None:
    command = commands.add("jobs", "jobs:list_jobs", "list jobs, newest first", "magnet jobs --state running --mine")
    command.add_argument(
        "--state",
        choices=("queued", "starting", "running", "done", "failed", "cancelled"),
        help="only jobs in this state",
    )
    command.add_argument("--kind", choices=KINDS, help="only jobs of this kind")
    command.add_argument("--owner", metavar="NAME", help="only jobs of this user; for administrators")
    command.add_argument("--mine", action="store_true", help="only your own jobs; administrators otherwise see all")
    command.add_argument("--before", type=int, metavar="N", help="older jobs: the number at the end of the last list")
    command.add_argument("--limit", type=int, default=50, help="maximum number of jobs, up to 500 (default: 50)")
    command.add_argument("--json", action="store_true", help=JSON_HELP)
    command = commands.add("show", "jobs:show", "show a job: state, progress, attempts and links", "magnet show last")
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("--json", action="store_true", help=JSON_HELP)
    command = commands.add("logs", "jobs:logs", "print the log of a job", "magnet logs -f 3f2a")
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("-f", "--follow", action="store_true", help=FOLLOW_HELP)
    command.add_argument(
        "--attempt", type=int, metavar="N", help="number of the attempt (default: the newest, and with -f later ones)"
    )
    command = commands.add("events", "jobs:events", "print the events of a job", "magnet events -f last")
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("-f", "--follow", action="store_true", help=FOLLOW_HELP)
    command = commands.add("cancel", "jobs:cancel", "cancel jobs", "magnet cancel 3f2a 9b01")
    command.add_argument("job", metavar="JOB", nargs="+", help="IDs or abbreviations; see magnet -h")
    command = commands.add(
        "retry",
        "jobs:retry",
        "queue a failed or cancelled job again; it continues where it stopped",
        "magnet retry last",
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command = commands.add(
        "delete", "jobs:delete", "delete jobs that have ended, with logs and results", "magnet delete 3f2a --yes"
    )
    command.add_argument("job", metavar="JOB", nargs="+", help="IDs or abbreviations; see magnet -h")
    command.add_argument("--yes", action="store_true", help="delete without confirmation")
    command = commands.add(
        "priority", "jobs:prioritise", "change the priority of a queued job", "magnet priority 3f2a 5"
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("priority", type=int, help=PRIORITY_HELP)


def _add_result_commands(commands: Commands) -> None:
    command = commands.add(
        "scores", "results:scores", "fetch the score table of a scoring", "magnet scores last > scores.csv"
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument(
        "--format", choices=("csv", "parquet", "json"), default="csv", help="format of the table (default: csv)"
    )
    command.add_argument("-o", "--output", metavar="FILE", help="path or URI (default: standard output)")
    command = commands.add(
        "report", "results:report", "fetch the report of a scoring (HTML)", "magnet report last -o cohort.html"
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="path or URI, or - for standard output (default: JOB-report.html in the current folder)",
    )
    command = commands.add(
        "picture", "results:picture", "fetch a picture or the GeoJSON of a slide", "magnet picture last slide-7"
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("slide", metavar="SLIDE_ID", help="ID of the slide, as in the manifest")
    command.add_argument(
        "--what",
        choices=("picture", "overlay", "geojson"),
        default="picture",
        help="picture: the zoom tree; overlay: the regions on the thumbnail; geojson: the regions for QuPath "
        "(default: picture)",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="path or URI, or - for standard output (default: SLIDE_ID-WHAT.jpg in the current folder)",
    )
    command = commands.add(
        "best", "results:best", "fetch the best settings that a search has found (YAML)", "magnet best last > best.yaml"
    )
    command.add_argument("job", metavar="JOB", help="ID or abbreviation; see magnet -h")
    command.add_argument("-o", "--output", metavar="FILE", help="path or URI (default: standard output)")
    command = commands.add(
        "promote", "results:promote", "point an alias at a registered model", "magnet promote models:/magnet@challenger"
    )
    command.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    command.add_argument("--alias", default="champion", help="the alias to set (default: champion)")


def _add_recurring_commands(commands: Commands) -> None:
    command = commands.add(
        "watch", "submit:watch", "score new slides in a folder as they arrive", "magnet watch s3://lab/inbox/"
    )
    command.add_argument("folder", help="path or URI of a folder that can be listed")
    command.add_argument(
        "--model", default="models:/magnet@champion", help="the model (default: models:/magnet@champion)"
    )
    command.add_argument(
        "--settle-s",
        type=float,
        default=60.0,
        help="seconds for which a slide must stay unchanged before it is scored (default: 60)",
    )
    _add_path_check(command)
    command = commands.add(
        "schedule",
        "submit:schedule",
        "submit a job at the times of a cron expression, in UTC",
        'magnet schedule "0 2 * * *" score --manifest s3://lab/new/ --model models:/magnet@champion',
    )
    command.add_argument("cron", help='minute, hour, day of month, month, day of week, such as "0 2 * * *"')
    _add_job_options(command)
    for name, what in (("watches", "watch"), ("schedules", "schedule")):
        command = commands.add(name, "recurring:list_entries", f"list {name}")
        command.set_defaults(what=what)
        command.add_argument("--json", action="store_true", help=JSON_HELP)
    for name, what in (("unwatch", "watch"), ("unschedule", "schedule")):
        command = commands.add(name, "recurring:remove", f"remove a {what}; jobs that it has submitted continue")
        command.set_defaults(what=what)
        plural = f"{what}{'es' if what == 'watch' else 's'}"
        command.add_argument("id", metavar="ID", help=f"ID of the {what}, as `magnet {plural}` lists it")


def _add_token_commands(commands: Commands) -> None:
    command = commands.add(
        "login", "login:login", "log in at the identity provider of the service", "magnet login https://magnet.lab"
    )
    command.add_argument("url", nargs="?", help="address of the service (default: MAGNET_URL, or the stored address)")
    commands.add("logout", "login:logout", "revoke the stored token, and remove it from this machine")
    commands.add("whoami", "tokens:whoami", "show the owner, scope and end of the token in use, and its limits")
    command = _add_config(
        commands.add("token", "tokens:create", "create a token; for administrators", "magnet token ada --days 30")
    )
    command.add_argument("owner", help="user whose jobs the token's requests create")
    command.add_argument(
        "--scope",
        choices=("read", "submit", "promote", "admin"),
        default="submit",
        help="what the token allows; each scope includes those before it (default: submit)",
    )
    command.epilog = f"{command.epilog}\n\n{FIRST_TOKEN}"
    command.add_argument(
        "--days", type=_parse_days, help="lifetime in days, or never (default: token_days in the service's settings)"
    )
    command = commands.add(
        "tokens", "tokens:list_or_revoke", "list tokens, or revoke some", "magnet tokens --revoke 0123456789ab"
    )
    command.add_argument("--revoke", metavar="ID", nargs="+", help="revoke the tokens with these IDs")
    command.add_argument("--json", action="store_true", help=JSON_HELP)
    command = commands.add("rotate", "tokens:rotate", "replace the token in use by a new one")
    command.add_argument(
        "--grace-s", type=float, default=60.0, help="seconds for which the old token stays valid (default: 60)"
    )


def _add_operator_commands(commands: Commands) -> None:
    command = commands.add(
        "audit", "admin:audit", "print the audit log; for administrators", "magnet audit --jsonl > audit.jsonl"
    )
    command.add_argument("--after", type=int, default=0, metavar="N", help="only rows after the row with this number")
    command.add_argument("--jsonl", action="store_true", help="print JSON lines, as --verify reads them")
    command.add_argument(
        "--verify", metavar="FILE", help="verify that no row of an exported log was changed or removed"
    )
    config = "--config ~/magnet-service/service.yaml"
    _add_config(
        commands.add(
            "doctor",
            "admin:doctor",
            "check the service's parts, and say how to fix those that fail",
            f"magnet doctor {config}",
        )
    )
    summary = "write the queue, MLflow's database, secrets and settings into an archive"
    command = _add_config(commands.add("backup", "admin:backup", summary, f"magnet backup {config} magnet.tar"))
    command.add_argument("file", help="archive to write, such as magnet.tar")
    summary = "replace the state of a stopped service by an archive's"
    command = _add_config(commands.add("restore", "admin:restore", summary, f"magnet restore {config} magnet.tar"))
    command.add_argument("file", help="archive that `magnet backup` wrote")
    _add_config(commands.add("api", "admin:api", "serve the HTTP API", f"magnet api {config}"))
    _add_config(commands.add("dispatch", "admin:dispatch", "run the queue's jobs", f"magnet dispatch {config}"))
    # Only for the help: `main` forwards these before this parser sees their options.
    commands.add("serve", "", "run API, dispatcher, Ray and MLflow on this machine")
    commands.add("plan", "", "predict the cost of a schedule, without running it")


def _parse_days(text: str) -> float | Literal["never"]:
    return "never" if text == "never" else float(text)


def _add_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--config", metavar="FILE", help="YAML file of the service's settings")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the service")
    return command
