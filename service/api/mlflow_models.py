"""Aliases of registered models, by MLflow's REST API: the service sets them, and users have no access to MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2

from service import environment
from service.errors import MagnetError, NotFoundError, UsageError
from service.settings.service import ServiceSettings

TIMEOUT = httpx2.Timeout(20.0, connect=5.0)
ROOT = "api/2.0/mlflow"
_RESERVED = re.compile(r"latest|v[0-9]+", re.IGNORECASE | re.ASCII)


class MlflowAwayError(MagnetError):
    """MLflow does not answer, or refuses the service. To act: its operator. A retry can help."""


class MlflowModels:
    """Registered models.

    Args:
        settings: with MLflow's URL and token file.

    Raises:
        UsageError: the service has no MLflow server.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        if settings.mlflow is None or not settings.mlflow.startswith(("http://", "https://")):
            raise UsageError("this service has no MLflow server; set `mlflow` to its URL")
        self._url, self._token_file = settings.mlflow.rstrip("/"), settings.mlflow_token_file

    def promote(self, model: str, alias: str) -> tuple[str, str, str | None]:
        """Point an alias at a registered model.

        Args:
            model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
            alias: that is set.

        Returns:
            The model's name, its version, and the version that the alias stood for; None: none.

        Raises:
            NotFoundError: there is no such model.
            UsageError: MLflow reserves the alias.
            MlflowAwayError: MLflow does not answer.
        """
        if _RESERVED.fullmatch(alias):
            raise UsageError(f"alias {alias!r} is reserved; take another name, such as champion")
        name, version, source = take_apart(model)
        with self._client() as http:
            version = version or self._version_of(http, name, source, model)
            path = "model-versions/get"
            if self._call(http, "GET", path, {"name": name, "version": version}) is None:
                raise NotFoundError(f"no model {model}; MLflow's page of models lists them")
            earlier = self._alias(http, name, alias)
            wanted = {"name": name, "alias": alias, "version": version}
            if self._call(http, "POST", "registered-models/alias", wanted) is None:
                raise NotFoundError(f"no model {model}; it was removed in the meantime")
        return name, version, earlier

    def _version_of(self, http: httpx2.Client, name: str, alias: str, model: str) -> str:
        version = self._alias(http, name, alias)
        if version is None:
            raise NotFoundError(f"no model {model}; MLflow's page of models lists names and aliases")
        return version

    def _alias(self, http: httpx2.Client, name: str, alias: str) -> str | None:
        """The version that an alias stands for; None: there is no such alias."""
        found = self._call(http, "GET", "registered-models/alias", {"name": name, "alias": alias})
        return None if found is None else str(found["model_version"]["version"])

    def _call(self, http: httpx2.Client, method: str, path: str, values: dict[str, str]) -> dict[str, Any] | None:
        """MLflow's answer; None: it does not know the model, the version or the alias."""
        try:
            body: dict[str, Any] = {"params": values} if method == "GET" else {"json": values}
            reply = http.request(method, f"{ROOT}/{path}", **body)
            answer: dict[str, Any] = reply.json()
        except (httpx2.TransportError, ValueError) as error:
            raise MlflowAwayError(f"MLflow does not answer: {type(error).__name__}") from error
        if reply.status_code == 200:
            return answer
        code = answer.get("error_code") if isinstance(answer, dict) else None
        # For an alias that does not exist MLflow answers INVALID_PARAMETER_VALUE.
        if code == "RESOURCE_DOES_NOT_EXIST" or (method == "GET" and code == "INVALID_PARAMETER_VALUE"):
            return None
        raise MlflowAwayError(f"MLflow answered {reply.status_code} to {path}")

    def _client(self) -> httpx2.Client:
        token = mlflow_token(self._token_file)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(base_url=self._url, headers=headers, timeout=TIMEOUT, follow_redirects=False)


def mlflow_token(file: str | None) -> str | None:
    """The token of a file; without a file that of MLFLOW_TRACKING_TOKEN; None: there is none.

    Raises:
        MlflowAwayError: the file cannot be read.
    """
    if file is None:
        return environment.mlflow_token()
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, ValueError) as error:
        raise MlflowAwayError(f"mlflow_token_file cannot be read: {type(error).__name__}") from error


def take_apart(model: str) -> tuple[str, str, str]:
    """Name, version and alias of a model's URI; version or alias is empty."""
    name, at, alias = model.removeprefix("models:/").partition("@")
    if at:
        return name, "", alias
    name, _, version = name.partition("/")
    return name, version, ""
