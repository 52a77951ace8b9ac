"""Checks of the machine: storage, disk, secrets, network and installed packages."""

from __future__ import annotations

import importlib.metadata
import shutil
import ssl
import sys
import time
import uuid
from pathlib import Path

import obstore

from service import environment, storage
from service.api.gate.hosts import LOOPBACK
from service.operations.check import Check
from service.operations.file_modes import find_exposed
from service.settings.service import ServiceSettings
from service.storage.http import WebStore
from service.storage.stores import Store, run_with_retries

PACKAGES = ("torch", "ray", "mlflow", "dbos", "fastapi", "obstore", "imagecodecs", "openslide-python")
"""Packages whose versions are reported."""
MIN_FREE_BYTES = 10e9
"""Minimum free space in bytes on the storage's disk: checkpoints, logs and tables of a few trainings fit."""
MAX_SKEW_S = 60.0
"""Maximum seconds between this machine's clock and the store's: leases expire by it, and S3 refuses requests whose
clock differs by 15 minutes."""


def check_storage(settings: ServiceSettings) -> Check:
    """Check that objects can be written, read and deleted, and that the store's clock is right."""
    uri, data = storage.join(settings.storage, f"doctor-{uuid.uuid4().hex}"), b"doctor"
    before_s = time.time()
    storage.write_bytes(uri, data)
    after_s = time.time()
    try:
        same, written_s = storage.read_bytes(uri) == data, _get_written_s(uri)
    finally:
        storage.delete(uri)
    if not same:
        return Check("storage", False, f"{settings.storage} returns other bytes than were written")
    # By equal clocks, the object was written between the two times.
    skew_s = max(before_s - written_s, written_s - after_s, 0.0)
    if skew_s > MAX_SKEW_S:
        detail = f"the clock of {settings.storage} differs from this machine's by {skew_s:.0f} s"
        return Check("storage", False, detail, "synchronise both clocks by NTP")
    return Check("storage", True, f"objects can be written, read and deleted in {settings.storage}")


def _get_written_s(uri: str) -> float:
    """Return when an object was written, by the store's clock, in seconds since 1970."""
    if "://" not in uri:
        return Path(uri).stat().st_mtime

    def get_modified_s(store: Store, key: str) -> float:
        assert not isinstance(store, WebStore)  # an HTTP server would have refused the write before
        return obstore.head(store, key)["last_modified"].timestamp()

    return run_with_retries(uri, get_modified_s)


def check_disk(settings: ServiceSettings) -> Check:
    """Check that the storage's disk has free space."""
    if "://" in settings.storage:
        return Check("disk", True, "the storage is an object store")
    usage = shutil.disk_usage(settings.storage)
    detail = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free at {settings.storage}"
    return Check("disk", usage.free >= MIN_FREE_BYTES, detail, "free disk space, or lower keep_days in the settings")


def check_secrets(settings: ServiceSettings) -> Check:
    """Check that other users of this machine cannot read secrets."""
    private = [] if "://" in settings.storage else [Path(settings.storage) / "private"]
    named = (settings.ray_token_file, settings.mlflow_token_file, settings.tls_key, environment.CLIENT_FILE)
    files = [Path(file).expanduser() for file in named if file is not None and "://" not in file]
    missing = [str(file) for file in files[:-1] if not file.exists()]  # the client file is optional
    if missing:
        detail = f"no such file: {', '.join(missing)}"
        return Check("secrets", False, detail, "create the file, or correct its path in the settings")
    if exposed := find_exposed([*private, *files]):
        names = " ".join(str(path) for path in exposed)
        detail = f"other users can read {', '.join(map(str, exposed))}"
        return Check("secrets", False, detail, f"chmod -R go-rwx {names}")
    return Check("secrets", True, "only their owner can read the files with secrets")


def check_network(settings: ServiceSettings) -> Check:
    """Check that an API for other machines has TLS and host names."""
    if settings.tls_certificate is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
        except (ssl.SSLError, OSError) as error:
            return Check(
                "network",
                False,
                f"tls_certificate and tls_key cannot be used: {error}",
                "set them to PEM files of a certificate and of its key, without a password",
            )
    if settings.host in LOOPBACK:
        return Check("network", True, f"the API listens on {settings.host} only")
    if settings.tls_certificate is None and not settings.trusted_proxies:
        return Check(
            "network",
            False,
            f"the API listens on {settings.host} without TLS, so tokens can be read on the network",
            "set tls_certificate and tls_key, or put a proxy with TLS in front of it and name it in trusted_proxies",
        )
    if not settings.hosts:
        detail = f"the API listens on {settings.host}, but the settings name no host names under which it responds"
        return Check("network", False, detail, "set hosts, such as hosts: [magnet.lab]")
    return Check("network", True, f"the API listens on {settings.host} for {', '.join(settings.hosts)}")


def check_versions(_: ServiceSettings) -> Check:
    """Check that the required packages are installed."""
    versions, missing = [f"Python {sys.version_info[0]}.{sys.version_info[1]}"], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(versions) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check("versions", not missing, detail, f"pip install {' '.join(missing)}")
