"""The checkpoints of one job, in a folder or bucket: published by a marker, newest and best kept, torn ones skipped.

Each lies in a folder ``checkpoint-STEP``. Its marker is written last and holds the digest of every other file, so that
a checkpoint is either whole or none, whatever was killed, and a file that was damaged later is noticed.

Ray Train could keep checkpoints too. It fails the attempt when one cannot be written (a full disk), and goes on from
the newest whether it is whole or not.
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
NEWEST_KEPT = 2
"""The newest, and the one to go back to if that is damaged."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that was published."""

    folder: str
    """Path or URI."""
    step: int
    """Steps done."""
    selection: float | None
    """What the best is chosen by, higher is better; None within an epoch."""
    sha256: Mapping[str, str]
    """Digest of each file."""


class CheckpointStore:
    """The checkpoints of one job.

    Args:
        uri: the job's folder, a path or URI.
        patience_s: seconds for each file until a bucket that fails or hangs is given up, retries included; None for
            the environment's.
    """

    def __init__(self, uri: str, patience_s: float | None = None) -> None:
        self.uri, self.patience_s = uri, patience_s

    def publish(self, files: Mapping[str, bytes], step: int, selection: float | None) -> Published:
        """Write a checkpoint, then delete those that are neither among the newest nor the best.

        Raises:
            StorageError: the store failed or is full; what was published before is as it was.
        """
        folder = storage.join(self.uri, f"checkpoint-{step:08d}")
        storage.delete(storage.join(folder, MARKER), self.patience_s)  # of a damaged one that this one replaces
        for name, data in files.items():
            storage.write_bytes(storage.join(folder, name), data, self.patience_s)
        sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        about = {"step": step, "selection": selection, "sha256": sha256}
        storage.write_bytes(storage.join(folder, MARKER), json.dumps(about, indent=2).encode(), self.patience_s)
        self._clean()
        return Published(folder, step, selection, sha256)

    def published(self) -> list[Published]:
        """All that have a readable marker, oldest first."""
        found = []
        for uri in storage.list_uris(self.uri, self.patience_s):
            if storage.name(uri) == MARKER:
                try:
                    about = json.loads(storage.read_bytes(uri, self.patience_s))
                    one = Published(storage.parent(uri), about["step"], about["selection"], about["sha256"])
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("%s is damaged (%r): this checkpoint is passed over", uri, error)
                    continue
                found.append(one)
        return sorted(found, key=lambda one: one.step)

    def best(self) -> Published | None:
        """The one with the best validation, the earlier of two alike; the newest where none had any."""
        published = self.published()
        return _best(published) or (published[-1] if published else None)

    def fetch(self, one: Published, folder: Path, names: Sequence[str] | None = None) -> None:
        """Copy files of a checkpoint (None: all) into a folder of this machine.

        Raises:
            CheckpointError: one of them is missing or not the one that was published.
        """
        for name in one.sha256 if names is None else names:
            uri = storage.join(one.folder, name)
            try:
                data = storage.read_bytes(uri, self.patience_s)
            except NotFoundError as error:
                raise CheckpointError(f"{uri}: is missing") from error
            if hashlib.sha256(data).hexdigest() != one.sha256.get(name):
                raise CheckpointError(f"{uri}: is damaged, its content is not what was published")
            (folder / name).write_bytes(data)

    def fetch_newest(self, folder: Path) -> Published | None:
        """Copy the newest checkpoint that is whole into a folder of this machine; None where there never was any.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        failures: list[str] = []
        for one in reversed(self.published()):
            try:
                self.fetch(one, folder)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                failures.append(str(error))
            else:
                return one
        if failures:
            raise CheckpointError(
                f"{self.uri}: no checkpoint is whole: {'; '.join(failures)}. Restore one, or give the job a new --name"
            )
        return None

    def _clean(self) -> None:
        """Delete what is not kept, markers first; also what a crash left without one."""
        published = self.published()
        keep = {one.folder for one in published[-NEWEST_KEPT:]}
        if (best := _best(published)) is not None:
            keep.add(best.folder)
        old = [uri for uri in self._files() if storage.parent(uri) not in keep]
        for uri in sorted(old, key=lambda uri: storage.name(uri) != MARKER):
            storage.delete(uri, self.patience_s)
        for folder in {storage.parent(uri) for uri in old}:
            if (place := parse(folder)).scheme == "file":  # a bucket has no folders that would stay behind
                Path(place.key).rmdir()

    def _files(self) -> list[str]:
        """All files of all checkpoints."""
        found = storage.list_uris(self.uri, self.patience_s)
        return [uri for uri in found if storage.name(storage.parent(uri)).startswith("checkpoint-")]


def _best(published: Sequence[Published]) -> Published | None:
    rated = [(one.selection, one) for one in published if one.selection is not None]
    return max(rated, key=lambda pair: pair[0])[1] if rated else None
