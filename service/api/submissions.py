"""Submissions: what a caller may submit, and how a job enters the queue."""

from __future__ import annotations

import sqlalchemy as sa

from service.api.access import Caller
from service.api.audit_records import make_recorder
from service.api.manifests import Manifests
from service.api.output_folders import require_unshared
from service.api.request_bodies import Submission
from service.errors import UsageError
from service.queue import quotas
from service.queue.allowed import check_allowed, require_allowed
from service.queue.arrivals import Recurring, Watch
from service.queue.grants import groups_of, user_rights
from service.queue.job import Job
from service.queue.requests import Check, Score, Train, Tune
from service.queue.store import JobStore
from service.queue.tables import jobs
from service.settings.service import ServiceSettings
from service.storage.rights import Rights

OPEN_ALIAS = "challenger"
"""Alias that every submitter's training may give its model."""


def submit_job(
    store: JobStore,
    settings: ServiceSettings,
    manifests: Manifests,
    caller: Caller,
    body: Submission,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Check a submission and add its job to the queue.

    Args:
        store: the store of jobs.
        settings: service settings.
        manifests: checker of manifests.
        caller: who submits the job.
        body: the job, its priority and its number of attempts.
        idempotency_key: key of the caller under which the job is submitted once; None: no key.

    Returns:
        The job, and whether it is new.

    Raises:
        MagnetError: the caller may not submit this job.
    """
    _require_alias_scope(caller, body.job)
    rights = _resolve_rights(settings, caller)
    check_allowed(body.job, rights)
    # A repeated submission returns its job, even if the manifest has been deleted since.
    if not _was_submitted(store, caller, idempotency_key):
        manifests.require(body.job.manifest, rights)

    def record(connection: sa.Connection, job_id: str) -> None:
        make_recorder(caller, "job.submit", f"{body.job.kind} of {body.job.manifest}")(connection, job_id)
        # After the audit row, whose lock admits one transaction at a time: two submissions cannot miss each other.
        require_unshared(connection, body.job, caller.owner)

    return store.add(
        body.job,
        caller.owner,
        groups=caller.groups,
        priority=body.priority,
        max_attempts=body.max_attempts,
        idempotency_key=idempotency_key,
        max_queued=quotas.effective_limits(settings, caller.owner, caller.groups).max_queued,
        within=record,
    )


def check_recurring(settings: ServiceSettings, caller: Caller, body: Recurring) -> None:
    """Check a watch or schedule as its jobs will be checked.

    Args:
        settings: service settings.
        caller: who adds the watch or schedule.
        body: the watch or schedule.

    Raises:
        MagnetError: the caller may not submit such jobs.
    """
    rights = _resolve_rights(settings, caller)
    if isinstance(body, Watch):
        require_allowed(body.folder, rights)
        if body.folder.startswith(("http://", "https://")):
            raise UsageError("an http(s) server cannot be listed; use s3://, gs://, az:// or a path", uri=body.folder)
        # The watch submits such jobs later, when nobody sees an error.
        check_allowed(Score(manifest=body.folder, model=body.model), rights)
    else:
        _require_alias_scope(caller, body.job)
        check_allowed(body.job, rights)
        if isinstance(body.job, Score) and body.job.out is not None:
            raise UsageError("a scheduled scoring must not set `out`: each of its jobs gets its own folder")


def _require_alias_scope(caller: Caller, request: Check | Train | Tune | Score) -> None:
    """Refuse a training that gives its model an alias which others use, such as `champion`.

    Raises:
        ForbiddenError: the token lacks the scope promote.
    """
    if isinstance(request, Train | Tune) and request.settings.alias != OPEN_ALIAS:
        caller.require_scope("promote", f"alias = {request.settings.alias} (any other than {OPEN_ALIAS})")


def _resolve_rights(settings: ServiceSettings, caller: Caller) -> Rights:
    """Return which places the caller's jobs may name."""
    return user_rights(settings, caller.owner, groups_of(settings, caller.owner, caller.groups))


def _was_submitted(store: JobStore, caller: Caller, key: str | None) -> bool:
    """Return whether the caller has submitted a job under this key."""
    if key is None:
        return False
    with store.database.reading() as connection:
        query = sa.select(jobs.c.seq).where(jobs.c.owner == caller.owner, jobs.c.idempotency_key == key)
        return connection.scalar(query) is not None
