"""The one module that reads the environment: endpoints, credentials and cache places, nothing that changes a result.

| variable | meaning |
| --- | --- |
| AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL | where ``s3://`` lies, unless it is Amazon; else the AWS profile's endpoint |
| AWS_SKIP_SIGNATURE | "true": read public buckets without credentials |
| AWS_VIRTUAL_HOSTED_STYLE_REQUEST | "true": the bucket is part of the host name, not of the path |
| AWS_REGION, AWS_DEFAULT_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, ... | as boto3 reads them |
| GOOGLE_*, AZURE_* | as obstore reads them for ``gs://`` and ``az://`` |
| MAGNET_STORAGE_DEADLINE_S | seconds until a failing read is given up, retries included (30) |
| MAGNET_CACHE_DIR | folder of the node's disk cache (the user's cache folder) |
| MAGNET_CACHE_GB | its bound in gigabytes (50), for whole slides of formats that only OpenSlide reads |
| MAGNET_TILE_CACHE_GB | bound in gigabytes of the compressed tiles and headers kept there (0: none are kept) |
| MAGNET_RIGHTS | what this process may read and write, as JSON (anything); the service sets it for its jobs |
| MAGNET_JOB | id of the service's job that this process runs (none); the service sets it for its jobs |
| MAGNET_PROGRESS_FILE | path of the file to which this job appends its progress (none); its supervisor sets it |
| MAGNET_CLUSTER_MOST | what a cluster that grows can grow to, such as "CPU=192,GPU=8" (it does not grow) |
| MAGNET_NODE_WAIT_S | seconds that a job waits for such nodes to come (1800) |
| MAGNET_URL, MAGNET_TOKEN | the service that the command line speaks to, and with what right |
| RAY_AUTH_TOKEN | for a Ray cluster with token authentication; else what Ray keeps in the user's home |
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
    """How ``s3://`` is reached."""

    endpoint: str | None
    """URL of an S3-compatible store; None for Amazon."""
    region: str
    """Amazon's region; other stores mostly ignore it."""
    anonymous: bool
    """True: requests are not signed."""
    virtual_hosted: bool
    """True: the bucket is part of the host name."""
    profile: str | None
    """The AWS profile in force, so that a change of it is noticed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """What is kept on the node's disk."""

    folder: Path
    """Shared by the processes of a node; on a disk of its own, not on a network share."""
    max_bytes: int
    """Bound of the whole slides kept for OpenSlide."""
    tile_bytes: int
    """Bound of the compressed tiles and headers, 0 for none."""


def s3_settings() -> S3Settings:
    """The S3 settings in force: environment first, then the AWS profile."""
    import botocore.session  # noqa: PLC0415  (half a second, which commands without object storage need not wait for)

    session = botocore.session.get_session()
    profile = session.get_scoped_config() if _profile_exists(session) else {}
    services = session.full_config.get("services", {}).get(profile.get("services", ""), {})
    s3 = {**_table(profile.get("s3")), **_table(services.get("s3"))}
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or s3.get("endpoint_url")
        or profile.get("endpoint_url")
    )
    if _flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        endpoint = None
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    return S3Settings(
        endpoint=endpoint.rstrip("/") if endpoint else None,
        region=region,
        anonymous=_flag("AWS_SKIP_SIGNATURE"),
        virtual_hosted=_flag("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") or s3.get("addressing_style") == "virtual",
        profile=session.get_config_variable("profile"),
    )


def s3_fingerprint() -> tuple[str | None, ...]:
    """The variables that `s3_settings` depends on: equal fingerprints, equal settings (files of AWS aside)."""
    return tuple(os.environ.get(name) for name in _S3_VARIABLES)


def storage_deadline_s() -> float:
    """Seconds until a failing read is given up, retries included."""
    return _number("MAGNET_STORAGE_DEADLINE_S", 30.0)


