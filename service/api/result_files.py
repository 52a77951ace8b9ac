"""Result files of jobs, read with the rights of the job; who read which file is recorded in the audit log."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pyarrow.parquet as pq

from service import storage
from service.api.access import Caller
from service.api.audit_records import to_actor
from service.errors import NotFoundError
from service.queue import audit
from service.queue.grants import groups_of, job_rights
from service.queue.job import Job
from service.queue.requests import Score, Tune, from_json, results_folder
from service.queue.tables import Database
from service.settings.service import ServiceSettings
from service.storage.rights import apply_rights


class ResultFiles:
    """Reader of result files on behalf of a caller, who may see the job.

    Args:
        settings: service settings.
        database: the queue's database, for the audit log.
        caller: who reads the files.
    """

    def __init__(self, settings: ServiceSettings, database: Database, caller: Caller) -> None:
        self._settings, self._database, self._caller = settings, database, caller

    def read_score_file(self, job: Job, name: str) -> bytes:
        """Read a result file of a scoring.

        Args:
            job: the job.
            name: path of the file in the folder of results.

        Raises:
            NotFoundError: the job is not a scoring, is not done yet, or lacks the file.
        """
        request = from_json(job.request)
        if not isinstance(request, Score):
            raise NotFoundError(f"job {job.id} is a {job.kind}: only scorings have scores")
        # Others may write to a folder that the user named: before the job is done, the files may not be its own.
        if request.out is not None and job.state != "done":
            raise NotFoundError(
                f"job {job.id} is {job.state}: its results in {request.out} can be read once it is done"
            )
        return self._read(job, storage.join(results_folder(request, job.owner, job.id, self._settings), name))

    def read_best_settings(self, job: Job) -> bytes:
        """Read the best settings of a search.

        Args:
            job: the job.

        Returns:
            YAML, as text in UTF-8.

        Raises:
            NotFoundError: the job is not a search, or no trial has finished.
        """
        if not isinstance(from_json(job.request), Tune):
            raise NotFoundError(f"job {job.id} is a {job.kind}: only searches have best settings")
        return self._read(job, storage.join(self._settings.runs(job.owner), f"{job.id}/best.yaml"))

    def _read(self, job: Job, uri: str) -> bytes:
        groups = groups_of(self._settings, job.owner, json.loads(job.groups))
        try:
            # With the job's rights, not the service's: a result may have become a link to a secret.
            with apply_rights(job_rights(self._settings, job.owner, groups, job.id)):
                data = storage.read_bytes(uri)
        except NotFoundError as error:
            raise NotFoundError(f"job {job.id} has no {storage.name(uri)}; it is {job.state}") from error
        with self._database.writing() as connection:
            audit.append(connection, to_actor(self._caller), "result.read", job.id, detail=storage.name(uri))
        return data


def convert_scores_to_json(parquet: bytes, offset: int, limit: int) -> bytes:
    """Return rows of a score table as JSON, without the column of regions.

    Args:
        parquet: the table.
        offset: number of rows to skip.
        limit: maximum number of rows.

    Returns:
        A JSON object with `rows`, and with `total`, the number of rows in the table.
    """
    table = pq.read_table(io.BytesIO(parquet)).drop_columns(["regions"])
    rows = [_replace_non_finite(row) for row in table.slice(offset, limit).to_pylist()]
    return json.dumps({"rows": rows, "total": table.num_rows}).encode()


def _replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinity by None, since JSON cannot express them."""
    if isinstance(value, dict):
        return {name: _replace_non_finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
