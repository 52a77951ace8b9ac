"""A typed client of the service's API.

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

from service.api.answers import (
    Answer,
    JobPage,
    JobView,
    LoginOffer,
    NewToken,
    Promoted,
    RecurringView,
    TokenView,
    WhoAmI,
)
from service.client.connection import PATIENCE_S, Connection, ServiceError
from service.client.follow import LogPiece, follow_log, read_log
from service.errors import UsageError
from service.queue.job import ENDED

if TYPE_CHECKING:  # they load the settings of all jobs, which most commands do not need
    from service.queue.arrivals import Schedule, Watch
    from service.queue.requests import Check, Score, Train, Tune

AnswerKind = TypeVar("AnswerKind", bound=Answer)

__all__ = ["Client", "JobEvent", "ServiceError"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """An event of a job; `at_s` in seconds since 1970."""

    seq: int
    at_s: float
    state: str
    text: str


class Client:
    """A client of a service.

    Args:
        url: of the service.
        token: with the scope that the requests need.
        patience_s: seconds in which a request is repeated while the service does not answer.
        transport: replaces the network, for tests.
        report: called with a message when a request is repeated, once per outage.
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
        """Check that a service answers at this URL. Raises `ServiceError`."""
        reply = self._call("GET", "/healthz")
        if reply.content.replace(b" ", b"") != b'{"status":"alive"}':
            raise _foreign(reply)

    def submit(
        self, job: Check | Train | Tune | Score, *, priority: int = 0, max_attempts: int = 5, key: str | None = None
    ) -> JobView:
        """Submit a job. Without a key a random one is sent, so that a request that is sent twice makes one job."""
        body = {"job": _plain(job), "priority": priority, "max_attempts": max_attempts}
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return _parsed(JobView, self._call("POST", "/v1/jobs", json=body, headers=headers))

    def jobs(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        owner: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Jobs, newest first; `owner` is for admins."""
        asked = {"state": state, "kind": kind, "owner": owner, "before": before, "limit": limit}
        known = {name: value for name, value in asked.items() if value is not None}
        return _parsed(JobPage, self._call("GET", "/v1/jobs", params=known))

    def job(self, job_id: str, *, patience_s: float | None = None) -> JobView:
        """A job in full."""
        return _parsed(JobView, self._call("GET", _job(job_id), patience_s=patience_s))

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job."""
        return _parsed(JobView, self._call("POST", f"{_job(job_id)}/cancel"))

    def retry(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again."""
        return _parsed(JobView, self._call("POST", f"{_job(job_id)}/retry", once=True))

    def delete(self, job_id: str) -> None:
        """Delete an ended job with its logs and results; the service does so within minutes."""
        self._call("DELETE", _job(job_id))

    def prioritise(self, job_id: str, priority: int) -> JobView:
        """Change a waiting job's priority."""
        return _parsed(JobView, self._call("POST", f"{_job(job_id)}/priority", json={"priority": priority}))

    def wait(self, job_id: str, *, timeout_s: float = float("inf"), look_s: float = 1.0) -> JobView:
        """The job once it has ended. After the first answer, restarts of the service are waited for.

        Raises:
            TimeoutError: it has not ended in time.
        """
        deadline = time.monotonic() + timeout_s
        job = self.job(job_id)
        while job.state not in ENDED:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(min(look_s, left_s))
            job = self.job(job_id, patience_s=max(left_s, self._connection.patience_s))
        return job

    def logs(self, job_id: str, *, attempt: int | None = None, follow: bool = False) -> Iterator[str]:
        """A job's log, piece by piece.

        Args:
            job_id: of the job.
            attempt: None: the newest; with `follow` also those after it.
            follow: until the job has ended, through restarts of the service.
        """
        return (follow_log if follow else read_log)(self, job_id, attempt)

    def log_piece(self, job_id: str, *, attempt: int | None, offset: int, patience_s: float | None = None) -> LogPiece:
        """The bytes of an attempt's log from `offset` on, as many as the service sends at once."""
        asked = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        reply = self._call("GET", f"{_job(job_id)}/logs", params=asked, patience_s=patience_s)
        try:
            number, next_offset = int(reply.headers["X-Log-Attempt"]), int(reply.headers["X-Log-Next"])
        except (KeyError, ValueError) as error:
            raise ServiceError(
                f"{self.url} does not say where its log continues", to_do="install the service's newer version"
            ) from error
        return LogPiece(attempt=number, data=reply.content, next_offset=next_offset)

    def events(self, job_id: str, *, after: int = 0, patience_s: float | None = None) -> list[JobEvent]:
        """Events of a job after the one with the number `after`, oldest first."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        asked = {"follow": "false"}
        reply = self._call("GET", f"{_job(job_id)}/events", params=asked, headers=headers, patience_s=patience_s)
        found = []
        try:
            for event in httpx2.EventSource(reply):
                body = json.loads(event.data)
                found.append(JobEvent(seq=int(event.id), at_s=body["at_s"], state=body["state"], text=body["text"]))
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise _foreign(reply) from error
        return found

    def scores(self, job_id: str, form: Literal["json", "parquet", "csv"] = "csv") -> bytes:
        """A scoring's table."""
        return self._call("GET", f"{_job(job_id)}/scores", params={"format": form}).content

    def report(self, job_id: str) -> bytes:
        """A scoring's report, HTML."""
        return self._call("GET", f"{_job(job_id)}/report").content

    def best(self, job_id: str) -> bytes:
        """The config of a search's best schedule, YAML."""
        return self._call("GET", f"{_job(job_id)}/best").content

    def slide(self, job_id: str, slide_id: str, what: Literal["picture", "overlay", "geojson"] = "picture") -> bytes:
        """A slide's zoom tree (JPEG), its regions on the thumbnail (JPEG), or the regions as GeoJSON."""
        return self._call("GET", f"{_job(job_id)}/slides/{quote(slide_id, safe='')}/{what}").content

    def recurring(self) -> list[RecurringView]:
        """Watches and schedules."""
        return _parsed_list(RecurringView, self._call("GET", "/v1/recurring"))

    def add_recurring(self, asked: Watch | Schedule) -> RecurringView:
        """Watch a folder, or submit a job on a schedule."""
        return _parsed(RecurringView, self._call("POST", "/v1/recurring", json=_plain(asked), once=True))

    def remove_recurring(self, entry_id: str) -> None:
        """End a watch or schedule."""
        self._call("DELETE", f"/v1/recurring/{quote(entry_id, safe='')}")

    def promote(self, model: str, alias: str) -> Promoted:
        """Give a model version an alias."""
        body = {"model": model, "alias": alias}
        return _parsed(Promoted, self._call("POST", "/v1/models/promote", json=body))

    def whoami(self) -> WhoAmI:
        """Owner, scope, groups and end of this client's token, and the limits in force."""
        return _parsed(WhoAmI, self._call("GET", "/v1/whoami"))

    def new_token(self, owner: str, scope: str, days: float | Literal["never"] | None = None) -> NewToken:
        """Make a token; for admins.

        Args:
            owner: of the token.
            scope: read, submit, promote or admin.
            days: until it expires; None: as many as the service gives.
        """
        end = {} if days is None else {"days": None if days == "never" else days}
        body = {"owner": owner, "scope": scope} | end
        return _parsed(NewToken, self._call("POST", "/v1/tokens", json=body, once=True))

    def tokens(self) -> list[TokenView]:
        """Tokens, without their secrets."""
        return _parsed_list(TokenView, self._call("GET", "/v1/tokens"))

    def revoke(self, token_id: str) -> None:
        """End a token at once."""
        self._call("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")

    def rotate(self, grace_s: float) -> NewToken:
        """Replace this client's token by a new one; the old one is valid for `grace_s` more seconds."""
        return _parsed(NewToken, self._call("POST", "/v1/tokens/rotate", json={"grace_s": grace_s}, once=True))

    def audit(self, *, after: int = 0, limit: int = 1000) -> list[str]:
        """Rows of the audit log after the one with the number `after`, each as a line of JSON; for admins."""
        asked: dict[str, Any] = {"after": after, "limit": limit, "format": "jsonl"}
        return [line for line in self._call("GET", "/v1/audit", params=asked).text.split("\n") if line]

    def login_offer(self) -> LoginOffer:
        """The OpenID Connect provider at which users log in."""
        return _parsed(LoginOffer, self._call("GET", "/v1/login"))

    def login(self, id_token: str) -> NewToken:
        """A token of the service for an ID token of the provider."""
        return _parsed(NewToken, self._call("POST", "/v1/login", json={"id_token": id_token}, once=True))


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _parsed(kind: type[AnswerKind], reply: httpx2.Response) -> AnswerKind:
    try:
        return kind.model_validate_json(reply.content)
    except ValueError as error:
        raise _foreign(reply) from error


def _parsed_list(kind: type[AnswerKind], reply: httpx2.Response) -> list[AnswerKind]:
    try:
        return [kind.model_validate(part) for part in reply.json()]
    except (ValueError, TypeError) as error:
        raise _foreign(reply) from error


def _foreign(reply: httpx2.Response) -> ServiceError:
    """The error of an answer that this service would not give: a login page of a network, another program."""
    return ServiceError(
        f"{reply.url} sent an answer that this program cannot read",
        to_do="check MAGNET_URL, and that service and program have the same version",
    )


def _plain(asked: Check | Train | Tune | Score | Watch | Schedule) -> Any:
    """A request as plain values.

    Raises:
        UsageError: a number is not finite, which JSON cannot hold.
    """
    from service.settings.parsing import to_dict  # noqa: PLC0415  (loaded already by the code that made `asked`)

    try:
        return json.loads(json.dumps(to_dict(asked), allow_nan=False))
    except ValueError as error:
        raise UsageError("a setting is not a finite number; write one that is") from error
