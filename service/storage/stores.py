"""Connections to object stores: credentials, retries, and foreign errors mapped in one place."""

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
from service.storage.http import HttpStore, store_base
from service.storage.rights import resolve
from service.storage.uri import Location

Store = S3Store | GCSStore | AzureStore | HttpStore
Result = TypeVar("Result")

REQUEST_TIMEOUT_S = 20.0
"""One request, connection and body included; a part of a file is at most a few megabytes."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 4.0
"""Pauses between retries grow from the first to the longest, each drawn evenly from zero to its bound."""

_EXPIRED = ("ExpiredToken", "RequestExpired", "InvalidToken", "RequestTimeTooSkewed")


def attempt(
    uri: str, operation: Callable[[Store, str], Result], deadline_s: float | None = None, *, write: bool = False
) -> Result:
    """Run one operation on the store of `uri`, retried with jitter until the deadline.

    The client's own retries are off, so that one clock rules and counts of requests are true.

    Args:
        uri: an object in an object store, not a file.
        operation: called with the store and the object's key.
        deadline_s: seconds for all attempts together; None for the environment's.
        write: whether the operation writes; this process's rights are held to it.

    Raises:
        NotFoundError, AccessError: at once, the latter after one attempt with fresh credentials.
        StorageError: the last failure, when the deadline has passed.
    """
    location = resolve(uri, write=write)
    allowed_s = environment.storage_deadline_s() if deadline_s is None else deadline_s
    end = time.monotonic() + allowed_s
    pause_s, num_attempts, renewed = FIRST_PAUSE_S, 0, False
    while True:
        num_attempts += 1
        try:
            return operation(store_of(location), location.key)
        except (foreign.BaseError, FileNotFoundError, OSError, BotoCoreError) as error:
            failure = mapped(error, uri)
            cause = error
        if isinstance(failure, AccessError) and not renewed:
            renewed = True
            forget_stores()
            continue
        if not isinstance(failure, StorageError):
            raise failure from cause
        wait_s = random.uniform(0, pause_s)
        if time.monotonic() + wait_s >= end:
            failure.message += f"; gave up after {num_attempts} attempts in {allowed_s:g} s"
            raise failure from cause
        time.sleep(wait_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def mapped(error: Exception, uri: str) -> MagnetError:
    """A client library's error as one of ours."""
    first_line = str(error).strip().split("\n", 1)[0]
    if isinstance(error, FileNotFoundError | foreign.NotFoundError):
        return NotFoundError("nothing lies here; check the name, and that this store is the right one", uri=uri)
    denied = isinstance(error, PermissionError | foreign.PermissionDeniedError | foreign.UnauthenticatedError)
    if denied or any(code in str(error) for code in _EXPIRED):
        return AccessError(f"access denied: {first_line}; check credentials, their expiry and rights", uri=uri)
    if isinstance(error, foreign.InvalidPathError | foreign.NotSupportedError | foreign.UnknownConfigurationKeyError):
        return UsageError(f"the store cannot do this: {first_line}", uri=uri)
    if isinstance(error, BotoCoreError):
        return AccessError(f"no credentials could be had: {first_line}; check AWS_PROFILE and the like", uri=uri)
    if "301 Moved" in first_line or "PermanentRedirect" in first_line:
        return UsageError(f"the bucket lies in another region; set AWS_REGION: {first_line}", uri=uri)
    return StorageError(f"the store failed: {first_line}", uri=uri)


_stores_lock = threading.Lock()


def store_of(location: Location) -> Store:
    """The connection to the store of `location`, kept per bucket and settings."""
    fingerprint = environment.s3_fingerprint() if location.scheme == "s3" else ()
    with _stores_lock:
        return _store(location.scheme, location.host, fingerprint)


def forget_stores() -> None:
    """Drop all connections, so that the next use reads credentials anew."""
    with _stores_lock:
        _store.cache_clear()


@lru_cache(maxsize=64)
def _store(scheme: str, host: str, fingerprint: tuple[str | None, ...]) -> Store:
    options: dict[str, Any] = {
        "client_options": {"timeout": f"{REQUEST_TIMEOUT_S:g}s", "connect_timeout": "5s", "allow_http": True},
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_TIMEOUT_S)},
    }
    if scheme == "s3":
        return _s3_store(host, options)
    if scheme == "gs":
        return GCSStore(host, **options)
    if scheme == "az":
        return AzureStore(host, **options)
    return HttpStore(store_base(scheme, host), REQUEST_TIMEOUT_S)


def _s3_store(bucket: str, options: dict[str, Any]) -> S3Store:
    settings = environment.s3_settings()
    options["region"] = settings.region
    if settings.endpoint is not None:
        options["endpoint"] = _with_bucket(settings.endpoint, bucket) if settings.virtual_hosted else settings.endpoint
    if settings.virtual_hosted:
        options["virtual_hosted_style_request"] = True
    session = None if settings.anonymous else boto3.session.Session()
    if session is None or session.get_credentials() is None:
        return S3Store(bucket, skip_signature=True, **options)
    return S3Store(bucket, credential_provider=Boto3CredentialProvider(session), **options)


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket in its host name, unless it is there already."""
    parts = urlsplit(endpoint)
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return urlunsplit(parts._replace(netloc=host))
