"""Show the whole pipeline on one machine: slides in an object store, a training job, and scored slides.

Creates a cohort of generated slides to train on and another one to score, serves both from its own object store,
submits `train.py` and `score.py` to a Ray cluster (its own, unless RAY_API_SERVER_ADDRESS names one), compares the
scores with those of random boxes, and prints where the results are. At the end it stops what it started.
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

from ray_jobs.cluster.processes import answers, free_port, kill_tree, run_process
from ray_jobs.command_line import command
from ray_jobs.command_line.arguments import make_job_name, make_parser
from ray_jobs.models.registry import format_ui_command
from service import exit_status
from service.errors import UsageError
from service.supervisor.job_lines import strip_ray_lines
from service.synthetic.cohort import make_cohort
from service.synthetic.plan import CohortSettings

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "magnet-demo"
HINT = 0.5
"""Share of their own colour that lesions show at low magnification, 0 to 1."""
RAY = str(Path(sys.executable).with_name("ray"))
"""Ray's command line in this Python environment."""

OBJECT_STORE_MEMORY = 400 << 20
"""Shared memory of the demo's own cluster in bytes."""


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    options = _make_parser().parse_args(argv)
    started_s, folder = time.monotonic(), Path(options.folder).resolve()
    bucket, runs = folder / "bucket", folder / "runs"
    scores = folder / "scores" / make_job_name("score")

    _print_step(1, f"creating {options.num_slides} slides of {options.side_px:,} px in {bucket}")
    _make_cohorts(bucket, options)
    with _object_store(bucket) as endpoint, _cluster(folder) as address:
        _print_step(2, f"training from the object store at {endpoint}, as a job on the Ray cluster at {address}")
        overrides = [argument for item in options.set for argument in ("--set", item)]
        _submit(address, endpoint, "ray_jobs/train.py", "--manifest", f"s3://{BUCKET}/cohort/manifest.csv",
                "--config", options.config, "--storage", str(runs), *overrides)  # fmt: skip
        _print_step(3, "scoring unseen slides with the model that the training registered")
        _submit(address, endpoint, "ray_jobs/score.py", "--manifest", f"s3://{BUCKET}/unseen/manifest.csv",
                "--storage", str(runs), "--model", "models:/magnet@challenger", "--out", str(scores))  # fmt: skip
        _print_step(4, "comparing with the same classifier on random boxes")
        _compare(scores, bucket / "unseen" / "lesions.geojson", endpoint)
    minutes = (time.monotonic() - started_s) / 60
    print(f"\nDone in {minutes:.1f} minutes. The slides are generated: the scores say nothing about real cancer.")
    print(f"  report     {scores}/report.html")
    print(f"  pictures   {scores}/pictures/")
    print(f"  table      {scores}/scores.csv")
    print(f"  runs       {format_ui_command(f'sqlite:///{runs}/mlflow.db')}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("make demo", __doc__)
    parser.add_argument("--folder", default="demo", help="folder for the demo's files (default: demo)")
    parser.add_argument("--num-slides", type=int, default=128, help="number of slides to create (default: 128)")
    parser.add_argument("--side-px", type=int, default=8192, help="side of the slides in pixels (default: 8192)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the slides (default: 1)")
    parser.add_argument(
        "--config",
        default=str(ROOT / "configs" / "demo.yaml"),
        help="config of the training (default: configs/demo.yaml)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any setting of the training"
    )
    return parser


def _make_cohorts(bucket: Path, options: argparse.Namespace) -> None:
    """Create the slides to train on, and those to score."""
    num_scored = options.num_slides // 4
    trained_on = CohortSettings(
        num_slides=options.num_slides - num_scored,
        side_px=options.side_px,
        seed=options.seed,
        hint=HINT,
        split={"train": 0.85, "val": 0.15},
    )
    # Another seed: the two cohorts have no slide, patient or texture in common.
    scored = CohortSettings(
        num_slides=num_scored, side_px=options.side_px, seed=options.seed + 1, hint=HINT, split={"test": 1}
    )
    make_cohort(bucket / "cohort", trained_on, jobs=2)
    make_cohort(bucket / "unseen", scored, jobs=2)


def _print_step(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


@contextmanager
def _object_store(folder: Path) -> Iterator[str]:
    """Serve a folder as an S3 bucket on the loopback interface while the context lasts; yields the server's URL."""
    port = free_port()
    argv = [sys.executable, "-m", "service.testing.fake_store", str(folder), "--bucket", BUCKET, "--port", str(port)]
    with run_process(argv, log=None, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/{BUCKET}/cohort/manifest.csv", process, seconds=60)
        yield url


def _compare(scores: Path, outlines: Path, endpoint: str) -> None:
    """Print the model's scores and those of random boxes."""
    argv = [sys.executable, "-m", "ray_jobs.random_control", "--scores", str(scores), "--outlines", str(outlines)]
    subprocess.run(argv, env=os.environ | _store_environment(endpoint), cwd=ROOT, check=True)


def _store_environment(endpoint: str) -> dict[str, str]:
    """Return the environment variables that lead to the demo's bucket."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """Yield the address of the Jobs API of the cluster that the user named, or of one started for the demo.

    Other clusters on this machine are not used: they may belong to another user.
    """
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if address and answers(f"{address}/api/version"):
        print(f"using the Ray cluster at {address} (RAY_API_SERVER_ADDRESS)")
        yield address
        return
    port, gcs_port, agent_port = free_port(), free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    # Ray's files need a separate folder, which is removed with the cluster; its sockets need short paths. Ray makes its
    # folder accessible to all users, so it gets one inside a private folder.
    with tempfile.TemporaryDirectory(prefix="magnet-ray-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        argv = [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={gcs_port}", f"--dashboard-port={port}", f"--temp-dir={temporary}/r"),
            *(f"--dashboard-agent-listen-port={agent_port}", "--disable-usage-stats"),
            f"--object-store-memory={OBJECT_STORE_MEMORY}",
        ]
        url = f"http://127.0.0.1:{port}"
        # Ray asks the cluster that RAY_API_SERVER_ADDRESS names about its actors: this must be the cluster itself.
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": url}
        with run_process(argv, log=folder / "ray.log", env=environment, cwd=ROOT) as process:
            _wait(f"{url}/api/version", process, seconds=120)
            # The agent accepts jobs; on a busy machine it starts long after the dashboard.
            _wait(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz", process, seconds=120)
            yield url


def _submit(address: str, endpoint: str, script: str, *options: str) -> None:
    """Run a script as a Ray job, as a user would type it, and wait for its end."""
    shown = shlex.join([script, *(option.removeprefix(f"{ROOT}/") for option in options)])
    print(f"$ ray job submit -- python {shown}", flush=True)
    submission = make_job_name("demo")
    # A running cluster may have another working folder, and another `python` on its PATH.
    submit = [RAY, "job", "submit", "--submission-id", submission, "--runtime-env-json"]
    submit += [
        json.dumps({"env_vars": _store_environment(endpoint)}),
        "--",
        sys.executable,
        str(ROOT / script),
        *options,
    ]
    # RAY_API_SERVER_ADDRESS of the user's environment would override --address.
    ray_environment = os.environ | {"RAY_API_SERVER_ADDRESS": address, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        submit,
        env=ray_environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C must reach only the demo, which then stops the job
    )
    try:
        assert process.stdout is not None
        for line in strip_ray_lines(process.stdout):
            print(line, end="", flush=True)
        status = process.wait()
    except BaseException:
        stop = [RAY, "job", "stop", submission]
        subprocess.run(stop, env=ray_environment, capture_output=True, timeout=60, check=False, start_new_session=True)
        kill_tree(process)
        raise
    if status != 0:
        raise UsageError(f"the job {script} failed; see its output above for the reason")


def _wait(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a server answers. Raises `UsageError` if its process ends or `seconds` pass before."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UsageError(f"{process.args!r} did not start within {seconds:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_status.INTERRUPTED))
    command.run(main)
