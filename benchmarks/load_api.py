"""Load on a `magnet api` process with SQLite: concurrent submissions and lists, and followed logs.

    PYTHONPATH=$PWD python benchmarks/load_api.py [--clients 20] [--requests 50] [--jobs 5000] [--followed 200]

Prints requests per second and latency percentiles of submissions and of lists, and the CPU time that followed logs of
queued jobs take. The figures depend on the machine: to compare two versions, run the script with the PYTHONPATH of each
on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import psutil
import yaml

from ray_jobs.cluster.processes import free_port
from service.operations.serving import create_admin_token
from service.queue.requests import Check
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import read_service_settings

PAGE_JOBS = 50
"""Number of jobs in a list."""
STREAMS_PER_USER = 10
"""Number of followed logs of one user: the service's default limit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20, help="number of concurrent clients")
    parser.add_argument("--requests", type=int, default=50, help="number of requests of each client")
    parser.add_argument("--jobs", type=int, default=5000, help="number of jobs in the table before the lists")
    parser.add_argument("--followed", type=int, default=200, help="number of logs followed at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Start the API, put load on it, and print the figures."""
    config, port = write_settings(folder)
    settings = read_service_settings(str(config), [])
    tokens = [
        create_admin_token(settings, f"user{k}")
        for k in range(max(options.clients, options.followed // STREAMS_PER_USER))
    ]
    magnet = "from service.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", magnet, "api", "--config", str(config)], env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        manifest = str(folder / "a.csv")
        submit = asyncio.run(load(url, tokens[: options.clients], options.requests, make_submission(manifest)))
        print_rate("submit", submit, options)
        fill(settings.database_url, manifest, options.jobs)
        print_rate(
            f"list, {options.jobs} jobs",
            asyncio.run(load(url, tokens[: options.clients], options.requests, None)),
            options,
        )
        print(asyncio.run(follow(url, tokens, options.followed, process.pid)))
    finally:
        process.terminate()
        process.wait()


def write_settings(folder: Path) -> tuple[Path, int]:
    port, config = free_port(), folder / "service.yaml"
    (folder / "a.csv").touch()
    values = {"storage": str(folder / "service"), "port": port, "places": [{"prefix": str(folder)}]}
    values |= {"requests_per_minute": 10**7, "max_queued_per_user": 10**7, "max_connections": 2000}
    config.write_text(yaml.safe_dump(values))
    return config, port


def wait_for(url: str) -> None:
    while True:
        try:
            httpx2.get(f"{url}/healthz")
        except httpx2.TransportError:
            time.sleep(0.1)
        else:
            return


def make_submission(manifest: str) -> dict[str, object]:
    return {"job": {"kind": "check", "manifest": manifest}}


def fill(database_url: str, manifest: str, num_jobs: int) -> None:
    """Add jobs until the table has this number of them."""
    database = Database(database_url)
    store = JobStore(database)
    for k in range(max(0, num_jobs - sum(store.counts().values()))):
        store.add(Check(manifest=manifest), f"user{k % 20}")
    database.close()


async def load(
    url: str, tokens: list[str], num_requests: int, body: dict[str, object] | None
) -> tuple[float, list[float]]:
    """Send requests from concurrent clients: submissions, or lists if there is no body.

    Returns:
        Seconds in total, and seconds of each request.
    """
    times_s: list[float] = []

    async def client(token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
            for _ in range(num_requests):
                start_s = time.perf_counter()
                if body is None:
                    reply = await http.get("/v1/jobs", params={"limit": PAGE_JOBS})
                else:
                    reply = await http.post("/v1/jobs", json=body)
                reply.raise_for_status()
                times_s.append(time.perf_counter() - start_s)

    start_s = time.perf_counter()
    await asyncio.gather(*(client(token) for token in tokens))
    return time.perf_counter() - start_s, times_s


def print_rate(what: str, measured: tuple[float, list[float]], options: argparse.Namespace) -> None:
    total_s, times_s = measured
    cuts = statistics.quantiles(times_s, n=100)
    print(
        f"{what}: {len(times_s) / total_s:.0f} requests/s by {options.clients} clients, "
        f"p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms",
        flush=True,
    )


async def follow(url: str, tokens: list[str], num_followed: int, pid: int, for_s: float = 20.0) -> str:
    """Return the server's use of CPU while clients follow logs of queued jobs."""
    server = psutil.Process(pid)
    async with httpx2.AsyncClient(
        base_url=url, timeout=120, limits=httpx2.Limits(max_connections=num_followed + 10)
    ) as http:
        all_headers = [{"Authorization": f"Bearer {token}"} for token in tokens]
        pages = [(await http.get("/v1/jobs?limit=1", headers=headers)).json()["jobs"] for headers in all_headers]
        requests = [
            http.build_request("GET", f"/v1/jobs/{page[0]['id']}/logs?follow=true", headers=headers)
            for headers, page in zip(all_headers, pages, strict=True)
            for _ in range(STREAMS_PER_USER)
        ][:num_followed]
        streams = await asyncio.gather(*(http.send(request, stream=True) for request in requests))
        await asyncio.sleep(5)  # until all streams have been opened
        before, start_s = server.cpu_times(), time.perf_counter()
        await asyncio.sleep(for_s)
        after, took_s = server.cpu_times(), time.perf_counter() - start_s
        used_s = after.user + after.system - before.user - before.system
        refused = sum(stream.status_code != 200 for stream in streams)
        for stream in streams:
            await stream.aclose()
    return f"{num_followed} followed logs ({refused} refused): {used_s / took_s:.0%} of a CPU"


if __name__ == "__main__":
    main()
