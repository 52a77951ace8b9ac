"""A client of Ray's Jobs API over HTTP, with the calls that the queue needs.

Source: the REST reference of Ray Jobs; `POST /api/jobs/` takes a submission id once, and returns 500 the second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from service import environment, storage
from service.errors import MagnetError, UsageError

TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
"""Seconds to wait for an answer, and for a connection."""
RUNNING, OVER = ("PENDING", "RUNNING"), ("STOPPED", "SUCCEEDED", "FAILED")
"""States of a job in Ray: not ended, ended."""


class RayUnavailableError(MagnetError):
    """The cluster is unavailable. To act: its operator. A retry can help."""


class RayRefusedError(UsageError):
    """The cluster refuses the job. To act: the service's operator, as the message says. A retry does not help."""


class RayJobs:
    """The jobs of a cluster.

    Args:
        url: of the cluster's dashboard.
        token_file: file with the token of a cluster with authentication; None: as the environment says.
    """

    def __init__(self, url: str, token_file: str | None = None) -> None:
        self.url = url.rstrip("/")
        token = environment.ray_token() if token_file is None else storage.read_bytes(token_file).decode().strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        verify = self.url.startswith(
            "https://"
        )  # loading the CA certificates takes time, and without TLS nothing uses them
        self._client = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False, verify=verify
        )

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        """Start a job; one that was submitted before under this id stays as it is.

        Args:
            submission_id: id of the job in Ray.
            entrypoint: command line of the job.
            env: environment variables of the job.
            metadata: shown in Ray's dashboard.

        Raises:
            RayAwayError: the cluster is unavailable.
            RayRefusedError: it refuses the job.
        """
        body = {"entrypoint": entrypoint, "submission_id": submission_id, "metadata": dict(metadata)}
        reply = self._call("POST", "/api/jobs/", json=body | {"runtime_env": {"env_vars": dict(env)}})
        if reply.status_code == 200 or self.status(submission_id) is not None:
            return
        lines = reply.text.strip().splitlines()  # of a traceback, whose last line is the error
        message = f"Ray does not take the job ({reply.status_code}): {lines[-1] if lines else 'no reason given'}"
        if reply.status_code >= 500:
            raise RayUnavailableError(message)
        raise RayRefusedError(message)

    def status(self, submission_id: str) -> str | None:
        """Return the state of a job, one of `RUNNING` or `OVER`; None if Ray does not know the job.

        Raises:
            RayAwayError: the cluster is unavailable.
        """
        job = self._job(submission_id)
        return None if job is None else str(job["status"])

    def message(self, submission_id: str) -> str:
        """Return Ray's message about a job, in one line; may be empty.

        Raises:
            RayAwayError: the cluster is unavailable.
        """
        text = str((self._job(submission_id) or {}).get("message") or "")
        lines = text.partition(", last available logs")[0].strip().splitlines()  # the service has the logs itself
        return lines[0][:300] if lines else ""

    def stop(self, submission_id: str) -> None:
        """Request a job to end; one that has ended or is unknown is left alone.

        Raises:
            RayAwayError: the cluster is unavailable.
        """
        self._call("POST", f"/api/jobs/{submission_id}/stop")

    def version(self) -> str:
        """Return the version of Ray. Raises `RayUnavailableError`."""
        return str(self._call("GET", "/api/version").json()["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """Return summaries of the cluster's nodes. Raises `RayUnavailableError`."""
        reply = self._call("GET", "/nodes", params={"view": "summary"})
        return list(reply.json()["data"]["summary"])

    def link(self, submission_id: str) -> str:
        """Return the URL of the job in Ray's dashboard."""
        return f"{self.url}/#/jobs/{submission_id}"

    def _job(self, submission_id: str) -> dict[str, Any] | None:
        reply = self._call("GET", f"/api/jobs/{submission_id}")
        if reply.status_code == 404:
            return None
        try:
            job = reply.json()
        except ValueError:  # a proxy, or a head that is shutting down, answers with HTML
            job = None
        if reply.status_code != 200 or not isinstance(job, dict) or "status" not in job:
            raise RayUnavailableError(f"Ray answers {reply.status_code} when asked for {submission_id}")
        return job

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            reply = self._client.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise RayUnavailableError(f"no answer from Ray at {self.url}: {error or type(error).__name__}") from error
        if reply.status_code in (401, 403):
            raise RayUnavailableError(
                f"Ray at {self.url} refuses the service ({reply.status_code}); set RAY_AUTH_TOKEN, RAY_AUTH_MODE to "
                f"the cluster's mode, or `ray_token_file` in the service's settings"
            )
        return reply
