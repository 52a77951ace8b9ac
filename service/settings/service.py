"""Service settings: places of its files, users and their rights, limits and time-outs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from magnet.config import FORBID_EXTRA
from service import storage
from service.settings.parsing import SettingsError, parse, read_values

POSITIVE_COUNTS = (
    *("max_running_per_user", "max_queued_per_user", "max_body_bytes", "max_connections", "requests_per_minute"),
    *("wrong_tokens_per_minute", "max_followed_per_user"),
)
"""Settings that must be at least 1."""
POSITIVE_NUMBERS = (
    *("beat_s", "silence_s", "hung_s", "stalled_s", "retry_first_s", "retry_most_s", "lease_s", "arrivals_s"),
    *("min_interval_s", "request_timeout_s", "token_days"),
)
"""Settings that must be above 0 and finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindLimits:
    """Largest number of jobs of each kind that run at once."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    check: int = 4
    """Checks of manifests and slides."""
    train: int = 2
    """Trainings."""
    tune: int = 1
    """Searches."""
    score: int = 2
    """Scorings."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class KindHours:
    """Longest running time of an attempt of each kind, in hours."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    check: float = 4.0
    """Hours for a check."""
    train: float = 168.0
    """Hours for a training."""
    tune: float = 336.0
    """Hours for a search."""
    score: float = 168.0
    """Hours for a scoring."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a finite number of hours above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder or prefix that jobs may use, and the users who may use it."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    prefix: str
    """URI or absolute path of the folder."""
    read: tuple[str, ...] = ("*",)
    """Users who may read: names, groups as @NAME, or * for everybody."""
    write: tuple[str, ...] = ()
    """Users who may write, in the same form; they may read too."""

    def __post_init__(self) -> None:
        if "://" not in self.prefix and not self.prefix.startswith("/"):
            raise ValueError(f"prefix = {self.prefix!r}: must be a URI (such as s3://lab/slides) or an absolute path")
        if "://" not in self.prefix and not self.prefix.strip("/"):
            raise ValueError("prefix = '/': would give access to the whole disk; name a folder below it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """Limits of one user or group, in place of the ...per_user settings; null: the limit of these settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    max_queued: int | None = None
    """Number of jobs that wait."""
    max_running: int | None = None
    """Number of jobs that run at once."""
    max_recurring: int | None = None
    """Number of watches and schedules."""

    def __post_init__(self) -> None:
        for name in ("max_queued", "max_running", "max_recurring"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} = {value}: must be 0 or more, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class OidcSettings:
    """Login by an OpenID Connect provider."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    issuer: str
    """URL of the provider, below which its keys and endpoints are discovered."""
    client_id: str
    """Name of this service at the provider; ID tokens must have it as their audience."""
    owner_claim: str = "email"
    """Claim of the ID token that names the user."""
    groups_claim: str = "groups"
    """Claim of the ID token that lists the user's groups."""
    scope_of_group: dict[str, Literal["read", "submit", "promote", "admin"]] = field(default_factory=dict)
    """Widest scope of the members of each group; a user who is in none of these groups cannot log in."""
    session_hours: float = 12.0
    """Hours until the token of a login expires, at most 744."""

    def __post_init__(self) -> None:
        if not self.issuer.startswith(("https://", "http://127.0.0.1", "http://[::1]", "http://localhost")):
            raise ValueError(f"issuer = {self.issuer!r}: must be an https:// URL (http:// only for this machine)")
        if not 0 < self.session_hours <= 24 * 31:
            raise ValueError(f"session_hours = {self.session_hours}: must be above 0 and at most 744 (31 days)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """Settings of a service, read from its YAML file."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    storage: str
    """Folder of all files of jobs: settings, logs, checkpoints, scores. A path or s3:// URI."""
    database: str | None = field(default=None, repr=False)  # it may hold a password
    """URL of the queue's database, such as postgresql+psycopg://user@host/magnet; null: an SQLite file in `storage`."""
    ray: str = "http://127.0.0.1:8265"
    """URL of the Ray cluster's dashboard, which serves the Jobs API."""
    ray_token_file: str | None = None
    """File with the token of a cluster that requires one; null: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, if set."""
    mlflow: str | None = None
    """MLflow tracking URI for the jobs; null: an SQLite file in `storage`."""
    python: str = "python"
    """Python executable on the cluster's nodes; it must have this package installed."""
    job_env: dict[str, str] = field(default_factory=dict)
    """Additional environment variables for jobs. Ray's dashboard shows them, so that they must hold no secrets."""
    mlflow_token_file: str | None = None
    """File with the token that jobs and the API send to MLflow; null: MLFLOW_TRACKING_TOKEN, if set."""
    places: tuple[Place, ...] = ()
    """Folders of slides, manifests, models and outputs that jobs may use, in addition to each user's folder in
    `storage`."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Users of each group; a login adds the groups that its provider states."""
    quotas: dict[str, Quota] = field(default_factory=dict)
    """Limits by user, or by group as @NAME for each member, in place of the ...per_user settings."""
    oidc: OidcSettings | None = None
    """Login by an OpenID Connect provider; null: tokens only."""
    host: str = "127.0.0.1"
    """Address that the API binds to. Any other than loopback needs TLS, here or in a proxy."""
    port: int = 8290
    """Port of the API, 0 to 65535."""
    hosts: tuple[str, ...] = ()
    """Host names by which the API is called, in addition to its address and loopback; other requests are refused."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For header is trusted."""
    tls_certificate: str | None = None
    """PEM file of the certificate; with `tls_key`, the API uses HTTPS."""
    tls_key: str | None = None
    """PEM file of the certificate's key."""
    max_running: KindLimits = field(default_factory=KindLimits)
    """Largest number of jobs of each kind that run at once."""
    max_running_per_user: int = 4
    """Largest number of jobs of one user that run at once."""
    max_queued_per_user: int = 1000
    """Largest number of jobs of one user that wait, those of schedules and watches included."""
    max_recurring_per_user: int = 20
    """Largest number of watches and schedules of one user."""
    min_interval_s: float = 300.0
    """Shortest time between two jobs of a schedule, in seconds."""
    max_body_bytes: int = 1 << 20
    """Largest body of a request, in bytes."""
    request_timeout_s: float = 20.0
    """Seconds within which a request's headers must arrive, and again its body."""
    max_connections: int = 500
    """Largest number of open connections of the API."""
    requests_per_minute: int = 600
    """Requests per minute of one user with all tokens together; twice as many in a burst."""
    wrong_tokens_per_minute: int = 30
    """Requests per minute without a valid token from one address; twice as many in a burst."""
    max_followed_per_user: int = 10
    """Largest number of logs and event streams that one user follows at once."""
    token_days: float = 90.0
    """Days until a new token expires, if its creator names no other number."""
    max_token_days: float | None = None
    """Largest number of days that the creator of a token may name; null: no limit, and tokens may never expire."""
    beat_s: float = 2.0
    """Seconds between two heartbeats of a job; also the longest delay of a followed log."""
    silence_s: float = 30.0
    """Seconds without a heartbeat after which a job that Ray no longer knows counts as dead; at least 3 * `beat_s`."""
    hung_s: float = 900.0
    """Seconds without a heartbeat after which a job that Ray reports as running counts as dead."""
    stalled_s: float = 3600.0
    """Seconds without a change of a job's progress or log after which the attempt is ended and retried."""
    max_hours: KindHours = field(default_factory=KindHours)
    """Hours after which an attempt of each kind is ended; it is not retried."""
    retry_first_s: float = 10.0
    """Seconds before the second attempt; the wait doubles with each further attempt."""
    retry_most_s: float = 600.0
    """Longest wait between two attempts, in seconds."""
    keep_days: float | None = 90.0
    """Days after which the rows, logs and attempt folders of an ended job are removed; results stay. null: never."""
    lease_s: float = 10.0
    """Seconds after which a waiting dispatcher replaces one that died."""
    arrivals_s: float = 60.0
    """Seconds between two listings of each watched prefix."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port = {self.port}: must be 0 to 65535")
        for name in POSITIVE_COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.max_recurring_per_user < 0:
            raise ValueError(f"max_recurring_per_user = {self.max_recurring_per_user}: must be 0 or more")
        # NaN fails this comparison too.
        for name in POSITIVE_NUMBERS:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a finite number above 0")
        if self.max_token_days is not None and not 0 < self.max_token_days < float("inf"):
            raise ValueError(f"max_token_days = {self.max_token_days}: must be a finite number above 0, or null")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate, tls_key: set both for HTTPS, or neither")
        if self.keep_days is not None and not 0 < self.keep_days < float("inf"):
            raise ValueError(f"keep_days = {self.keep_days}: must be a finite number above 0, or null")
        # One or two late heartbeats must not count as the death of a job.
        if self.silence_s < 3 * self.beat_s:
            raise ValueError(f"silence_s = {self.silence_s}: must be at least 3 * beat_s = {3 * self.beat_s:g}")
        for place in self.places:
            # With the slash, /srv/magnet-slides is not taken for a folder inside /srv/magnet.
            if f"{place.prefix}/".startswith(f"{self.storage.rstrip('/')}/"):
                raise ValueError(
                    f"places: {place.prefix} is inside `storage`, which holds secrets and the jobs of all users; "
                    "name a folder outside it"
                )
        if self.database is None and "://" in self.storage:
            raise ValueError(
                "database: is required if `storage` is not a folder on disk, because SQLite needs a disk; "
                "set the URL of a PostgreSQL database"
            )

    @property
    def database_url(self) -> str:
        """URL of the queue's database; the SQLite file in `storage` if `database` is null."""
        return self.database or f"sqlite:///{Path(self.storage).expanduser().resolve()}/private/queue.db"

    def user_folder(self, owner: str) -> str:
        """Return the folder of a user's jobs and runs; jobs of other users may not use it."""
        return storage.join(self.storage, f"users/{owner}")

    def runs(self, owner: str) -> str:
        """Return the folder of a user's trainings and searches, and of the MLflow file if there is no MLflow server."""
        return storage.join(self.user_folder(owner), "runs")

    def job_folder(self, owner: str, job_id: str) -> str:
        """Return the folder of a job's settings and logs, and of its results unless the job names another."""
        return storage.join(self.user_folder(owner), f"jobs/{job_id}")


def read_service_settings(config_uri: str | None, overrides: list[str]) -> ServiceSettings:
    """Read the settings of a service.

    Args:
        config_uri: YAML file, a path or URI; None for no file.
        overrides: texts such as ``port=8290``.

    Raises:
        SettingsError: with one line for each key that is unknown or has a wrong value.
    """
    where, values = config_uri or "the command line", read_values(config_uri, overrides)
    if "storage" not in values:
        raise SettingsError(
            f"{where}: storage is not set; name the folder for logs, checkpoints and scores, such as /srv/magnet"
        )
    # Jobs run in other folders, in which a relative path would mean another place.
    if "://" not in str(values["storage"]):
        values["storage"] = str(Path(str(values["storage"])).expanduser().resolve())
    return parse(ServiceSettings, values, where)
