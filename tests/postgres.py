"""A Postgres server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_jobs.cluster.processes import free_port


@dataclass(frozen=True)
class Postgres:
    """A server that can be stopped hard and started again."""

    binaries: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://magnet@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._ctl("start", "-w", "-l", str(self.folder / "server.log"), "-o", options)

    def stop(self) -> None:
        """At once, as when the machine's power fails."""
        self._ctl("stop", "-m", "immediate")

    def _ctl(self, *words: str) -> None:
        as_unprivileged([str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), *words])


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server while the context lasts; skips, or fails in CI, where Postgres is not installed."""
    binaries = find_binaries()
    if binaries is None:
        message = "no Postgres here: apt-get install postgresql (.ci/install-root-packages does it)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    assert binaries is not None
    # Not in pytest's folder: each start of pytest closes that to other accounts.
    folder = Path(tempfile.mkdtemp(prefix="magnet-postgres-"))
    if os.geteuid() == 0:
        account = unprivileged()
        os.chown(folder, account.pw_uid, account.pw_gid)
    words = ["-D", str(folder / "data"), "-U", "magnet", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    as_unprivileged([str(binaries / "initdb"), *words])
    server = Postgres(binaries, folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def find_binaries() -> Path | None:
    """The folder of initdb; Debian has it outside the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


def unprivileged() -> pwd.struct_passwd:
    """Whom the server runs as where the tests run as root, which it refuses."""
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres", names["nobody"])


def as_unprivileged(words: list[str]) -> None:
    account = unprivileged() if os.geteuid() == 0 else None
    own = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/", **own)  # type: ignore[call-overload]  # optional
