"""Whether a job's manifest exists: a missing one is refused when it is submitted, not minutes later by its job."""

from __future__ import annotations

import logging
import threading
import time

from service import storage
from service.cohort.folder import is_folder
from service.errors import MagnetError, NotFoundError, StorageError, UsageError
from service.storage.rights import Rights, held
from service.storage.uri import Location

log = logging.getLogger(__name__)

DEADLINE_S = 3.0
"""Seconds that a store has to answer."""
SILENT_S = 60.0
"""Seconds for which a store that did not answer is not asked again."""
AT_ONCE = 8
"""Stores that are asked at once."""


class Manifests:
    """Looks for manifests. A store that does not answer, or refuses us, does not refuse a job."""

    def __init__(self) -> None:
        self._places = threading.Semaphore(AT_ONCE)
        self._silent_until_s: dict[str, float] = {}

    def require(self, manifest: str, rights: Rights) -> None:
        """Refuse a manifest that does not exist.

        Args:
            manifest: a path or URI; a prefix in a store is not looked at.
            rights: of the user.

        Raises:
            UsageError: there is nothing under this name.
        """
        if manifest.startswith(("http://", "https://")) or ("://" in manifest and is_folder(manifest)):
            return
        if self._is_missing(rights.require(manifest), rights):
            raise UsageError("there is no manifest under this name; upload it first, or correct the name", uri=manifest)

    def _is_missing(self, location: Location, rights: Rights) -> bool:
        store = f"{location.scheme}://{location.host}"
        if self._silent_until_s.get(store, 0.0) > time.monotonic() or not self._places.acquire(blocking=False):
            return False
        missing = threading.Event()

        def look() -> None:
            try:
                with held(rights):  # in this thread
                    storage.stat(location.uri, DEADLINE_S)
            except NotFoundError:
                missing.set()
            except StorageError:
                self._silent_until_s[store] = time.monotonic() + SILENT_S
            except MagnetError as error:
                log.info("%s: not looked at: %s", location.uri, error)
            finally:
                self._places.release()

        # A daemon: a file system that hangs must not hold the process when it ends.
        thread = threading.Thread(target=look, name="manifest", daemon=True)
        thread.start()
        thread.join(DEADLINE_S + 0.5)
        if thread.is_alive():
            self._silent_until_s[store] = time.monotonic() + SILENT_S
        return missing.is_set()
