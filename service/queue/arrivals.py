"""Jobs that come by themselves: slides that arrive under a watched prefix are scored, once per version of a slide, and
schedules submit their job again and again.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import sqlalchemy as sa
from croniter import croniter
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter

from magnet.config import CLOSED
from service import storage
from service.errors import MagnetError, NotFoundError
from service.folder import slides_under
from service.manifest import Slide
from service.queue.grants import groups_of, user_rights
from service.queue.requests import Model, Request, Score, Uri
from service.queue.store import JobStore
from service.queue.tables import DatabaseAwayError, arrived, recurring
from service.service_settings import ServiceSettings
from service.settings import to_dict

log = logging.getLogger(__name__)

MOST_SLIDES = 1000
"""Slides that one job takes; the others come with the next."""


def _is_cron(text: str) -> str:
    if not croniter.is_valid(text):
        raise ValueError("is no cron expression; five fields such as '0 2 * * *' for two every night, in UTC")
    return text


Cron = Annotated[str, StringConstraints(min_length=9, max_length=100), AfterValidator(_is_cron)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Score the slides that arrive in a folder."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    what: Literal["watch"] = "watch"
    folder: Uri
    """A path or a URI that can be listed."""
    model: Model = "models:/magnet@champion"
    """As of a scoring."""
    settle_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """Seconds that a slide must have stayed as it is: a slower upload may still go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Submit a job again and again."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    what: Literal["schedule"] = "schedule"
    cron: Cron
    """Minute, hour, day of month, month, day of week; UTC."""
    job: Request
    """What is submitted each time."""


