"""Commands of results: scores, report, picture, best, promote."""

from __future__ import annotations

import argparse

from service.cli import connect
from service.cli.output import write_output


def scores(options: argparse.Namespace) -> int:
    """Fetch the score table of a scoring."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        write_output(client.scores(connect.find_job_id(client, options.job), options.format), options.output)
    return 0


def report(options: argparse.Namespace) -> int:
    """Fetch the report of a scoring."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job_id = connect.find_job_id(client, options.job)
        output = options.output or f"{job_id}-report.html"
        write_output(client.report(job_id), output)
    if output != "-":
        print(output)
    return 0


def picture(options: argparse.Namespace) -> int:
    """Fetch a slide's picture or GeoJSON."""
    suffix = "geojson" if options.what == "geojson" else "jpg"
    # A slash in the ID must not lead to another folder.
    output = options.output or f"{options.slide.replace('/', '_')}-{options.what}.{suffix}"
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        write_output(client.slide(connect.find_job_id(client, options.job), options.slide, options.what), output)
    if output != "-":
        print(output)
    return 0


def best(options: argparse.Namespace) -> int:
    """Fetch the best settings that a search has found."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        write_output(client.best(connect.find_job_id(client, options.job)), options.output)
    return 0


def promote(options: argparse.Namespace) -> int:
    """Point an alias at a registered model."""
    with connect.open_client() as client:
        promoted = client.promote(options.model, options.alias)
    earlier = f"; earlier version {promoted.earlier}" if promoted.earlier else ""
    print(f"models:/{promoted.name}@{promoted.alias} is version {promoted.version}{earlier}")
    return 0
