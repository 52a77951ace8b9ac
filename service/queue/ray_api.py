"""Ray's Jobs API over HTTP, as far as the queue needs it.

Source: the REST reference of Ray Jobs; `POST /api/jobs/` takes a submission id once, and answers 500 the second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from service import environment, storage
from service.errors import MagnetError, UsageError

TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
RUNNING, OVER = ("PENDING", "RUNNING"), ("STOPPED", "SUCCEEDED", "FAILED")
"""What Ray says of a job."""


class RayAwayError(MagnetError):
    """The cluster does not answer. To act: its operator. A retry can help."""


class RayRefusedError(UsageError):
    """The cluster does not take the job. To act: the service's operator, as the message says."""


class RayJobs:
    """A cluster's jobs.

    Args:
        url: of its dashboard.
        token_file: of a cluster with token authentication; None: as the environment says.
    """

    def __init__(self, url: str, token_file: str | None = None) -> None:
        self.url = url.rstrip("/")
        token = environment.ray_token() if token_file is None else storage.read_bytes(token_file).decode().strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        verify = self.url.startswith("https://")  # without TLS loading the CA certificates is for nothing
        self._client = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False, verify=verify
        )

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str], about: Mapping[str, str]) -> None:
        """Start a job; one that was submitted before under this id is left as it is.

        Raises:
            RayAwayError: the cluster does not answer.
            RayRefusedError: it does not take the job.
        """
        body = {"entrypoint": entrypoint, "submission_id": submission_id, "metadata": dict(about)}
        reply = self._call("POST", "/api/jobs/", json=body | {"runtime_env": {"env_vars": dict(env)}})
        if reply.status_code == 200 or self.status(submission_id) is not None:
            return
        said = reply.text.strip().splitlines()
        message = f"Ray does not take the job ({reply.status_code}): {said[-1] if said else 'no reason given'}"
        if reply.status_code >= 500:
            raise RayAwayError(message)
        raise RayRefusedError(message)

    def status(self, submission_id: str) -> str | None:
        """One of `RUNNING` or `OVER`; None if Ray does not know the job.

        Raises:
            RayAwayError: the cluster does not answer.
        """
        known = self._job(submission_id)
        return None if known is None else str(known["status"])

    def message(self, submission_id: str) -> str:
        """What Ray says of a job, in one line; empty if nothing.

        Raises:
            RayAwayError: the cluster does not answer.
        """
        text = str((self._job(submission_id) or {}).get("message") or "")
        first = text.partition(", last available logs")[0].strip().splitlines()  # those are the job's own
        return first[0][:300] if first else ""

    def stop(self, submission_id: str) -> None:
        """WindowRequest a job to end; one that is over or unknown stays so.

        Raises:
            RayAwayError: the cluster does not answer.
        """
        self._call("POST", f"/api/jobs/{submission_id}/stop")

    def version(self) -> str:
        """Ray's version. Raises `RayAwayError`."""
        return str(self._call("GET", "/api/version").json()["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """Summaries of the cluster's nodes. Raises `RayAwayError`."""
        reply = self._call("GET", "/nodes", params={"view": "summary"})
        return list(reply.json()["data"]["summary"])

    def link(self, submission_id: str) -> str:
        """Where a person sees the job."""
        return f"{self.url}/#/jobs/{submission_id}"

    def _job(self, submission_id: str) -> dict[str, Any] | None:
        reply = self._call("GET", f"/api/jobs/{submission_id}")
        if reply.status_code == 404:
            return None
        try:
            known = reply.json()
        except ValueError:  # of a proxy, or of a head that is shutting down
            known = None
        if reply.status_code != 200 or not isinstance(known, dict) or "status" not in known:
            raise RayAwayError(f"Ray answers {reply.status_code} when asked for {submission_id}")
        return known

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            reply = self._client.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise RayAwayError(f"no answer from Ray at {self.url}: {error or type(error).__name__}") from error
        if reply.status_code in (401, 403):
            raise RayAwayError(
                f"Ray at {self.url} refuses us ({reply.status_code}); set RAY_AUTH_TOKEN, RAY_AUTH_MODE to the "
                f"cluster's mode, or `ray_token_file` in the service's settings"
            )
        return reply
