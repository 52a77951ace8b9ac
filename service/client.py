"""A typed client of the service's API.

with Client("http://127.0.0.1:8290", token) as client:
    job = client.submit(Check(manifest="s3://bucket/cohort.csv"))
    print(client.wait(job.id).state)
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import httpx2

from service.api.views import JobPage, JobView, NewToken, RecurringView
from service.errors import MagnetError
from service.queue.arrivals import Schedule, Watch
from service.queue.job import ENDED
from service.queue.requests import Check, Score, Train, Tune, to_json
from service.settings import to_dict

PATIENCE_S = 20.0
"""Seconds."""
TIMEOUT = httpx2.Timeout(60.0, connect=5.0)


class ServiceError(MagnetError):
    """The service refused, or did not answer. To act: as `to_do` says.

    Args:
        message: what was wrong.
        status: of HTTP; 0 where there was no answer.
        to_do: what to do about it.
    """

    def __init__(self, message: str, *, status: int = 0, to_do: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.status, self.to_do = status, to_do

    def __str__(self) -> str:
        return f"{self.message}; {self.to_do}" if self.to_do else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _service_error, (self.message, self.status, self.to_do)


def _service_error(message: str, status: int, to_do: str) -> ServiceError:
    return ServiceError(message, status=status, to_do=to_do)


class Client:
    """A connection to a service.

    Args:
        url: of the service.
        token: with a scope for what is asked.
        patience_s: seconds in which a request is tried again while the service does not answer.
        transport: another way to it, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url, self._patience_s = url.rstrip("/"), patience_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def submit(
        self, job: Check | Train | Tune | Score, *, priority: int = 0, max_attempts: int = 5, key: str | None = None
    ) -> JobView:
        """Submit a job. Without a key one is made up, so that a request that is sent twice makes one job."""
        body = {"job": json.loads(to_json(job)), "priority": priority, "max_attempts": max_attempts}
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return JobView.model_validate(self._call("POST", "/v1/jobs", json=body, headers=headers).json())

    def jobs(
        self, *, state: str | None = None, kind: str | None = None, before: int | None = None, limit: int = 50
    ) -> JobPage:
        """Jobs, newest first."""
        asked = {"state": state, "kind": kind, "before": before, "limit": limit}
        known = {name: value for name, value in asked.items() if value is not None}
        return JobPage.model_validate(self._call("GET", "/v1/jobs", params=known).json())

    def job(self, job_id: str) -> JobView:
        """A job in full."""
        return JobView.model_validate(self._call("GET", f"/v1/jobs/{job_id}").json())

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job."""
        return JobView.model_validate(self._call("POST", f"/v1/jobs/{job_id}/cancel").json())

    def retry(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again."""
        return JobView.model_validate(self._call("POST", f"/v1/jobs/{job_id}/retry").json())

    def prioritise(self, job_id: str, priority: int) -> JobView:
        """Change a waiting job's priority."""
        return JobView.model_validate(
            self._call("POST", f"/v1/jobs/{job_id}/priority", json={"priority": priority}).json()
        )

    def wait(self, job_id: str, *, timeout_s: float = float("inf"), look_s: float = 1.0) -> JobView:
        """The job once it has ended.

        Raises:
            TimeoutError: it has not.
        """
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id)).state not in ENDED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(look_s)
        return job

    def logs(self, job_id: str, *, attempt: int | None = None, follow: bool = False) -> Iterator[str]:
        """A job's log, piece by piece."""
        asked: dict[str, Any] = {"follow": follow} | ({"attempt": attempt} if attempt else {})
        with self._stream(f"/v1/jobs/{job_id}/logs", asked) as reply:
            yield from reply.iter_text()

    def scores(self, job_id: str, form: Literal["json", "parquet", "csv"] = "csv") -> bytes:
        """A scoring's table."""
        return self._call("GET", f"/v1/jobs/{job_id}/scores", params={"format": form}).content

    def slide(self, job_id: str, slide_id: str, what: Literal["picture", "overlay", "geojson"] = "picture") -> bytes:
        """A slide's zoom tree (JPEG), its regions on the thumbnail (JPEG), or the regions as GeoJSON."""
        return self._call("GET", f"/v1/jobs/{job_id}/slides/{slide_id}/{what}").content

    def recurring(self) -> list[RecurringView]:
        """Watches and schedules."""
        return [RecurringView.model_validate(one) for one in self._call("GET", "/v1/recurring").json()]

    def add_recurring(self, asked: Watch | Schedule) -> RecurringView:
        """Watch a folder, or submit a job on a schedule."""
        return RecurringView.model_validate(self._call("POST", "/v1/recurring", json=to_dict(asked), once=True).json())

    def remove_recurring(self, entry_id: str) -> None:
        """End a watch or schedule."""
        self._call("DELETE", f"/v1/recurring/{entry_id}")

    def new_token(self, owner: str, scope: str, days: float | None = None) -> NewToken:
        """Make a token; for admins."""
        body = {"owner": owner, "scope": scope, "days": days}
        return NewToken.model_validate(self._call("POST", "/v1/tokens", json=body, once=True).json())

    def _call(self, method: str, path: str, *, once: bool = False, **options: Any) -> httpx2.Response:
        """An answer. What may be repeated is, while nobody answers."""
        deadline = time.monotonic() + (0 if once else self._patience_s)
        while True:
            try:
                reply = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                if time.monotonic() > deadline:
                    raise self._no_answer(error) from error
            else:
                if reply.status_code != 503 or time.monotonic() > deadline:
                    return _checked(reply)
            time.sleep(0.5)

    @contextmanager
    def _stream(self, path: str, asked: dict[str, Any]) -> Iterator[httpx2.Response]:
        try:
            with self._http.stream("GET", path, params=asked, timeout=httpx2.Timeout(None, connect=5.0)) as reply:
                if reply.status_code >= 400:
                    reply.read()
                yield _checked(reply)
        except httpx2.TransportError as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> ServiceError:
        why = str(error) or type(error).__name__
        return ServiceError(
            f"no answer from {self.url}: {why}",
            to_do="start the service (magnet serve), or set MAGNET_URL to where it is",
        )


def _checked(reply: httpx2.Response) -> httpx2.Response:
    if reply.status_code < 400:
        return reply
    if reply.headers.get("content-type") != "application/problem+json":
        raise ServiceError(f"answered {reply.status_code}: {reply.text[:200]}", status=reply.status_code)
    body = reply.json()
    raise ServiceError(body["detail"], status=reply.status_code, to_do=body["to_do"])
