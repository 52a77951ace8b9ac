"""Run a whole service on this machine by one command: API, dispatcher, a Ray cluster and an MLflow server.

    magnet serve --storage ~/magnet-service --allow s3://lab/slides --allow-write s3://lab/results

API, MLflow and Ray's dashboard listen on the loopback interface only. Ray's other ports listen on all interfaces, which
Ray does not let us change, and require a token that the first start creates. MLflow requires a token too: in a browser,
your own token is the password. Your token and the address are stored in ~/.config/magnet/client.json, where `magnet
submit` and the other commands find them.

Settings are stored in STORAGE/service.yaml, which you may edit; options change the stored settings. Ray may take a
minute to start; jobs that are submitted earlier wait for it. A part that dies is started again. Ctrl-C stops all parts;
running jobs continue from their last checkpoint at the next start.
"""

from __future__ import annotations

import argparse
import os

from ray_jobs.command_line import command
from ray_jobs.serving.local_service import run_service
from ray_jobs.serving.settings import PORT


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="magnet serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--storage", default="~/magnet-service", help="folder for everything that the service stores (%(default)s)")
    add("--allow", action="append", default=[], metavar="PREFIX", help="folder or prefix that all users' jobs may read")
    add(
        "--allow-write",
        action="append",
        default=[],
        metavar="PREFIX",
        help="folder or prefix that all users' jobs may read and write",
    )
    add("--port", type=int, help=f"port of the API (default: the stored port, or {PORT})")
    add("--cpus", type=int, default=max(2, os.cpu_count() or 2), help="CPUs of the Ray cluster (default: all)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the service; it is stored")
    return run_service(parser.parse_args(arguments))


if __name__ == "__main__":
    command.run(main)
