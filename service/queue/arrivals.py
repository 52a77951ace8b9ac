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
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import sqlalchemy as sa
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter

from magnet.config import CLOSED
from service import storage
from service.cohort.folder import slides_under
from service.cohort.manifest import Slide
from service.errors import MagnetError, NotFoundError, UsageError
from service.queue.cron import next_time_s, require_cron, smallest_gap_s
from service.queue.grants import groups_of, user_rights
from service.queue.incidents import describe
from service.queue.job_rows import TooManyJobsError, clean
from service.queue.lease import LeaseLostError
from service.queue.quotas import effective
from service.queue.requests import Model, Request, Score, Uri
from service.queue.store import JobStore
from service.queue.tables import DatabaseAwayError, DatabaseCorruptError, arrived, lock, recurring
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings
from service.storage.rights import held

log = logging.getLogger(__name__)

MOST_SLIDES = 1000
"""Slides that one job takes; the others come with the next."""


LATE = 0.1
"""Of the smallest interval: a job that comes later than this by a busy or restarted dispatcher moves the next one."""
LONGEST_URI, LONGEST_ETAG = 1000, 200
"""As the table `arrived` takes them."""

Cron = Annotated[str, StringConstraints(min_length=9, max_length=100), AfterValidator(require_cron)]


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
    """Minute, hour, day of month, month, day of week; UTC. Times closer than `min_interval_s` are refused."""
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
        """What it does. Raises `ValueError` if the row is damaged, or made by another version."""
        return ADAPTER.validate_python(json.loads(self.body))


