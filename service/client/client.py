"""A typed client of the API.

with Client("http://127.0.0.1:8290", token) as client:
    job = client.submit(Check(manifest="s3://bucket/cohort.csv"))
    print(client.wait(job.id).state)
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2

from service.api.response_bodies import (
    JobPage,
    JobView,
    LoginOffer,
    NewToken,
    Promoted,
    RecurringView,
    ResponseBody,
    TokenView,
    WhoAmI,
)
from service.client.connection import PATIENCE_S, Connection, ServiceError
from service.client.follow import LogPiece, follow_log, read_log
from service.errors import UsageError
from service.queue.job import ENDED

if TYPE_CHECKING:  # these load the settings of all jobs, which most commands do not need
    from service.queue.arrivals import Schedule, Watch
    from service.queue.requests import Check, Score, Train, Tune

BodyKind = TypeVar("BodyKind", bound=ResponseBody)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """An event of a job."""

    seq: int
    """Number of the event."""
    at_s: float
    """Time of the event, in seconds since 1970."""
    state: str
    """State of the job after the event."""
    text: str
    """Description of the event."""


class Client:
    """A client of a service.

    Args:
        url: URL of the service.
        token: token with the scope that the requests need; None: no token.
        patience_s: seconds for which a request is repeated while the service does not respond.
        transport: replaces the network, for tests.
        report: called with a message when a request is repeated, once per outage.

    Raises:
        UsageError: the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx2.BaseTransport | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._connection = Connection(url, token, patience_s=patience_s, transport=transport, report=report)
        self.url, self._call = self._connection.url, self._connection.call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._connection.close()

    def alive(self) -> None:
        """Check that a service responds at this URL. Raises `ServiceError`."""
        response = self._call("GET", "/healthz")
        # A network's login page may respond with status 200 too.
        if response.content.replace(b" ", b"") != b'{"status":"alive"}':
            raise _make_foreign_error(response)

    def submit(
        self, job: Check | Train | Tune | Score, *, priority: int = 0, max_attempts: int = 5, key: str | None = None
    ) -> JobView:
        """Submit a job.

        Args:
            job: the job.
            priority: priority among the caller's jobs, -10 to 10; a higher one starts earlier.
            max_attempts: maximum number of attempts, 1 to 100.
            key: idempotency key: a repeated key returns the first job. None: a random key, so that a request that this
                client repeats creates one job.
        """
        body = {"job": _to_plain(job), "priority": priority, "max_attempts": max_attempts}
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return _parse(JobView, self._call("POST", "/v1/jobs", json=body, headers=headers))

    def jobs(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        owner: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Return a page of jobs, newest first.

        Args:
            state: only jobs in this state; None: all.
            kind: only jobs of this kind; None: all.
            owner: only jobs of this user, for administrators; None: all that the caller may see.
            before: `next` of the previous page; None: the first page.
            limit: maximum number of jobs, 1 to 500.
        """
        options = {"state": state, "kind": kind, "owner": owner, "before": before, "limit": limit}
        params = {name: value for name, value in options.items() if value is not None}
        return _parse(JobPage, self._call("GET", "/v1/jobs", params=params))

    def job(self, job_id: str, *, patience_s: float | None = None) -> JobView:
        """Return a job with its request, attempts and links."""
        return _parse(JobView, self._call("GET", _job_path(job_id), patience_s=patience_s))

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job."""
        # Cancelling twice equals cancelling once, so this request may be repeated; `once` marks those that may not.
        return _parse(JobView, self._call("POST", f"{_job_path(job_id)}/cancel"))

    def retry(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again."""
        return _parse(JobView, self._call("POST", f"{_job_path(job_id)}/retry", once=True))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its logs and results; the service does so within minutes."""
        self._call("DELETE", _job_path(job_id))

    def prioritise(self, job_id: str, priority: int) -> JobView:
        """Change the priority of a queued job, -10 to 10."""
        return _parse(JobView, self._call("POST", f"{_job_path(job_id)}/priority", json={"priority": priority}))

    def wait(self, job_id: str, *, timeout_s: float = float("inf"), look_s: float = 1.0) -> JobView:
        """Wait until a job has ended, and return it. After the first response, the service may restart.

        Args:
            job_id: ID of the job.
            timeout_s: maximum seconds to wait.
            look_s: seconds between two requests.

        Raises:
            TimeoutError: the job has not ended in time.
        """
        deadline_s = time.monotonic() + timeout_s
        job = self.job(job_id)
        while job.state not in ENDED:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(min(look_s, left_s))
            # An outage of the service must not end the wait before its timeout.
            job = self.job(job_id, patience_s=max(left_s, self._connection.patience_s))
        return job

    def logs(self, job_id: str, *, attempt: int | None = None, follow: bool = False) -> Iterator[str]:
        """Return a job's log, piece by piece.

        Args:
            job_id: ID of the job.
            attempt: number of the attempt; None: the newest attempt, with `follow` also later ones.
            follow: whether to continue until the job has ended, through restarts of the service.
        """
        return (follow_log if follow else read_log)(self, job_id, attempt)

    def log_piece(self, job_id: str, *, attempt: int | None, offset: int, patience_s: float | None = None) -> LogPiece:
        """Return the bytes of an attempt's log from `offset` on, as many as the service sends in one response.

        Args:
            job_id: ID of the job.
            attempt: number of the attempt; None: the newest attempt.
            offset: first byte.
            patience_s: replaces the client's `patience_s`.
        """
        params = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        response = self._call("GET", f"{_job_path(job_id)}/logs", params=params, patience_s=patience_s)
        try:
            number, next_offset = int(response.headers["X-Log-Attempt"]), int(response.headers["X-Log-Next"])
        except (KeyError, ValueError) as error:
            raise ServiceError(
                f"{self.url} does not say where its log continues",
                to_do="upgrade the service to this program's version",
            ) from error
        return LogPiece(attempt=number, data=response.content, next_offset=next_offset)

    def events(self, job_id: str, *, after: int = 0, patience_s: float | None = None) -> list[JobEvent]:
        """Return events of a job, oldest first.

        Args:
            job_id: ID of the job.
            after: number of the last known event; 0: none.
            patience_s: replaces the client's `patience_s`.
        """
        headers = {"Last-Event-ID": str(after)} if after else {}
        # Polling instead of one long response, so that broken connections lose nothing.
        params = {"follow": "false"}
        response = self._call(
            "GET", f"{_job_path(job_id)}/events", params=params, headers=headers, patience_s=patience_s
        )
        events = []
        try:
            for event in httpx2.EventSource(response):
                body = json.loads(event.data)
                events.append(JobEvent(seq=int(event.id), at_s=body["at_s"], state=body["state"], text=body["text"]))
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise _make_foreign_error(response) from error
        return events

    def scores(self, job_id: str, form: Literal["json", "parquet", "csv"] = "csv") -> bytes:
        """Return the score table of a scoring."""
        return self._call("GET", f"{_job_path(job_id)}/scores", params={"format": form}).content

    def report(self, job_id: str) -> bytes:
        """Return the report of a scoring, as HTML."""
        return self._call("GET", f"{_job_path(job_id)}/report").content

    def best(self, job_id: str) -> bytes:
        """Return the best settings that a search has found, as YAML."""
        return self._call("GET", f"{_job_path(job_id)}/best").content

    def slide(self, job_id: str, slide_id: str, what: Literal["picture", "overlay", "geojson"] = "picture") -> bytes:
        """Return a slide's zoom tree (JPEG), its regions on the thumbnail (JPEG), or its regions as GeoJSON."""
        return self._call("GET", f"{_job_path(job_id)}/slides/{quote(slide_id, safe='')}/{what}").content

    def recurring(self) -> list[RecurringView]:
        """Return watches and schedules."""
        return _parse_list(RecurringView, self._call("GET", "/v1/recurring"))

    def add_recurring(self, entry: Watch | Schedule) -> RecurringView:
        """Watch a folder for new slides, or submit a job on a schedule."""
        return _parse(RecurringView, self._call("POST", "/v1/recurring", json=_to_plain(entry), once=True))

    def remove_recurring(self, entry_id: str) -> None:
        """Remove a watch or schedule; jobs that it has submitted continue."""
        self._call("DELETE", f"/v1/recurring/{quote(entry_id, safe='')}")

    def promote(self, model: str, alias: str) -> Promoted:
        """Point an alias at a registered model.

        Args:
            model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
            alias: the alias to set.
        """
        body = {"model": model, "alias": alias}
        return _parse(Promoted, self._call("POST", "/v1/models/promote", json=body))

    def whoami(self) -> WhoAmI:
        """Return owner, scope, groups and end of this client's token, and the limits with their usage."""
        return _parse(WhoAmI, self._call("GET", "/v1/whoami"))

    def new_token(self, owner: str, scope: str, days: float | Literal["never"] | None = None) -> NewToken:
        """Create a token; for administrators.

        Args:
            owner: user who owns the token.
            scope: read, submit, promote or admin.
            days: lifetime in days; None: the service's default.
        """
        # An omitted lifetime is the service's default; null means no end.
        end = {} if days is None else {"days": None if days == "never" else days}
        body = {"owner": owner, "scope": scope} | end
        return _parse(NewToken, self._call("POST", "/v1/tokens", json=body, once=True))

    def tokens(self) -> list[TokenView]:
        """Return tokens, without their secrets."""
        return _parse_list(TokenView, self._call("GET", "/v1/tokens"))

    def revoke(self, token_id: str) -> None:
        """Revoke a token; it is refused from the next request on."""
        self._call("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")

    def rotate(self, grace_s: float) -> NewToken:
        """Replace this client's token by a new one; the old one stays valid for `grace_s` seconds."""
        return _parse(NewToken, self._call("POST", "/v1/tokens/rotate", json={"grace_s": grace_s}, once=True))

    def audit(self, *, after: int = 0, limit: int = 1000) -> list[str]:
        """Return rows of the audit log, each as a line of JSON; for administrators.

        Args:
            after: number of the last known row; 0: none.
            limit: maximum number of rows, 1 to 1000.
        """
        params: dict[str, Any] = {"after": after, "limit": limit, "format": "jsonl"}
        return [line for line in self._call("GET", "/v1/audit", params=params).text.split("\n") if line]

    def login_offer(self) -> LoginOffer:
        """Return the OpenID Connect provider at which users log in."""
        return _parse(LoginOffer, self._call("GET", "/v1/login"))

    def login(self, id_token: str) -> NewToken:
        """Exchange an ID token of the provider for a token of the service."""
        return _parse(NewToken, self._call("POST", "/v1/login", json={"id_token": id_token}, once=True))


def _job_path(job_id: str) -> str:
    # A slash in an ID must not lead to another route.
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _parse(kind: type[BodyKind], response: httpx2.Response) -> BodyKind:
    try:
        return kind.model_validate_json(response.content)
    except ValueError as error:
        raise _make_foreign_error(response) from error


def _parse_list(kind: type[BodyKind], response: httpx2.Response) -> list[BodyKind]:
    try:
        return [kind.model_validate(part) for part in response.json()]
    except (ValueError, TypeError) as error:
        raise _make_foreign_error(response) from error


def _make_foreign_error(response: httpx2.Response) -> ServiceError:
    """Return the error for a response that is not the service's, such as the login page of a network."""
    return ServiceError(
        f"{response.url} sent a response that this program cannot read",
        to_do="check that MAGNET_URL is the address of the service, and that service and program have the same version",
    )


def _to_plain(request: Check | Train | Tune | Score | Watch | Schedule) -> Any:
    """Return a request as plain values.

    Raises:
        UsageError: a number is not finite, which JSON cannot express.
    """
    from service.settings.parsing import to_dict  # noqa: PLC0415  (loaded already by the code that made `request`)

    try:
        return json.loads(json.dumps(to_dict(request), allow_nan=False))
    except ValueError as error:
        raise UsageError("a setting is NaN or infinite; set it to a finite number") from error
