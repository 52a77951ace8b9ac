"""Cost of `magnet serve`: seconds until each part responds, and processes and memory by part.

    python benchmarks/measure_serve.py [--repeats 3]

Memory is the proportional set size (PSS), in which pages that processes share count once. It is read 20 s after the
last part has responded.
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
"""Seconds between the first response of the last part and the reading of memory."""
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
"""Parts of the command lines of each part's processes; the first match counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of starts")
    parser.add_argument("--verbose", action="store_true", help="print every process with its memory")
    options = parser.parse_args()
    seconds = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="measure-serve-") as folder:
            seconds.append(measure(Path(folder), verbose=options.verbose))
    print(f"all parts respond after {statistics.median(seconds):.1f} s (median of {len(seconds)})")


def measure(folder: Path, *, verbose: bool) -> float:
    """Start the service once, print its table, and stop it.

    Returns:
        Seconds until all parts have responded.
    """
    argv = [sys.executable, "-m", "ray_jobs.serve", "--storage", str(folder / "s"), "--port", str(free_port())]
    env = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}
    started_s = time.monotonic()
    process = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if " is up" in line or "all parts are up" in line:
                print(f"{time.monotonic() - started_s:6.1f} s  {line.strip()}", flush=True)
            if "all parts are up" in line:
                break
        duration_s = time.monotonic() - started_s
        print(f"{measure_cpu_s(psutil.Process(process.pid)):6.1f} s  of CPU until then")
        time.sleep(REST_S)
        print_table(psutil.Process(process.pid), verbose=verbose)
        return duration_s
    finally:
        kill_tree(process)


def find_part(line: str) -> str:
    """Return the part that a command line belongs to."""
    return next((name for name, patterns in PARTS.items() if any(pattern in line for pattern in patterns)), "other")


def measure_cpu_s(root: psutil.Process) -> float:
    """Return the CPU seconds of a process and its descendants so far, which depend little on other load."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def print_table(root: psutil.Process, *, verbose: bool) -> None:
    """Print the number of processes and their memory by part."""
    count: dict[str, int] = defaultdict(int)
    size_bytes: dict[str, int] = defaultdict(int)
    for process in [root, *root.children(recursive=True)]:
        try:
            line, pss_bytes = " ".join(process.cmdline()), process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        part = find_part(line)
        count[part] += 1
        size_bytes[part] += pss_bytes
        if verbose:
            print(f"    {pss_bytes / 1e6:7.0f} MB  {part:30s} {line[:110]}")
    for part, num in count.items():
        print(f"{part:32s} {num:3d} processes {size_bytes[part] / 1e6:7.0f} MB")
    print(f"{'all':32s} {sum(count.values()):3d} processes {sum(size_bytes.values()) / 1e6:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
