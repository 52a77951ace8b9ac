"""Which requests to MLflow's server only read, and which are for administrators.

Everything that is not listed as reading counts as writing, so that routes of a later MLflow are closed until they are
listed here. Source: the routes of MLflow 3.17 (`mlflow.server.handlers`, `mlflow.server.fastapi_app`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, auto

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse


class Need(Enum):
    """What a request needs."""

    NOTHING = auto()
    """The liveness probe."""
    READ = auto()
    """A token of any scope."""
    GRAPHQL = auto()
    """The same, if the body is a query and no mutation."""
    WRITE = auto()
    """The service's token, or an administrator's."""
    ADMIN = auto()
    """An administrator's token."""
    REFUSED = auto()
    """Nobody's."""


ASSISTANT = "assistant"
"""Runs commands on the server's machine, in the name of the service."""
STARTS_WORK = frozenset({"gateway", "gateway-proxy", "jobs", "prompt-optimization", "webhooks", "scorer", "genai"})
"""Path segments of routes that start work on the server or send requests elsewhere."""
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SEARCHES = frozenset(
    f"{prefix}/{route}"
    for prefix in ("/api", "/ajax-api")
    for route in (
        "2.0/mlflow/experiments/search",
        "2.0/mlflow/runs/search",
        "2.0/mlflow/registered-models/get-latest-versions",
        "2.0/mlflow/logged-models/search",
        "2.0mlflow/experiments/search-datasets",  # without the slash, as MLflow has it
        "3.0/mlflow/traces/search",
        "3.0/mlflow/traces/batchGetInfos",
        "3.0/mlflow/traces/metrics",
        "3.0/mlflow/traces/calculate-filter-correlation",
        "3.0/mlflow/issues/search",
        "3.0/mlflow/datasets/search",
    )
)
"""POST routes that change nothing."""


def classify(method: str, path: str) -> Need:
    """What a request needs.

    Args:
        method: of HTTP, upper case.
        path: decoded, as ASGI has it.
    """
    segments = [part for part in path.split("/") if part][:4]
    if ASSISTANT in segments:
        return Need.REFUSED
    if STARTS_WORK & set(segments):
        return Need.ADMIN
    if method in READING_METHODS:
        return Need.NOTHING if path == "/health" else Need.READ
    if method == "POST" and path == "/graphql":
        return Need.GRAPHQL
    return Need.READ if method == "POST" and path in SEARCHES else Need.WRITE


def is_query(body: bytes) -> bool:
    """Whether a GraphQL request only reads.

    Args:
        body: JSON with a member `query`.
    """
    try:
        document = json.loads(body)
        nodes = parse(document["query"], no_location=True).definitions if isinstance(document, Mapping) else ()
    except (ValueError, KeyError, TypeError, RecursionError, GraphQLError):
        return False
    operations = [node.operation for node in nodes if isinstance(node, OperationDefinitionNode)]
    return bool(operations) and set(operations) == {OperationType.QUERY}
