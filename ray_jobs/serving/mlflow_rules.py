"""Access that each request to MLflow's server needs: read, write or administrator.

A request that is not listed as reading counts as writing, so that new routes of a later MLflow stay closed to users
until they are listed here. Source: the routes of MLflow 3.17 (`mlflow.server.handlers`, `mlflow.server.fastapi_app`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, auto

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse


class Need(Enum):
    """Access that a request needs."""

    NOTHING = auto()
    """No token: the liveness probe."""
    READ = auto()
    """A token of any scope."""
    GRAPHQL = auto()
    """A token of any scope, if the body is a query and not a mutation."""
    WRITE = auto()
    """The service's token, or an administrator's."""
    ADMIN = auto()
    """An administrator's token."""
    REFUSED = auto()
    """No token is enough."""


ASSISTANT = "assistant"
"""Path segment of MLflow's assistant, which runs commands on the server's machine as the service's user."""
WORK_SEGMENTS = frozenset({"gateway", "gateway-proxy", "jobs", "prompt-optimization", "webhooks", "scorer", "genai"})
"""Path segments of routes that start work on the server, or send requests to other servers."""
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SEARCHES = frozenset(
    f"{prefix}/{route}"
    for prefix in ("/api", "/ajax-api")
    for route in (
        "2.0/mlflow/experiments/search",
        "2.0/mlflow/runs/search",
        "2.0/mlflow/registered-models/get-latest-versions",
        "2.0/mlflow/logged-models/search",
        "2.0mlflow/experiments/search-datasets",  # MLflow's own path lacks the slash
        "3.0/mlflow/traces/search",
        "3.0/mlflow/traces/batchGetInfos",
        "3.0/mlflow/traces/metrics",
        "3.0/mlflow/traces/calculate-filter-correlation",
        "3.0/mlflow/issues/search",
        "3.0/mlflow/datasets/search",
    )
)
"""Paths of POST routes that change nothing."""


def classify(method: str, path: str) -> Need:
    """Return the access that a request needs.

    Args:
        method: HTTP method in upper case.
        path: decoded path, as in the ASGI scope.
    """
    # Empty segments are dropped: MLflow's server also accepts //gateway.
    segments = [part for part in path.split("/") if part][:4]
    if ASSISTANT in segments:
        return Need.REFUSED
    if WORK_SEGMENTS & set(segments):
        return Need.ADMIN
    if method in READING_METHODS:
        return Need.NOTHING if path == "/health" else Need.READ
    if method == "POST" and path == "/graphql":
        return Need.GRAPHQL
    return Need.READ if method == "POST" and path in SEARCHES else Need.WRITE


def is_query(body: bytes) -> bool:
    """Return whether a GraphQL request only reads; a malformed request does not.

    Args:
        body: body of the request, JSON with a member `query`.
    """
    try:
        document = json.loads(body)
        nodes = parse(document["query"], no_location=True).definitions if isinstance(document, Mapping) else ()
    except (ValueError, KeyError, TypeError, RecursionError, GraphQLError):
        return False
    operations = [node.operation for node in nodes if isinstance(node, OperationDefinitionNode)]
    return bool(operations) and set(operations) == {OperationType.QUERY}
