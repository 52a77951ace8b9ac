"""What `magnet serve` takes: seconds until each part answers, processes and memory by part.

    python benchmarks/measure_serve.py [--repeats 3]

Memory is the proportional set size (PSS): pages that processes share count once. It is read 20 s after the last part
answered.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from ray_jobs.cluster.processes import free_port, kill_tree

ROOT = Path(__file__).resolve().parents[1]
REST_S = 20.0
"""Seconds between the last part's first answer and the reading of memory."""
PARTS = {
    "Ray dashboard modules": ("ray-dashboard",),
    "Ray dashboard": ("dashboard/dashboard.py",),
    "Ray agents": ("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    "Ray log monitor": ("log_monitor.py",),
    "Ray client server, autoscaler": ("ray.util.client.server", "monitor.py"),
    "Ray raylet, GCS": ("raylet/raylet", "gcs_server", "/ray start"),
    "MLflow": ("mlflow server", "mlflow.server", "ray_jobs.serving.mlflow_guard", "huey"),
    "dispatcher": ("main() dispatch",),
    "API": ("main() api",),
    "serve itself": ("ray_jobs.serve",),
}
"""Words of the command lines, first match counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--verbose", action="store_true", help="every process with its memory")
    options = parser.parse_args()
    seconds = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="measure-serve-") as folder:
            seconds.append(measure(Path(folder), verbose=options.verbose))
    print(f"all parts answer after {statistics.median(seconds):.1f} s (median of {len(seconds)})")


def measure(folder: Path, *, verbose: bool) -> float:
    """Start the service once, print its table, stop it; seconds until all parts answered."""
    words = [sys.executable, "-m", "ray_jobs.serve", "--storage", str(folder / "s"), "--port", str(free_port())]
    own = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}
    began_s = time.monotonic()
    process = subprocess.Popen(words, env=own, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if " is up" in line or "all parts are up" in line:
                print(f"{time.monotonic() - began_s:6.1f} s  {line.strip()}", flush=True)
            if "all parts are up" in line:
                break
        took_s = time.monotonic() - began_s
        print(f"{cpu_s(psutil.Process(process.pid)):6.1f} s  of CPU until then")
        time.sleep(REST_S)
        report(psutil.Process(process.pid), verbose=verbose)
        return took_s
    finally:
        kill_tree(process)


def part_of(line: str) -> str:
    """The part that a command line belongs to."""
    return next((name for name, words in PARTS.items() if any(word in line for word in words)), "other")


def cpu_s(root: psutil.Process) -> float:
    """Seconds of CPU that a process and its descendants took so far, on which other load has little effect."""
    total = 0.0
    for one in [root, *root.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def report(root: psutil.Process, *, verbose: bool) -> None:
    """Print processes and memory by part."""
    count: dict[str, int] = defaultdict(int)
    size: dict[str, int] = defaultdict(int)
    for one in [root, *root.children(recursive=True)]:
        try:
            line, pss = " ".join(one.cmdline()), one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        part = part_of(line)
        count[part] += 1
        size[part] += pss
        if verbose:
            print(f"    {pss / 1e6:7.0f} MB  {part:30s} {line[:110]}")
    for part, num in count.items():
        print(f"{part:32s} {num:3d} processes {size[part] / 1e6:7.0f} MB")
    print(f"{'all':32s} {sum(count.values()):3d} processes {sum(size.values()) / 1e6:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
