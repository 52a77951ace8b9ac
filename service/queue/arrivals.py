"""Watches and schedules, which submit jobs by themselves.

A watch scores the slides that arrive in a folder, once for each version of a slide. A schedule submits the same job at
the times of a cron expression.
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

from magnet.config import FORBID_EXTRA
from service import storage
from service.cohort.folder import list_slides
from service.cohort.manifest import Slide
from service.errors import MagnetError, NotFoundError, UsageError
from service.queue.cron import next_time_s, require_cron, smallest_gap_s
from service.queue.grants import groups_of, user_rights
from service.queue.incidents import describe
from service.queue.job_rows import TooManyJobsError, clean
from service.queue.lease import LeaseLostError
from service.queue.quotas import effective_limits
from service.queue.requests import Model, Request, Score, Uri
from service.queue.store import JobStore
from service.queue.tables import DatabaseCorruptError, DatabaseUnavailableError, arrived, lock, recurring
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings
from service.storage.rights import apply_rights

log = logging.getLogger(__name__)

MAX_SLIDES = 1000
"""Bound of the number of slides of one job; the next job takes the others."""
LATE = 0.1
"""Share of the smallest interval: a job that is submitted later than this, since the dispatcher was busy or restarted,
delays the next one."""
LONGEST_URI, LONGEST_ETAG = 1000, 200
"""Bounds of the table `arrived` in characters."""

Cron = Annotated[str, StringConstraints(min_length=9, max_length=100), AfterValidator(require_cron)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """A watch: score the slides that arrive in a folder."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    what: Literal["watch"] = "watch"
    folder: Uri
    """Folder of the slides: a path, or a URI that can be listed."""
    model: Model = "models:/magnet@champion"
    """Name of the model, as of a scoring."""
    settle_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """Seconds that a slide must stay unchanged before it is scored: it may still be uploading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A schedule: submit a job repeatedly."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    what: Literal["schedule"] = "schedule"
    cron: Cron
    """Times in UTC: minute, hour, day of month, month, day of week. Times closer than `min_interval_s` are refused."""
    job: Request
    """The job that is submitted each time."""


Recurring = Annotated[Watch | Schedule, Field(discriminator="what")]
ADAPTER: TypeAdapter[Watch | Schedule] = TypeAdapter(Recurring)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the table of watches and schedules."""

    seq: int
    """Number of the row; it grows with each."""
    id: str
    """Id of the watch or schedule."""
    owner: str
    """User who added it."""
    what: str
    """Kind of the entry: "watch" or "schedule"."""
    body: str
    """The watch or schedule in JSON."""
    next_s: float
    """Time at which it is due, in seconds since 1970."""
    note: str | None
    """Result of the last time it was due, for its user."""
    disabled: str | None
    """Why it submits no jobs any more; None while it does."""
    groups: str
    """Groups of the owner, as the login named them when the entry was added, in JSON."""

    def parse(self) -> Watch | Schedule:
        """Return the watch or schedule. Raises `ValueError` if the row is corrupt, or of another version."""
        return ADAPTER.validate_python(json.loads(self.body))


