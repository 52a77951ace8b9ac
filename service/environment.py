"""The only module that reads environment variables: endpoints, credentials, caches and limits; none changes a result.

| variable | meaning |
| --- | --- |
| AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL | endpoint for ``s3://`` if it is not Amazon (the AWS profile's endpoint) |
| AWS_SKIP_SIGNATURE | "true": read public buckets without credentials |
| AWS_VIRTUAL_HOSTED_STYLE_REQUEST | "true": the bucket is part of the host name, not of the path |
| AWS_REGION, AWS_DEFAULT_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, ... | as in boto3 |
| GOOGLE_*, AZURE_* | as in obstore, for ``gs://`` and ``az://`` |
| MAGNET_STORAGE_DEADLINE_S | time limit of a failing read in seconds, including retries (30) |
| MAGNET_CACHE_DIR | folder of the node's disk cache (the user's cache folder) |
| MAGNET_CACHE_GB | its limit in gigabytes for whole slides of formats that only OpenSlide reads (50) |
| MAGNET_TILE_CACHE_GB | its limit in gigabytes for compressed tiles and headers (0: none are kept) |
| MAGNET_RIGHTS | what this process may read and write, as JSON (everything); the service sets it for its jobs |
| MAGNET_JOB | id of the service's job that this process runs (none); the service sets it for its jobs |
| MAGNET_PROGRESS_FILE | path of the file to which this job appends its progress (none); its supervisor sets it |
| MAGNET_CLUSTER_MOST | resources of an autoscaling cluster at full size, such as "CPU=192,GPU=8" (no autoscaling) |
| MAGNET_NODE_WAIT_S | seconds that a job waits for new nodes of such a cluster (1800) |
| MAGNET_URL, MAGNET_TOKEN | address of the service for the command line, and the access token |
| RAY_AUTH_TOKEN | token of a Ray cluster with token authentication (Ray's file in the user's home) |
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import UsageError

if TYPE_CHECKING:
    import botocore.session


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Settings:
    """Connection settings for ``s3://``."""

    endpoint: str | None
    """URL of an S3-compatible store; None for Amazon."""
    region: str
    """AWS region; most other stores ignore it."""
    anonymous: bool
    """Whether requests are sent without a signature."""
    virtual_hosted: bool
    """Whether the bucket is part of the host name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """Settings of the cache on the node's disk."""

    folder: Path
    """Folder shared by the processes of a node, on a local disk and not on a network share."""
    max_bytes: int
    """Size limit of the whole slides kept for OpenSlide."""
    tile_bytes: int
    """Size limit of the compressed tiles and headers; 0 keeps none."""


def read_s3_settings() -> S3Settings:
    """Read the S3 settings from the environment and, where it has none, from the AWS profile."""
    import botocore.session  # noqa: PLC0415  (takes half a second; commands without object storage do without it)

    session = botocore.session.get_session()
    profile = session.get_scoped_config() if _profile_exists(session) else {}
    services = session.full_config.get("services", {}).get(profile.get("services", ""), {})
    s3 = {**_to_text_table(profile.get("s3")), **_to_text_table(services.get("s3"))}
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or s3.get("endpoint_url")
        or profile.get("endpoint_url")
    )
    if _read_flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        endpoint = None
    # botocore reads AWS_DEFAULT_REGION only, other AWS tools AWS_REGION too.
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    return S3Settings(
        endpoint=endpoint.rstrip("/") if endpoint else None,
        region=region,
        anonymous=_read_flag("AWS_SKIP_SIGNATURE"),
        virtual_hosted=_read_flag("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") or s3.get("addressing_style") == "virtual",
    )


def read_s3_fingerprint() -> tuple[str | None, ...]:
    """Return the variables that `read_s3_settings` depends on; equal values give equal settings
    unless AWS files change.
    """
    return tuple(os.environ.get(name) for name in _S3_VARIABLES)


def read_storage_deadline_s() -> float:
    """Read the time limit of a failing read in seconds, including retries."""
    return _read_number("MAGNET_STORAGE_DEADLINE_S", 30.0)


