"""The checkpoints of one job, in a folder or bucket. The newest and the best are kept, and corrupt ones are skipped.

Each checkpoint is in a folder ``checkpoint-STEP``. Its marker is written last and holds the digest of every other file.
So a checkpoint without a marker does not count, whichever process was killed, and a file that changes later is noticed.

Ray Train could store checkpoints too, but it fails the attempt when one cannot be written (a full disk), and resumes
from the newest even if it is incomplete.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.models.checkpoints import CheckpointError
from service import storage
from service.errors import NotFoundError
from service.storage.uri import parse

log = logging.getLogger(__name__)

MARKER = "published.json"
"""File that makes a checkpoint valid."""
NEWEST_KEPT = 2
"""Number of newest checkpoints that are kept: the newest, and the one to resume from if that is corrupt."""


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A checkpoint that was published."""

    folder: str
    """Path or URI of its folder."""
    step: int
    """Number of steps done."""
    selection: float | None
    """Validation metric that selects the best checkpoint, higher is better; None within an epoch."""
    sha256: Mapping[str, str]
    """SHA-256 of each file by name."""


class CheckpointStore:
    """The checkpoints of one job.

    Args:
        uri: the job's folder, a path or URI.
        patience_s: seconds per file, including retries, until a read or write fails; None: the environment's value.
    """

    def __init__(self, uri: str, patience_s: float | None = None) -> None:
        self.uri, self.patience_s = uri, patience_s

    def publish(self, files: Mapping[str, bytes], step: int, selection: float | None) -> PublishedCheckpoint:
        """Write a checkpoint, then delete the checkpoints that are neither among the newest nor the best.

        Args:
            files: content by name.
            step: number of steps done.
            selection: validation metric, higher is better; None within an epoch.

        Raises:
            StorageError: the store failed or is full; earlier checkpoints are unchanged.
        """
        folder = storage.join(self.uri, f"checkpoint-{step:08d}")
        # A corrupt checkpoint of the same step may be there: its marker must not vouch for half of the new files.
        storage.delete(storage.join(folder, MARKER), self.patience_s)
        for name, data in files.items():
            storage.write_bytes(storage.join(folder, name), data, self.patience_s)
        sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        marker = {"step": step, "selection": selection, "sha256": sha256}
        storage.write_bytes(storage.join(folder, MARKER), json.dumps(marker, indent=2).encode(), self.patience_s)
        self._delete_old()
        return PublishedCheckpoint(folder, step, selection, sha256)

    def list_published(self) -> list[PublishedCheckpoint]:
        """Return all checkpoints with a readable marker, oldest first."""
        checkpoints = []
        for uri in storage.list_uris(self.uri, self.patience_s):
            if storage.name(uri) == MARKER:
                try:
                    marker = json.loads(storage.read_bytes(uri, self.patience_s))
                    checkpoint = PublishedCheckpoint(
                        storage.parent(uri), marker["step"], marker["selection"], marker["sha256"]
                    )
                # A crash can leave half a marker; the checkpoint before it is still good.
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("%s is corrupt (%r); this checkpoint is skipped", uri, error)
                    continue
                checkpoints.append(checkpoint)
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    def find_best(self) -> PublishedCheckpoint | None:
        """Return the checkpoint with the best validation, or the newest if none was validated.

        Of two equally good checkpoints the earlier one is returned.
        """
        published = self.list_published()
        return _select_best(published) or (published[-1] if published else None)

    def fetch(self, checkpoint: PublishedCheckpoint, folder: Path, names: Sequence[str] | None = None) -> None:
        """Copy files of a checkpoint to this machine.

        Args:
            checkpoint: the checkpoint.
            folder: folder that receives the files.
            names: names of the files; None: all files.

        Raises:
            CheckpointError: a file is missing, or differs from the one that was published.
        """
        for name in checkpoint.sha256 if names is None else names:
            uri = storage.join(checkpoint.folder, name)
            try:
                data = storage.read_bytes(uri, self.patience_s)
            except NotFoundError as error:
                raise CheckpointError(f"{uri}: is missing") from error
            if hashlib.sha256(data).hexdigest() != checkpoint.sha256.get(name):
                raise CheckpointError(f"{uri}: is corrupt: its content differs from what was published")
            (folder / name).write_bytes(data)

    def fetch_newest(self, folder: Path) -> PublishedCheckpoint | None:
        """Copy the newest intact checkpoint to a folder of this machine.

        Returns:
            The checkpoint; None if the job has none.

        Raises:
            CheckpointError: all checkpoints are corrupt. The training must not start from the beginning unnoticed.
        """
        failures: list[str] = []
        for checkpoint in reversed(self.list_published()):
            try:
                self.fetch(checkpoint, folder)
            except CheckpointError as error:
                log.warning("%s; trying the checkpoint before it", error)
                failures.append(str(error))
            else:
                return checkpoint
        if failures:
            raise CheckpointError(
                f"{self.uri}: all checkpoints are corrupt: {'; '.join(failures)}. Restore one from a backup, or start "
                f"a new job with another --name"
            )
        return None

    def _delete_old(self) -> None:
        """Delete old checkpoints, and files that a crash left without a marker."""
        published = self.list_published()
        keep = {checkpoint.folder for checkpoint in published[-NEWEST_KEPT:]}
        if (best := _select_best(published)) is not None:
            keep.add(best.folder)
        old = [uri for uri in self._list_files() if storage.parent(uri) not in keep]
        # Markers first: if this process is killed here, no checkpoint with missing files counts as published.
        for uri in sorted(old, key=lambda uri: storage.name(uri) != MARKER):
            storage.delete(uri, self.patience_s)
        for folder in {storage.parent(uri) for uri in old}:
            if (place := parse(folder)).scheme == "file":  # a bucket has no folders that would stay behind
                Path(place.key).rmdir()

    def _list_files(self) -> list[str]:
        """Return all files of all checkpoints."""
        uris = storage.list_uris(self.uri, self.patience_s)
        return [uri for uri in uris if storage.name(storage.parent(uri)).startswith("checkpoint-")]


def _select_best(published: Sequence[PublishedCheckpoint]) -> PublishedCheckpoint | None:
    rated = [(checkpoint.selection, checkpoint) for checkpoint in published if checkpoint.selection is not None]
    return max(rated, key=lambda pair: pair[0])[1] if rated else None