class Arrivals:
    """The watches and schedules of a service.

    Args:
        store: takes their jobs.
        settings: of the service.
    """

    def __init__(self, store: JobStore, settings: ServiceSettings) -> None:
        self._store, self._settings, self._database = store, settings, store.database
        # By watch, then by URI and ETag of a slide: when this version was first seen, on the monotonic clock. In memory
        # only: after a restart a slide waits once more.
        self._first_seen_s: dict[str, dict[tuple[str, str], float]] = {}

    def add(
        self,
        recurring_job: Watch | Schedule,
        owner: str,
        groups: Collection[str] = (),
        within: Callable[[sa.Connection, str], None] | None = None,
    ) -> Entry:
        """Add a watch or schedule.

        Args:
            recurring_job: the watch or schedule.
            owner: user whose jobs it submits.
            groups: groups of the owner that a login named.
            within: called last in the same transaction, with the entry's id.

        Returns:
            The new entry.

        Raises:
            UsageError: the times of a schedule are too close.
            TooManyJobsError: the owner has as many as the quota allows.
        """
        now_s = time.time()
        if isinstance(recurring_job, Schedule):
            _require_interval(recurring_job.cron, self._settings.min_interval_s, now_s)
        most = effective_limits(self._settings, owner, groups).max_recurring
        entry_id = f"{recurring_job.what}-{uuid.uuid4().hex[:12]}"
        body = json.dumps(to_dict(recurring_job), allow_nan=False)
        row = {"id": entry_id, "owner": owner, "what": recurring_job.what, "body": body}
        row["groups"] = json.dumps(sorted(groups))
        next_s = next_time_s(recurring_job.cron, now_s) if isinstance(recurring_job, Schedule) else now_s
        with self._store.writing() as connection:
            lock(connection, f"recurring of {owner}")  # else two at once could both be the last that the quota allows
            query = sa.select(sa.func.count()).where(recurring.c.owner == owner)
            if (connection.scalar(query) or 0) >= most:
                raise TooManyJobsError(f"{owner} has {most} watches and schedules, the most allowed; remove one first")
            connection.execute(recurring.insert().values(row | {"next_s": next_s}))
            if within is not None:
                within(connection, entry_id)
        return self.entry(entry_id)

    def entry(self, entry_id: str) -> Entry:
        """Return a watch or schedule. Raises `NotFoundError` if there is none with this id."""
        entries = [entry for entry in self.all() if entry.id == entry_id]
        if not entries:
            raise NotFoundError(f"no watch or schedule {entry_id}")
        return entries[0]

    def all(self, owner: str | None = None) -> list[Entry]:
        """Return the watches and schedules of an owner, or all."""
        query = sa.select(recurring).order_by(recurring.c.seq)
        query = query if owner is None else query.where(recurring.c.owner == owner)
        with self._database.reading() as connection:
            return [Entry(**row) for row in connection.execute(query).mappings()]

    def remove(self, entry_id: str, within: Callable[[sa.Connection, str], None] | None = None) -> None:
        """Remove a watch or schedule; the jobs that it submitted continue.

        Args:
            entry_id: the watch or schedule.
            within: called last in the same transaction, with the entry's id.
        """
        with self._store.writing() as connection:
            connection.execute(recurring.delete().where(recurring.c.id == entry_id))
            connection.execute(arrived.delete().where(arrived.c.watch_id == entry_id))
            if within is not None:
                within(connection, entry_id)

    def tick(self) -> None:
        """Run the entries that are due. An entry with an unexpected error is disabled; the others continue.

        Raises:
            DatabaseAwayError, DatabaseCorruptError, LeaseLostError: no entry can be run.
        """
        now_s = time.time()
        for entry in self.all():
            if entry.next_s > now_s or entry.disabled is not None:
                continue
            try:
                values = self._run(entry, entry.parse(), now_s)
            except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # one corrupt entry must not end the dispatcher
                log.exception("%s of %s is disabled", entry.id, entry.owner)
                values = {"disabled": clean(f"{describe(error)}; remove it and add it again", 500)}
            with self._store.writing() as connection:
                connection.execute(recurring.update().where(recurring.c.id == entry.id).values(values))

    def _run(self, entry: Entry, parsed: Watch | Schedule, now_s: float) -> dict[str, object]:
        """Run an entry that is due; return its columns that change."""
        try:
            note = self._watch(entry, parsed) if isinstance(parsed, Watch) else self._submit(entry, parsed)
        except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
            raise
        except TooManyJobsError as error:
            note = f"waits: {error}" if isinstance(parsed, Watch) else f"skipped: {error}"
        except MagnetError as error:
            note = f"failed: {error}"
            log.warning("%s: %s", entry.id, note)
        return {"note": clean(note), "next_s": self._next_s(entry, parsed, now_s)}

    def _next_s(self, entry: Entry, parsed: Watch | Schedule, now_s: float) -> float:
        """Return when an entry is due next: a watch after a pause, a schedule by its expression but not too soon."""
        if isinstance(parsed, Watch):
            return now_s + self._settings.arrivals_s
        interval_s = self._settings.min_interval_s
        last_s = entry.next_s if now_s - entry.next_s < LATE * interval_s else now_s
        return next_time_s(parsed.cron, max(now_s, last_s + interval_s - 1.0))

    def _submit(self, entry: Entry, schedule: Schedule) -> str:
        # The key contains the time that was due: after a crash the same job is not submitted twice.
        key = f"{entry.id}:{entry.next_s:.0f}"
        groups = json.loads(entry.groups)
        most = effective_limits(self._settings, entry.owner, groups).max_queued
        job, _ = self._store.add(
            schedule.job, entry.owner, groups=groups, idempotency_key=key, source=entry.id, max_queued=most
        )
        return f"submitted {job.id}"

    def _watch(self, entry: Entry, watch: Watch) -> str:
        """Submit a scoring of the slides that have arrived and settled; return the note for the user."""
        # The rights are checked at each look: one may have been taken away, or a link put in the place of the folder.
        groups = json.loads(entry.groups)
        with apply_rights(user_rights(self._settings, entry.owner, groups_of(self._settings, entry.owner, groups))):
            if not storage.list_uris(watch.folder.rstrip("/")):
                return "no files here, or no such folder; if slides are expected, check its name"
            manifest, other = list_slides(watch.folder)
        new = self._settled_slides(entry, watch, manifest.slides)[:MAX_SLIDES]
        left_out = f"; {other.describe_not_utf8()}" if other.not_utf8 else ""
        return (self._score(entry, watch, new, groups) if new else "nothing new") + left_out

    def _score(self, entry: Entry, watch: Watch, new: list[tuple[Slide, str]], groups: list[str]) -> str:
        """Submit a scoring of new slides, given with their ETags; return the note for the user."""
        # The name follows from the versions of the slides: a look that is repeated after a crash writes the same file.
        name = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(f"{slide.uri} {etag}" for slide, etag in new)).hex
        manifest = storage.join(self._settings.user_folder(entry.owner), f"watches/{entry.id}/{name}.csv")
        storage.write_bytes(manifest, _manifest([slide for slide, _ in new]))

        def record_slides(connection: sa.Connection, job_id: str) -> None:
            """Record the slides in the transaction of the job: a crash neither loses a slide nor scores it twice."""
            common = {"watch_id": entry.id, "job_id": job_id, "at_s": time.time()}
            rows = [common | {"uri": slide.uri, "etag": etag} for slide, etag in new]
            connection.execute(arrived.insert(), rows)

        request = Score(manifest=manifest, model=watch.model)
        most = effective_limits(self._settings, entry.owner, groups).max_queued
        job, _ = self._store.add(
            request, entry.owner, groups=groups, source=entry.id, within=record_slides, max_queued=most
        )
        return f"submitted {job.id} with {len(new)} slide(s)"

    def _settled_slides(self, entry: Entry, watch: Watch, slides: Iterable[Slide]) -> list[tuple[Slide, str]]:
        """Return the slides, with their ETags, that no job has had and that have not changed for `settle_s`."""
        query = sa.select(arrived.c.uri, arrived.c.etag).where(arrived.c.watch_id == entry.id)
        with self._database.reading() as connection:
            recorded = {(uri, etag) for uri, etag in connection.execute(query)}
        before, first_seen_s = self._first_seen_s.get(entry.id, {}), dict[tuple[str, str], float]()
        settled = []
        for slide in slides:
            try:
                etag = storage.stat(slide.uri)[1][:LONGEST_ETAG]
            except NotFoundError:
                continue  # it was removed after the folder was listed
            version = slide.uri, etag
            first_seen_s[version] = before.get(version, time.monotonic())
            is_new = version not in recorded and len(slide.uri) <= LONGEST_URI
            if is_new and time.monotonic() - first_seen_s[version] >= watch.settle_s:
                settled.append((slide, etag))
        self._first_seen_s[entry.id] = first_seen_s  # versions that are gone are not kept
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
