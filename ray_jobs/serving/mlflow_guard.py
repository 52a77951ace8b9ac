"""Run MLflow's server behind the tokens of the service.

    python -m ray_jobs.serving.mlflow_guard --config service.yaml --backend-store-uri sqlite:////srv/mlflow.db \\
        --artifacts-destination /srv/artifacts --port 5000

Jobs and the API send the service's own token (`mlflow_token_file` in the settings), which allows everything that a
training needs. People send their API token, as `Authorization: Bearer` or, in a browser, as the password of HTTP Basic
with any user name. Their tokens read; an administrator's token also writes. All users see all runs. MLflow's job
runners, which evaluate and optimise prompts, are not started.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import uvicorn
from mlflow.server import constants
from mlflow.server.handlers import initialize_backend_stores
from mlflow.utils.server_cli_utils import resolve_default_artifact_root
from starlette.types import ASGIApp

from ray_jobs.command_line import command
from ray_jobs.serving.guard import Guard
from service.api.tokens import Tokens
from service.errors import UsageError
from service.queue.tables import Database
from service.settings.service import ServiceSettings, read_service_settings


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="mlflow_guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="YAML file of the service's settings")
    add("--backend-store-uri", required=True, help="database of MLflow, as for mlflow server")
    add("--artifacts-destination", required=True, help="folder or prefix of artifacts, as for mlflow server")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=5000, help="port to listen on (default: %(default)s)")
    add("--allowed-hosts", help="host names under which the server responds (default: loopback, with this port)")
    options = parser.parse_args(arguments)
    serve_mlflow(read_service_settings(options.config, []), options)
    return 0


def serve_mlflow(settings: ServiceSettings, options: argparse.Namespace) -> None:
    """Serve MLflow behind the guard until the process is stopped.

    Args:
        settings: service settings.
        options: options of the command.

    Raises:
        UsageError: the file with the service's token cannot be read, or is empty.
    """
    hosts = options.allowed_hosts or ",".join(f"{name}:{options.port}" for name in ("127.0.0.1", "localhost"))
    database = Database(settings.database_url)
    try:
        app = _load_mlflow(options.backend_store_uri, options.artifacts_destination, hosts)
        wrong_per_minute = settings.wrong_tokens_per_minute
        guard = Guard(app, Tokens(database), read_service_token(settings), wrong_per_minute, hosts.split(","))
        uvicorn.run(
            guard,
            host=options.host,
            port=options.port,
            log_level="warning",
            server_header=False,
            # Without the list, uvicorn trusts X-Forwarded-For from every process on this machine.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
    finally:
        database.close()


def read_service_token(settings: ServiceSettings) -> str | None:
    """Return the token of jobs and API; None: the settings name no file with a token.

    Raises:
        UsageError: the file cannot be read, or is empty.
    """
    if settings.mlflow_token_file is None:
        return None
    try:
        token = Path(settings.mlflow_token_file).read_text().strip()
    except OSError as error:
        raise UsageError(f"mlflow_token_file: {error}; write a random token into the file") from error
    if not token:
        # Without this error every job would be refused, and nothing would name the cause.
        raise UsageError(f"mlflow_token_file: {settings.mlflow_token_file} is empty; write a random token into it")
    return token


def _load_mlflow(backend_uri: str, artifacts: str, hosts: str) -> ASGIApp:
    """Return MLflow's application, set up in this process as `mlflow server` does it."""
    root = resolve_default_artifact_root(True, "", backend_uri)
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: backend_uri,
        constants.REGISTRY_STORE_URI_ENV_VAR: backend_uri,
        constants.ARTIFACT_ROOT_ENV_VAR: root,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    initialize_backend_stores(backend_uri, backend_uri, root)
    from mlflow.server.fastapi_app import app  # noqa: PLC0415 - it reads the variables above when it is imported

    return app


if __name__ == "__main__":
    command.run(main)