class Arrivals:
    """The watches and schedules of a service.

    Args:
        store: where their jobs go.
        settings: of the service.
    """

    def __init__(self, store: JobStore, settings: ServiceSettings) -> None:
        self._store, self._settings, self._database = store, settings, store.database
        self._seen: dict[str, dict[tuple[str, str], float]] = {}  # of each watch: when a version was first seen

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

        Raises:
            UsageError: the times of a schedule are too close.
            TooManyJobsError: the owner has as many as the quota allows.
        """
        now_s = time.time()
        if isinstance(asked, Schedule):
            _require_interval(asked.cron, self._settings.min_interval_s, now_s)
        most = effective(self._settings, owner, groups).max_recurring
        entry_id = f"{asked.what}-{uuid.uuid4().hex[:12]}"
        body = json.dumps(to_dict(asked), allow_nan=False)
        row = {"id": entry_id, "owner": owner, "what": asked.what, "body": body, "groups": json.dumps(sorted(groups))}
        next_s = next_time_s(asked.cron, now_s) if isinstance(asked, Schedule) else now_s
        with self._store.writing() as connection:
            lock(connection, f"recurring of {owner}")  # two at once must not both be the last that the quota allows
            query = sa.select(sa.func.count()).where(recurring.c.owner == owner)
            if (connection.scalar(query) or 0) >= most:
                raise TooManyJobsError(f"{owner} has {most} watches and schedules, the most allowed; remove one first")
            connection.execute(recurring.insert().values(row | {"next_s": next_s}))
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
        with self._store.writing() as connection:
            connection.execute(recurring.delete().where(recurring.c.id == entry_id))
            connection.execute(arrived.delete().where(arrived.c.watch_id == entry_id))
            if within is not None:
                within(connection, entry_id)

    def tick(self) -> None:
        """Do what is due. An entry that fails in a way nobody expects is disabled with the reason; the others go on.

        Raises:
            DatabaseAwayError, DatabaseCorruptError, LeaseLostError: no entry can be worked on.
        """
        now_s = time.time()
        for entry in self.all():
            if entry.next_s > now_s or entry.disabled is not None:
                continue
            try:
                values = self._done(entry, entry.parsed(), now_s)
            except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # one damaged entry must not end the dispatcher
                log.exception("%s of %s is disabled", entry.id, entry.owner)
                values = {"disabled": clean(f"{describe(error)}; remove it and add it again", 500)}
            with self._store.writing() as connection:
                connection.execute(recurring.update().where(recurring.c.id == entry.id).values(values))

    def _done(self, entry: Entry, asked: Watch | Schedule, now_s: float) -> dict[str, object]:
        """Do what is due of an entry; its columns that change."""
        try:
            note = self._watch(entry, asked) if isinstance(asked, Watch) else self._submit(entry, asked)
        except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
            raise
        except TooManyJobsError as error:
            note = f"waits: {error}" if isinstance(asked, Watch) else f"skipped: {error}"
        except MagnetError as error:
            note = f"failed: {error}"
            log.warning("%s: %s", entry.id, note)
        return {"note": clean(note), "next_s": self._next_s(entry, asked, now_s)}

    def _next_s(self, entry: Entry, asked: Watch | Schedule, now_s: float) -> float:
        """When it is due next: a watch after a pause, a schedule as its expression says but not too soon."""
        if isinstance(asked, Watch):
            return now_s + self._settings.arrivals_s
        interval_s = self._settings.min_interval_s
        last_s = entry.next_s if now_s - entry.next_s < LATE * interval_s else now_s
        return next_time_s(asked.cron, max(now_s, last_s + interval_s - 1.0))

    def _submit(self, entry: Entry, asked: Schedule) -> str:
        # The key is made of the time that was due: a crash after this line submits nothing twice.
        key = f"{entry.id}:{entry.next_s:.0f}"
        groups = json.loads(entry.groups)
        most = effective(self._settings, entry.owner, groups).max_queued
        job, _ = self._store.add(
            asked.job, entry.owner, groups=groups, idempotency_key=key, source=entry.id, max_queued=most
        )
        return f"submitted {job.id}"

    def _watch(self, entry: Entry, asked: Watch) -> str:
        """Submit a scoring of what has arrived and settled; slides that a quota keeps out come with the next look."""
        # Again at each look: a right may have been taken away, or a link put in the folder's place.
        groups = json.loads(entry.groups)
        with held(user_rights(self._settings, entry.owner, groups_of(self._settings, entry.owner, groups))):
            if not storage.list_uris(asked.folder.rstrip("/")):
                return "no files here, or no such folder; if slides are expected, check its name"
            manifest, other = slides_under(asked.folder)
        new = self._settled(entry, asked, manifest.slides)[:MOST_SLIDES]
        left_out = f"; {other.not_utf8_note()}" if other.not_utf8 else ""
        return (self._score(entry, asked, new, groups) if new else "nothing new") + left_out

    def _score(self, entry: Entry, asked: Watch, new: list[tuple[Slide, str]], groups: list[str]) -> str:
        """Submit a scoring of some slides."""
        name = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(f"{slide.uri} {etag}" for slide, etag in new)).hex
        manifest = storage.join(self._settings.user_folder(entry.owner), f"watches/{entry.id}/{name}.csv")
        storage.write_bytes(manifest, _manifest([slide for slide, _ in new]))

        def note(connection: sa.Connection, job_id: str) -> None:
            """With the job or not at all: a crash neither forgets a slide nor scores it twice."""
            known = {"watch_id": entry.id, "job_id": job_id, "at_s": time.time()}
            rows = [known | {"uri": slide.uri, "etag": etag} for slide, etag in new]
            connection.execute(arrived.insert(), rows)

        request = Score(manifest=manifest, model=asked.model)
        most = effective(self._settings, entry.owner, groups).max_queued
        job, _ = self._store.add(request, entry.owner, groups=groups, source=entry.id, within=note, max_queued=most)
        return f"submitted {job.id} with {len(new)} slide(s)"

    def _settled(self, entry: Entry, asked: Watch, slides: Iterable[Slide]) -> list[tuple[Slide, str]]:
        """Slides that no job has had, and that have not changed for a while."""
        query = sa.select(arrived.c.uri, arrived.c.etag).where(arrived.c.watch_id == entry.id)
        with self._database.reading() as connection:
            known = {(uri, etag) for uri, etag in connection.execute(query)}
        before, seen = self._seen.get(entry.id, {}), dict[tuple[str, str], float]()
        settled = []
        for slide in slides:
            try:
                etag = storage.stat(slide.uri)[1][:LONGEST_ETAG]
            except NotFoundError:
                continue  # it was moved away since the folder was listed
            version = slide.uri, etag
            seen[version] = before.get(version, time.monotonic())
            new = version not in known and len(slide.uri) <= LONGEST_URI
            if new and time.monotonic() - seen[version] >= asked.settle_s:
                settled.append((slide, etag))
        self._seen[entry.id] = seen
        return settled


def _require_interval(cron: str, min_interval_s: float, now_s: float) -> None:
    gap_s = smallest_gap_s(cron, now_s)
    if gap_s < min_interval_s:
        raise UsageError(
            f"cron {cron!r} has times {gap_s:.0f} s apart; this service allows one job in {min_interval_s:.0f} s"
        )


def _manifest(slides: list[Slide]) -> bytes:
    text = io.StringIO()
    rows: list[Any] = [("slide_id", "uri"), *((slide.slide_id, slide.uri) for slide in slides)]
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