Recurring = Annotated[Watch | Schedule, Field(discriminator="what")]
ADAPTER: TypeAdapter[Watch | Schedule] = TypeAdapter(Recurring)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A watch or schedule as it is kept."""

    seq: int
    id: str
    owner: str
    what: str
    body: str
    next_s: float
    note: str | None
    disabled: str | None
    groups: str

    def parsed(self) -> Watch | Schedule:
        """What it does."""
        return ADAPTER.validate_python(json.loads(self.body))


class Arrivals:
    """The watches and schedules of a service.

    Args:
        store: where their jobs go.
        settings: of the service.
    """

    def __init__(self, store: JobStore, settings: ServiceSettings) -> None:
        self._store, self._settings, self._database = store, settings, store.database
        self._seen: dict[tuple[str, str, str], float] = {}

    def add(
        self,
        asked: Watch | Schedule,
        owner: str,
        groups: Collection[str] = (),
        within: Callable[[sa.Connection, str], None] | None = None,
    ) -> Entry:
        """A new watch or schedule.

        Args:
            asked: what it does.
            owner: whose jobs it makes.
            groups: of the owner, as a login named them.
            within: called last in the same transaction, with the entry's id.
        """
        entry_id = f"{asked.what}-{uuid.uuid4().hex[:12]}"
        body = json.dumps(to_dict(asked), allow_nan=False)
        row = {"id": entry_id, "owner": owner, "what": asked.what, "body": body, "groups": json.dumps(sorted(groups))}
        with self._database.writing() as connection:
            connection.execute(recurring.insert().values(row | {"next_s": _next_s(asked, 0.0)}))
            if within is not None:
                within(connection, entry_id)
        return self.entry(entry_id)

    def entry(self, entry_id: str) -> Entry:
        """One of them. Raises `NotFoundError`."""
        found = [entry for entry in self.all() if entry.id == entry_id]
        if not found:
            raise NotFoundError(f"no watch or schedule {entry_id}")
        return found[0]

    def all(self, owner: str | None = None) -> list[Entry]:
        """All, or those of an owner."""
        query = sa.select(recurring).order_by(recurring.c.seq)
        query = query if owner is None else query.where(recurring.c.owner == owner)
        with self._database.reading() as connection:
            return [Entry(**row) for row in connection.execute(query).mappings()]

    def remove(self, entry_id: str, within: Callable[[sa.Connection, str], None] | None = None) -> None:
        """End one; its jobs go on."""
        with self._database.writing() as connection:
            connection.execute(recurring.delete().where(recurring.c.id == entry_id))
            if within is not None:
                within(connection, entry_id)

    def tick(self) -> None:
        """Do what is due."""
        now_s = time.time()
        for entry in self.all():
            if entry.next_s > now_s:
                continue
            asked = entry.parsed()
            try:
                note = self._watch(entry, asked) if isinstance(asked, Watch) else self._submit(entry, asked)
            except DatabaseAwayError:
                raise
            except MagnetError as error:
                note = f"failed: {error}"
                log.warning("%s: %s", entry.id, note)
            wait_s = self._settings.arrivals_s if isinstance(asked, Watch) else 0.0
            values = {"note": note, "next_s": _next_s(asked, wait_s)}
            with self._database.writing() as connection:
                connection.execute(recurring.update().where(recurring.c.id == entry.id).values(values))

    def _submit(self, entry: Entry, asked: Schedule) -> str:
        # The key is made of the time that was due: a crash after this line submits nothing twice.
        key = f"{entry.id}:{entry.next_s:.0f}"
        groups = json.loads(entry.groups)
        job, _ = self._store.add(asked.job, entry.owner, groups=groups, idempotency_key=key, source=entry.id)
        return f"submitted {job.id}"

    def _watch(self, entry: Entry, asked: Watch) -> str:
        """Submit a scoring of what has arrived and settled."""
        new = self._settled(entry, asked)[:MOST_SLIDES]
        if not new:
            return "nothing new"
        name = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(f"{slide.uri} {etag}" for slide, etag in new)).hex
        manifest = storage.join(self._settings.user_folder(entry.owner), f"watches/{entry.id}/{name}.csv")
        storage.write_bytes(manifest, _manifest([slide for slide, _ in new]))

        def note(connection: sa.Connection, job_id: str) -> None:
            """With the job or not at all: a crash neither forgets a slide nor scores it twice."""
            known = {"watch_id": entry.id, "job_id": job_id, "at_s": time.time()}
            rows = [known | {"uri": slide.uri, "etag": etag} for slide, etag in new]
            connection.execute(arrived.insert(), rows)

        request = Score(manifest=manifest, model=asked.model)
        groups = json.loads(entry.groups)
        job, _ = self._store.add(request, entry.owner, groups=groups, source=entry.id, within=note)
        return f"submitted {job.id} with {len(new)} slide(s)"

    def _settled(self, entry: Entry, asked: Watch) -> list[tuple[Slide, str]]:
        """Slides that no job has had, and that have not changed for a while."""
        query = sa.select(arrived.c.uri, arrived.c.etag).where(arrived.c.watch_id == entry.id)
        with self._database.reading() as connection:
            known = {(uri, etag) for uri, etag in connection.execute(query)}
        # Again at each look: a right may have been taken away, or a link put in the folder's place.
        groups = groups_of(self._settings, entry.owner, json.loads(entry.groups))
        user_rights(self._settings, entry.owner, groups).require(asked.folder)
        if not storage.list_uris(asked.folder.rstrip("/")):
            return []
        found = []
        for slide in slides_under(asked.folder)[0].slides:
            _, etag = storage.stat(slide.uri)
            first_s = self._seen.setdefault((entry.id, slide.uri, etag), time.monotonic())
            if (slide.uri, etag) not in known and time.monotonic() - first_s >= asked.settle_s:
                found.append((slide, etag))
        return found


def _next_s(asked: Watch | Schedule, wait_s: float) -> float:
    """When it is due next: a watch after a pause, a schedule as its expression says."""
    if isinstance(asked, Watch):
        return time.time() + wait_s
    return float(croniter(asked.cron, datetime.fromtimestamp(time.time(), UTC)).get_next(float))


def _manifest(slides: list[Slide]) -> bytes:
    text = io.StringIO()
    rows: list[Any] = [("slide_id", "uri"), *((slide.slide_id, slide.uri) for slide in slides)]
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
