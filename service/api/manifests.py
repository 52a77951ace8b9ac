"""Check that a job's manifest exists: a missing one is refused at once, not minutes later by the job."""

from __future__ import annotations

import logging
import threading
import time

from service import storage
from service.cohort.folder import is_folder
from service.errors import MagnetError, NotFoundError, StorageError, UsageError
from service.storage.rights import Rights, apply_rights
from service.storage.uri import Location

log = logging.getLogger(__name__)

DEADLINE_S = 3.0
"""Seconds that a store has to respond."""
SILENT_S = 60.0
"""Seconds for which a store that did not respond is not called again."""
MAX_CHECKS = 8
"""Maximum number of checks at once."""


class Manifests:
    """Checker of manifests. A job is not refused because a store is silent, or refuses the service's credentials."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(MAX_CHECKS)
        self._silent_until_s: dict[str, float] = {}

    def require(self, manifest: str, rights: Rights) -> None:
        """Refuse a manifest that does not exist.

        Args:
            manifest: a path or URI; HTTP servers and prefixes in a store are not checked.
            rights: what the user's jobs may read.

        Raises:
            UsageError: there is no object under this name.
        """
        if manifest.startswith(("http://", "https://")) or ("://" in manifest and is_folder(manifest)):
            return
        if self._is_missing(rights.require(manifest), rights):
            raise UsageError("there is no manifest under this name; upload it first, or correct the name", uri=manifest)

    def _is_missing(self, location: Location, rights: Rights) -> bool:
        """Return whether the store says in time that there is no such object."""
        store = f"{location.scheme}://{location.host}"
        if self._silent_until_s.get(store, 0.0) > time.monotonic() or not self._slots.acquire(blocking=False):
            return False
        missing = threading.Event()

        def look_up() -> None:
            try:
                with apply_rights(rights):  # rights belong to a thread, so they are set in this one
                    storage.stat(location.uri, DEADLINE_S)
            except NotFoundError:
                missing.set()
            except StorageError:
                self._silent_until_s[store] = time.monotonic() + SILENT_S
            except MagnetError as error:
                log.info("%s: manifest not checked: %s", location.uri, error)
            finally:
                self._slots.release()

        # A daemon thread: a file system that hangs must not keep the process from ending.
        thread = threading.Thread(target=look_up, name="manifest", daemon=True)
        thread.start()
        thread.join(DEADLINE_S + 0.5)
        if thread.is_alive():
            self._silent_until_s[store] = time.monotonic() + SILENT_S
        return missing.is_set()