def cache_settings() -> CacheSettings:
    """Place and bounds of the node's disk cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magnet"
    folder = Path(os.environ.get("MAGNET_CACHE_DIR") or default)
    return CacheSettings(
        folder=folder,
        max_bytes=int(_number("MAGNET_CACHE_GB", 50.0) * 1e9),
        tile_bytes=int(_number("MAGNET_TILE_CACHE_GB", 0.0, zero=True) * 1e9),
    )


def cluster_most() -> dict[str, float]:
    """What the cluster can grow to, by resource; empty where it does not grow."""
    text = os.environ.get("MAGNET_CLUSTER_MOST") or ""
    try:
        return {name.strip(): float(count) for name, count in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise UsageError(f'environment variable MAGNET_CLUSTER_MOST is {text!r}: want e.g. "CPU=192,GPU=8"') from error


def node_wait_s() -> float:
    """Seconds that a job waits for nodes of a cluster that grows."""
    return _number("MAGNET_NODE_WAIT_S", 1800.0)


def rights_text() -> str | None:
    """What this process may read and write, as `service.storage.rights` has it; None: anything."""
    return os.environ.get("MAGNET_RIGHTS")


def service_job() -> str | None:
    """Id of the service's job that this process runs; None: it was started by hand."""
    return os.environ.get("MAGNET_JOB") or None


PROGRESS_FILE = "MAGNET_PROGRESS_FILE"
"""Name of the variable that `progress_file` reads; the job's supervisor sets it."""


def progress_file() -> str | None:
    """Return the path of the file to which this job appends its progress; None: nobody reads any."""
    return os.environ.get(PROGRESS_FILE) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """The service that the command line uses."""

    url: str
    token: str | None = field(repr=False)
    from_file: bool = False
    """True: the token is the client file's, not MAGNET_TOKEN."""


CLIENT_FILE = "~/.config/magnet/client.json"
"""Address and token of the user's service: written by `magnet serve`, `magnet login` and `magnet rotate`."""
DEFAULT_URL = "http://127.0.0.1:8290"
"""Of `magnet serve` on this machine."""


def client_settings() -> ClientSettings:
    """MAGNET_URL and MAGNET_TOKEN, else what the client file holds.

    Raises:
        UsageError: the client file is malformed or cannot be read.
    """
    kept = _client_file()
    url = (os.environ.get("MAGNET_URL") or kept.get("url") or DEFAULT_URL).rstrip("/")
    own = kept.get("token") if (kept.get("url") or "").rstrip("/") == url else None  # sent to no other service
    token = os.environ.get("MAGNET_TOKEN")
    return ClientSettings(url=url, token=token or own, from_file=not token and own is not None)


def keep_client(url: str, token: str | None) -> None:
    """Write the client file, whole or not at all, readable by its user only.

    Args:
        url: of the service.
        token: None: the address alone.

    Raises:
        UsageError: the file cannot be written.
    """
    file = Path(CLIENT_FILE).expanduser()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            json.dump({"url": url} | ({} if token is None else {"token": token}), opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {error.strerror or error}; check the folder's owner") from error


def _client_file() -> dict[str, str]:
    file = Path(CLIENT_FILE).expanduser()
    try:
        kept = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}); remove it, then run: magnet login") from error
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        raise UsageError(f"{file} does not hold url and token; remove it, then run: magnet login")
    return kept


def ray_token() -> str | None:
    """The token for Ray's Jobs API, where Ray uses any."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return kept.read_text().strip() if os.environ.get("RAY_AUTH_MODE") == "token" and kept.is_file() else None


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
    """The token of an MLflow server that wants one, from MLflow's own variable."""
    return os.environ.get("MLFLOW_TRACKING_TOKEN") or None


def _profile_exists(session: botocore.session.Session) -> bool:
    name = session.get_config_variable("profile")
    return name is None or name in session.available_profiles


def _table(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _number(name: str, default: float, *, zero: bool = False) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise UsageError(f"environment variable {name} is {text!r}: must be a number above 0{', or 0' * zero}")
    return value
