"""The whole service on one machine: slides in an object store, a training job, a scored test split.

Makes a cohort of generated slides and another one that is not trained on, serves both from an object store of its own,
submits `train.py` and `score.py` to a Ray cluster (its own, unless RAY_API_SERVER_ADDRESS names one), compares the
scores with those of random boxes, and says where everything is. What it started it stops.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.cluster.processes import answers, free_port, kill_tree, started
from ray_jobs.command_line import command
from ray_jobs.models.registry import ui_command
from service import exit_status
from service.errors import UsageError
from service.supervisor.job_lines import own_lines
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "magnet-demo"
HINT = 0.5
"""How much of their own colour the lesions show at low power."""
RAY = str(Path(sys.executable).with_name("ray"))
"""Ray's command line, of this environment."""

OBJECT_STORE_MEMORY = 400 << 20
"""Ray's shared memory in the demo's own cluster."""


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--folder", default="demo", help="where the demo's files go (default: demo)")
    parser.add_argument("--num-slides", type=int, default=128)
    parser.add_argument("--side-px", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.yaml"), help="as of train.py")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of train.py")
    options = parser.parse_args(arguments)
    started_s, folder = time.monotonic(), Path(options.folder).resolve()
    bucket, runs = folder / "bucket", folder / "runs"
    scores = folder / "scores" / command.new_name("score")

    _say(1, f"{options.num_slides} slides of {options.side_px:,} px in {bucket}")
    num_unseen = options.num_slides // 4
    seen = CohortSettings(
        num_slides=options.num_slides - num_unseen,
        side_px=options.side_px,
        seed=options.seed,
        hint=HINT,
        split={"train": 0.85, "val": 0.15},
    )
    # Of another seed: no slide, patient or texture in common with those that were trained on.
    unseen = CohortSettings(
        num_slides=num_unseen, side_px=options.side_px, seed=options.seed + 1, hint=HINT, split={"test": 1}
    )
    make_cohort(bucket / "cohort", seen, jobs=2)
    make_cohort(bucket / "unseen", unseen, jobs=2)
    with _object_store(bucket) as endpoint, _cluster(folder) as address:
        _say(2, f"training from the object store at {endpoint}, as a job on the Ray cluster at {address}")
        overrides = [word for item in options.set for word in ("--set", item)]
        _submit(address, endpoint, "ray_jobs/train.py", "--manifest", f"s3://{BUCKET}/cohort/manifest.csv",
                "--config", options.config, "--storage", str(runs), *overrides)  # fmt: skip
        _say(3, "scoring unseen slides with the model that the training registered")
        _submit(address, endpoint, "ray_jobs/score.py", "--manifest", f"s3://{BUCKET}/unseen/manifest.csv",
                "--storage", str(runs), "--model", "models:/magnet@challenger", "--out", str(scores))  # fmt: skip
        _say(4, "the same classifier on random boxes: did looking help?")
        _compare(scores, bucket / "unseen" / "lesions.geojson", endpoint)
    minutes = (time.monotonic() - started_s) / 60
    print(f"\nDone in {minutes:.1f} minutes. The slides are generated: the score says nothing about finding cancer.")
    print(f"  report     {scores}/report.html")
    print(f"  pictures   {scores}/pictures/")
    print(f"  table      {scores}/scores.csv")
    print(f"  runs       {ui_command(f'sqlite:///{runs}/mlflow.db')}")
    return 0


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


@contextmanager
def _object_store(folder: Path) -> Iterator[str]:
    """An S3 server of what lies in a folder, on the loopback interface; its URL."""
    port = free_port()
    words = [sys.executable, "-m", "service.testing.fake_store", str(folder), "--bucket", BUCKET, "--port", str(port)]
    with started(words, log=None, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/{BUCKET}/cohort/manifest.csv", process, seconds=60)
        yield url


def _compare(scores: Path, outlines: Path, endpoint: str) -> None:
    """Print the model's scores beside those of random boxes."""
    words = [sys.executable, "-m", "ray_jobs.random_control", "--scores", str(scores), "--outlines", str(outlines)]
    subprocess.run(words, env=os.environ | _store_environment(endpoint), cwd=ROOT, check=True)


def _store_environment(endpoint: str) -> dict[str, str]:
    """Variables under which the demo's bucket is found."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """The Jobs address of the cluster that the user named, or of one started for the demo.

    One that merely answers on this machine may be another user's.
    """
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if address and answers(f"{address}/api/version"):
        print(f"using the Ray cluster at {address} (RAY_API_SERVER_ADDRESS)")
        yield address
        return
    port, gcs_port, agent_port = free_port(), free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    # A folder of its own, which goes with the cluster; Ray's sockets are in it and need short paths. Ray opens the
    # folder that it is given to everybody, so that it gets one inside a closed one.
    with tempfile.TemporaryDirectory(prefix="magnet-ray-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        words = [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={gcs_port}", f"--dashboard-port={port}", f"--temp-dir={temporary}/r"),
            *(f"--dashboard-agent-listen-port={agent_port}", "--disable-usage-stats"),
            f"--object-store-memory={OBJECT_STORE_MEMORY}",
        ]
        url = f"http://127.0.0.1:{port}"
        # Ray asks the cluster that RAY_API_SERVER_ADDRESS names about its own actors: it must be this one.
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": url}
        with started(words, log=folder / "ray.log", env=environment, cwd=ROOT) as process:
            _wait(f"{url}/api/version", process, seconds=120)
            # The agent takes jobs; on a busy machine it comes up long after the dashboard.
            _wait(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz", process, seconds=120)
            yield url


def _submit(address: str, endpoint: str, script: str, *words: str) -> None:
    """Run a script as a Ray job, as a user would type it, and wait for its end."""
    shown = shlex.join([script, *(word.removeprefix(f"{ROOT}/") for word in words)])
    print(f"$ ray job submit -- python {shown}", flush=True)
    submission = command.new_name("demo")
    # A cluster that runs already may have another working folder, and another `python` on its PATH.
    submit = [RAY, "job", "submit", "--submission-id", submission, "--runtime-env-json"]
    submit += [json.dumps({"env_vars": _store_environment(endpoint)}), "--", sys.executable, str(ROOT / script), *words]
    # A user's own RAY_API_SERVER_ADDRESS would override --address.
    ray_environment = os.environ | {"RAY_API_SERVER_ADDRESS": address, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        submit,
        env=ray_environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which stops the job
    )
    try:
        assert process.stdout is not None
        for line in own_lines(process.stdout):
            print(line, end="", flush=True)
        status = process.wait()
    except BaseException:
        stop = [RAY, "job", "stop", submission]
        subprocess.run(stop, env=ray_environment, capture_output=True, timeout=60, check=False, start_new_session=True)
        kill_tree(process)
        raise
    if status != 0:
        raise UsageError(f"the job {script} failed; its output above says why")


def _wait(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UsageError(f"{process.args!r} did not come up within {seconds:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_status.INTERRUPTED))
    command.run(main)
