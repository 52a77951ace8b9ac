"""Load on a real `magnet api` process with SQLite: submissions and lists by clients at once, and followed logs.

    PYTHONPATH=$PWD python benchmarks/load_api.py [--clients 20] [--requests 50] [--jobs 5000] [--followed 200]

Prints requests per second and percentiles of submissions and of lists with that many jobs, and the CPU that followed
logs of waiting jobs take. To compare two versions, run it with the PYTHONPATH of each on the same machine. The load
counts; the figures depend on the machine.
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
from service.operations.serving import admin_token
from service.queue.requests import Check
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import service_settings

PAGE = 50
"""Jobs that a list asks for."""
PER_USER = 10
"""Followed logs of one user, the service's default limit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50, help="of each client")
    parser.add_argument("--jobs", type=int, default=5000, help="in the table before the lists")
    parser.add_argument("--followed", type=int, default=200, help="logs followed at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Start the API, load it, and print the figures."""
    config, port = write_settings(folder)
    settings = service_settings(str(config), [])
    tokens = [admin_token(settings, f"user{k}") for k in range(max(options.clients, options.followed // PER_USER))]
    magnet = "from service.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", magnet, "api", "--config", str(config)], env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        manifest = str(folder / "a.csv")
        submit = asyncio.run(load(url, tokens[: options.clients], options.requests, submission(manifest)))
        report("submit", submit, options)
        fill(settings.database_url, manifest, options.jobs)
        report(
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


def submission(manifest: str) -> dict[str, object]:
    return {"job": {"kind": "check", "manifest": manifest}}


def fill(database_url: str, manifest: str, num_jobs: int) -> None:
    """Bring the table to this number of jobs."""
    database = Database(database_url)
    store = JobStore(database)
    for k in range(max(0, num_jobs - sum(store.counts().values()))):
        store.add(Check(manifest=manifest), f"user{k % 20}")
    database.close()


async def load(
    url: str, tokens: list[str], num_requests: int, body: dict[str, object] | None
) -> tuple[float, list[float]]:
    """Seconds in all, and of each request: submissions, or lists without a body."""
    times_s: list[float] = []

    async def client(token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
            for _ in range(num_requests):
                start_s = time.perf_counter()
                if body is None:
                    reply = await http.get("/v1/jobs", params={"limit": PAGE})
                else:
                    reply = await http.post("/v1/jobs", json=body)
                reply.raise_for_status()
                times_s.append(time.perf_counter() - start_s)

    start_s = time.perf_counter()
    await asyncio.gather(*(client(token) for token in tokens))
    return time.perf_counter() - start_s, times_s


def report(what: str, measured: tuple[float, list[float]], options: argparse.Namespace) -> None:
    total_s, times_s = measured
    cuts = statistics.quantiles(times_s, n=100)
    print(
        f"{what}: {len(times_s) / total_s:.0f} requests/s by {options.clients} clients, "
        f"p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms",
        flush=True,
    )


async def follow(url: str, tokens: list[str], num_followed: int, pid: int, for_s: float = 20.0) -> str:
    """The server's CPU while clients follow logs of jobs that wait."""
    server = psutil.Process(pid)
    async with httpx2.AsyncClient(
        base_url=url, timeout=120, limits=httpx2.Limits(max_connections=num_followed + 10)
    ) as http:
        headers = [{"Authorization": f"Bearer {token}"} for token in tokens]
        pages = [(await http.get("/v1/jobs?limit=1", headers=own)).json()["jobs"] for own in headers]
        requests = [
            http.build_request("GET", f"/v1/jobs/{page[0]['id']}/logs?follow=true", headers=own)
            for own, page in zip(headers, pages, strict=True)
            for _ in range(PER_USER)
        ][:num_followed]
        streams = await asyncio.gather(*(http.send(request, stream=True) for request in requests))
        await asyncio.sleep(5)
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
