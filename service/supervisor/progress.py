"""How far a job is, read from what its command prints: the lines that a person at the terminal would see."""

from __future__ import annotations

import re

from service.queue.job import Progress
from service.supervisor.job_lines import SPEAKER

STEP = re.compile(
    r"^(?P<what>step|trial) (?P<done>\d{1,9})/(?P<total>\d{1,9})\b.*?(?P<eta>(?:\d{1,9}:)?\d{1,9}:\d\d) to go"
)
ACTIVITIES = {"step": "training", "trial": "searching"}
COUNTED = re.compile(  # a bar of tqdm's: "scoring:  45%|####  | 5/11 [00:10<00:12, 1.2s/slide]"
    r"^(?P<what>[\w ]+): .*?\| (?P<done>\d{1,9})/(?P<total>\d{1,9}) \[[^<\]]*<(?P<eta>[\d:]{1,20}|\?)"
)
RUN = re.compile(r"MLflow run (?P<run>[0-9a-f]{32})\b")
WAITING = re.compile(r"^waiting for the cluster: ")
LONGEST_ACTIVITY = 300
"""Characters."""
ONE_OF_MANY = "run_trial"
"""Name of the processes whose steps are not the job's own: a search's trials."""


def progress_in(line: str) -> Progress:
    """What a line tells; `Progress()` of one that tells nothing."""
    speaker = SPEAKER.match(line)
    line = SPEAKER.sub("", line).strip()
    if (found := STEP.match(line)) and not (speaker and speaker["name"] == ONE_OF_MANY):
        return _counted(found, ACTIVITIES[found["what"]])
    if found := COUNTED.match(line):
        return _counted(found, found["what"].strip())
    if found := RUN.search(line):
        return Progress(mlflow_run=found["run"], activity="starting workers")
    if WAITING.match(line):
        return Progress(activity=line[:LONGEST_ACTIVITY])
    return Progress()


def _counted(found: re.Match[str], activity: str) -> Progress:
    eta_s = None if found["eta"] == "?" else _seconds(found["eta"])
    return Progress(done=int(found["done"]), total=int(found["total"]), eta_s=eta_s, activity=activity)


def _seconds(clock: str) -> float:
    """Of "1:02:03" or "2:03"."""
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part or 0)
    return float(total)
