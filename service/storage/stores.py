"""Connections to object stores: credentials, retries, and the mapping of client library errors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import boto3.session
from botocore.exceptions import BotoCoreError
from obstore import exceptions as foreign
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import AzureStore, GCSStore, S3Store

from service import environment
from service.errors import AccessError, MagnetError, NotFoundError, StorageError, UsageError
from service.storage.http import WebStore, build_base_url
from service.storage.rights import resolve
from service.storage.uri import Location

Store = S3Store | GCSStore | AzureStore | WebStore
Result = TypeVar("Result")

REQUEST_TIMEOUT_S = 20.0
"""Time limit of one request, including connection and body; a byte range has at most a few megabytes."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 4.0
"""Upper bounds of the pause between retries: doubled from the first to the longest; the pause is drawn uniformly."""

_EXPIRED = ("ExpiredToken", "RequestExpired", "InvalidToken", "RequestTimeTooSkewed")


def run_with_retries(
    uri: str, operation: Callable[[Store, str], Result], deadline_s: float | None = None, *, write: bool = False
) -> Result:
    """Run one operation on the store of `uri` and retry it with jitter until the deadline.

    Args:
        uri: an object in an object store, not a file.
        operation: called with the store and the object's key.
        deadline_s: time limit in seconds for all tries together; None uses the limit of the environment.
        write: check this process's rights for writing instead of reading.

    Returns:
        What the operation returns.

    Raises:
        NotFoundError: immediately.
        AccessError: after one more try with fresh credentials.
        StorageError: the last failure, once the deadline has passed.
    """
    location = resolve(uri, write=write)
    limit_s = environment.read_storage_deadline_s() if deadline_s is None else deadline_s
    end = time.monotonic() + limit_s
    pause_s, num_tries, renewed = FIRST_PAUSE_S, 0, False
    while True:
        num_tries += 1
        try:
            return operation(get_store(location), location.key)
        except (foreign.BaseError, FileNotFoundError, OSError, BotoCoreError) as error:
            failure = map_error(error, uri)
            cause = error
        # Temporary credentials expire during a long job; new connections read them again.
        if isinstance(failure, AccessError) and not renewed:
            renewed = True
            forget_stores()
            continue
        if not isinstance(failure, StorageError):
            raise failure from cause
        wait_s = random.uniform(0, pause_s)
        if time.monotonic() + wait_s >= end:
            failure.message += f"; gave up after {num_tries} attempts in {limit_s:g} s"
            raise failure from cause
        time.sleep(wait_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def map_error(error: Exception, uri: str) -> MagnetError:
    """Convert an error of a client library to one of `service.errors`."""
    first_line = str(error).strip().split("\n", 1)[0]
    if isinstance(error, FileNotFoundError | foreign.NotFoundError):
        return NotFoundError("no object has this name; check the name and the store", uri=uri)
    denied = isinstance(error, PermissionError | foreign.PermissionDeniedError | foreign.UnauthenticatedError)
    if denied or any(code in str(error) for code in _EXPIRED):
        return AccessError(
            f"access denied: {first_line}; check credentials, their expiry date and their permissions", uri=uri
        )
    if isinstance(error, foreign.InvalidPathError | foreign.NotSupportedError | foreign.UnknownConfigurationKeyError):
        return UsageError(f"the store does not support this operation: {first_line}", uri=uri)
    if isinstance(error, BotoCoreError):
        return AccessError(
            f"could not load credentials: {first_line}; check AWS_PROFILE and the other AWS variables", uri=uri
        )
    if "301 Moved" in first_line or "PermanentRedirect" in first_line:
        return UsageError(f"the bucket is in another region; set AWS_REGION: {first_line}", uri=uri)
    return StorageError(f"the store failed: {first_line}", uri=uri)


# `lru_cache` would let two threads connect at the same time.
_stores_lock = threading.Lock()


def get_store(location: Location) -> Store:
    """Return the connection to the store of `location`; connections are cached by bucket and settings."""
    fingerprint = environment.read_s3_fingerprint() if location.scheme == "s3" else ()
    with _stores_lock:
        return _connect(location.scheme, location.host, fingerprint)


def forget_stores() -> None:
    """Drop all connections, so that the next use reads the credentials again."""
    with _stores_lock:
        _connect.cache_clear()


@lru_cache(maxsize=64)
def _connect(scheme: str, host: str, fingerprint: tuple[str | None, ...]) -> Store:
    options: dict[str, Any] = {
        "client_options": {"timeout": f"{REQUEST_TIMEOUT_S:g}s", "connect_timeout": "5s", "allow_http": True},
        # The client must not retry: `run_with_retries` alone keeps the deadline, and each request is counted.
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_TIMEOUT_S)},
    }
    if scheme == "s3":
        return _connect_s3(host, options)
    if scheme == "gs":
        return GCSStore(host, **options)
    if scheme == "az":
        return AzureStore(host, **options)
    return WebStore(build_base_url(scheme, host), REQUEST_TIMEOUT_S)


def _connect_s3(bucket: str, options: dict[str, Any]) -> S3Store:
    settings = environment.read_s3_settings()
    options["region"] = settings.region
    if settings.endpoint is not None:
        options["endpoint"] = _add_bucket(settings.endpoint, bucket) if settings.virtual_hosted else settings.endpoint
    if settings.virtual_hosted:
        options["virtual_hosted_style_request"] = True
    # Without credentials a public bucket is still readable, if the request is not signed.
    session = None if settings.anonymous else boto3.session.Session()
    if session is None or session.get_credentials() is None:
        return S3Store(bucket, skip_signature=True, **options)
    return S3Store(bucket, credential_provider=Boto3CredentialProvider(session), **options)


def _add_bucket(endpoint: str, bucket: str) -> str:
    """Add the bucket to the host name of the endpoint, unless it is already there."""
    parts = urlsplit(endpoint)
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return urlunsplit(parts._replace(netloc=host))
