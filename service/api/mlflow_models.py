"""Aliases of registered models, set through MLflow's REST API with the service's token: users' tokens only read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2

from service import environment
from service.api.errors import MlflowUnavailableError
from service.errors import NotFoundError, UsageError
from service.settings.service import ServiceSettings

TIMEOUT = httpx2.Timeout(20.0, connect=5.0)
ROOT = "api/2.0/mlflow"
"""Path of MLflow's REST API."""
# MLflow resolves these names itself, so it refuses them as aliases.
_RESERVED = re.compile(r"latest|v[0-9]+", re.IGNORECASE | re.ASCII)


class MlflowModels:
    """Client of MLflow's registered models.

    Args:
        settings: service settings; MLflow's URL and token file are used.

    Raises:
        UsageError: the settings name no MLflow server.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        if settings.mlflow is None or not settings.mlflow.startswith(("http://", "https://")):
            raise UsageError("this service has no MLflow server; set `mlflow` to its URL")
        self._url, self._token_file = settings.mlflow.rstrip("/"), settings.mlflow_token_file

    def promote(self, model: str, alias: str) -> tuple[str, str, str | None]:
        """Point an alias at a registered model.

        Args:
            model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
            alias: the alias to set.

        Returns:
            The model's name, its version, and the version that the alias pointed at before; None: the alias is new.

        Raises:
            NotFoundError: there is no such model.
            UsageError: MLflow reserves the alias.
            MlflowUnavailableError: MLflow does not respond.
        """
        if _RESERVED.fullmatch(alias):
            raise UsageError(f"alias {alias!r} is reserved by MLflow; choose another name, such as champion")
        name, version, source = split_model_uri(model)
        with self._open() as http:
            version = version or self._resolve(http, name, source, model)
            path = "model-versions/get"
            if self._call(http, "GET", path, {"name": name, "version": version}) is None:
                raise NotFoundError(f"no model {model}; MLflow's page of models lists them")
            earlier = self._get_alias(http, name, alias)
            values = {"name": name, "alias": alias, "version": version}
            if self._call(http, "POST", "registered-models/alias", values) is None:
                raise NotFoundError(f"no model {model}; it was removed in the meantime")
        return name, version, earlier

    def _resolve(self, http: httpx2.Client, name: str, alias: str, model: str) -> str:
        """Return the version that an alias points at. Raises `NotFoundError`."""
        version = self._get_alias(http, name, alias)
        if version is None:
            raise NotFoundError(f"no model {model}; MLflow's page of models lists names and aliases")
        return version

    def _get_alias(self, http: httpx2.Client, name: str, alias: str) -> str | None:
        """Return the version that an alias points at; None: there is no such alias."""
        values = self._call(http, "GET", "registered-models/alias", {"name": name, "alias": alias})
        return None if values is None else str(values["model_version"]["version"])

    def _call(self, http: httpx2.Client, method: str, path: str, values: dict[str, str]) -> dict[str, Any] | None:
        """Return MLflow's response; None: it does not know the model, the version or the alias.

        Raises:
            MlflowUnavailableError: MLflow does not respond, or with another error.
        """
        try:
            options: dict[str, Any] = {"params": values} if method == "GET" else {"json": values}
            response = http.request(method, f"{ROOT}/{path}", **options)
            body: dict[str, Any] = response.json()
        except (httpx2.TransportError, ValueError) as error:
            raise MlflowUnavailableError(f"MLflow does not respond: {type(error).__name__}") from error
        if response.status_code == 200:
            return body
        code = body.get("error_code") if isinstance(body, dict) else None
        # For an alias that does not exist MLflow returns INVALID_PARAMETER_VALUE.
        if code == "RESOURCE_DOES_NOT_EXIST" or (method == "GET" and code == "INVALID_PARAMETER_VALUE"):
            return None
        raise MlflowUnavailableError(f"MLflow responded to {path} with status {response.status_code}")

    def _open(self) -> httpx2.Client:
        token = read_mlflow_token(self._token_file)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Without redirects, which could send the token to another server.
        return httpx2.Client(base_url=self._url, headers=headers, timeout=TIMEOUT, follow_redirects=False)


def read_mlflow_token(file: str | None) -> str | None:
    """Return the token for MLflow.

    Args:
        file: file with the token; None: MLFLOW_TRACKING_TOKEN is used.

    Returns:
        The token; None: there is none.

    Raises:
        MlflowUnavailableError: the file cannot be read.
    """
    if file is None:
        return environment.mlflow_token()
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, ValueError) as error:
        raise MlflowUnavailableError(f"mlflow_token_file cannot be read: {type(error).__name__}") from error


def split_model_uri(model: str) -> tuple[str, str, str]:
    """Return name, version and alias of a model's URI; either version or alias is empty."""
    name, at, alias = model.removeprefix("models:/").partition("@")
    if at:
        return name, "", alias
    name, _, version = name.partition("/")
    return name, version, ""