def read_cache_settings() -> CacheSettings:
    """Read the folder and the limits of the node's disk cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magnet"
    folder = Path(os.environ.get("MAGNET_CACHE_DIR") or default)
    return CacheSettings(
        folder=folder,
        max_bytes=int(_read_number("MAGNET_CACHE_GB", 50.0) * 1e9),
        tile_bytes=int(_read_number("MAGNET_TILE_CACHE_GB", 0.0, zero=True) * 1e9),
    )


def read_cluster_limit() -> dict[str, float]:
    """Read the resources of an autoscaling cluster at full size; empty without autoscaling.

    Raises:
        UsageError: the variable is malformed.
    """
    text = os.environ.get("MAGNET_CLUSTER_MOST") or ""
    try:
        return {name.strip(): float(count) for name, count in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise UsageError(f'environment variable MAGNET_CLUSTER_MOST is {text!r}; write "CPU=192,GPU=8"') from error


def read_node_wait_s() -> float:
    """Read the time in seconds that a job waits for new nodes of an autoscaling cluster."""
    return _read_number("MAGNET_NODE_WAIT_S", 1800.0)


def read_rights_text() -> str | None:
    """Read the rights of this process, to be parsed by `service.storage.rights`; None permits everything."""
    return os.environ.get("MAGNET_RIGHTS")


def read_service_job() -> str | None:
    """Read the id of the service's job that this process runs; None if it was started by hand."""
    return os.environ.get("MAGNET_JOB") or None


PROGRESS_FILE = "MAGNET_PROGRESS_FILE"
"""Name of the variable that `progress_file` reads; the job's supervisor sets it."""


def progress_file() -> str | None:
    """Return the path of the file to which this job appends its progress; None: nobody reads any."""
    return os.environ.get(PROGRESS_FILE) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """Address of the service for the command line, and the access token."""

    url: str
    """Address without a trailing slash."""
    token: str | None = field(repr=False)
    """Access token; None if there is none."""
    from_file: bool = False
    """Whether the token is from the client file, not from MAGNET_TOKEN."""


CLIENT_FILE = "~/.config/magnet/client.json"
"""File with address and token of the user's service, written by `magnet serve`, `magnet login` and `magnet rotate`."""
DEFAULT_URL = "http://127.0.0.1:8290"
"""Default address of `magnet serve` on the same machine."""


def read_client_settings() -> ClientSettings:
    """Read MAGNET_URL and MAGNET_TOKEN or else the client file.

    Raises:
        UsageError: the client file is malformed or unreadable.
    """
    stored = _read_client_file()
    url = (os.environ.get("MAGNET_URL") or stored.get("url") or DEFAULT_URL).rstrip("/")
    # A stored token must not be sent to another service than the one that issued it.
    stored_token = stored.get("token") if (stored.get("url") or "").rstrip("/") == url else None
    token = os.environ.get("MAGNET_TOKEN")
    return ClientSettings(url=url, token=token or stored_token, from_file=not token and stored_token is not None)


def write_client_file(url: str, token: str | None) -> None:
    """Write the client file completely or not at all, readable by its user only.

    Args:
        url: address of the service.
        token: access token; None writes the address alone.

    Raises:
        UsageError: the file cannot be written.
    """
    file = Path(CLIENT_FILE).expanduser()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The mode is set at creation: a later chmod would leave the token readable for a moment.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            json.dump({"url": url} | ({} if token is None else {"token": token}), handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {error.strerror or error}; check the folder's owner") from error


def _read_client_file() -> dict[str, str]:
    file = Path(CLIENT_FILE).expanduser()
    try:
        stored = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}); remove it, then run: magnet login") from error
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise UsageError(f"{file} does not contain url and token; remove it, then run: magnet login")
    return stored


def ray_token() -> str | None:
    """Read the token for Ray's Jobs API; None if Ray runs without tokens."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() if os.environ.get("RAY_AUTH_MODE") == "token" and file.is_file() else None


_S3_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_SKIP_SIGNATURE",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def mlflow_token() -> str | None:
    """Read the token for an MLflow server with authentication from MLflow's variable; None if it is not set."""
    return os.environ.get("MLFLOW_TRACKING_TOKEN") or None


def _profile_exists(session: botocore.session.Session) -> bool:
    name = session.get_config_variable("profile")
    return name is None or name in session.available_profiles


def _to_text_table(value: object) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _read_flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _read_number(name: str, default: float, *, zero: bool = False) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0  # fails the check below
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise UsageError(f"environment variable {name} is {text!r}: must be a number above 0{', or 0' * zero}")
    return value
