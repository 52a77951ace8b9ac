"""Service settings: where its files lie, whom it serves, and how much runs at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from magnet.config import CLOSED
from service import storage
from service.settings import train as settings
from service.settings.train import SettingsError

POSITIVE_COUNTS = (
    *("max_running_per_user", "max_queued_per_user", "max_body_bytes", "max_connections", "requests_per_minute"),
    *("wrong_tokens_per_minute", "max_followed_per_user"),
)
POSITIVE_NUMBERS = (
    *("beat_s", "silence_s", "hung_s", "stalled_s", "retry_first_s", "retry_most_s", "lease_s", "arrivals_s"),
    *("min_interval_s", "request_timeout_s", "token_days"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KindLimits:
    """Jobs of each kind that run at once."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    check: int = 4
    train: int = 2
    tune: int = 1
    score: int = 2

    def __post_init__(self) -> None:
        for name in ("check", "train", "tune", "score"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class KindHours:
    """Longest running time of an attempt of each kind, in hours."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    check: float = 4.0
    train: float = 168.0
    tune: float = 336.0
    score: float = 168.0

    def __post_init__(self) -> None:
        for name in ("check", "train", "tune", "score"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a number of hours above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder or prefix that jobs may use, and who may use it."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    prefix: str
    """A URI or an absolute path."""
    read: tuple[str, ...] = ("*",)
    """Users, groups as @NAME, or * for everybody."""
    write: tuple[str, ...] = ()
    """The same; a right to write includes reading."""

    def __post_init__(self) -> None:
        if "://" not in self.prefix and not self.prefix.startswith("/"):
            raise ValueError(f"prefix = {self.prefix!r}: must be a URI or an absolute path")
        if "://" not in self.prefix and not self.prefix.strip("/"):
            raise ValueError("prefix = '/': name a folder below it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """Limits of one user or group; null: the service's own."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    max_queued: int | None = None
    """Jobs that wait."""
    max_running: int | None = None
    """Jobs that run at once."""
    max_recurring: int | None = None
    """Watches and schedules."""

    def __post_init__(self) -> None:
        for name in ("max_queued", "max_running", "max_recurring"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} = {value}: must be 0 or more, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class OidcSettings:
    """Login by an OpenID Connect provider."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    issuer: str
    """URL of the provider; its keys and endpoints are found below it."""
    client_id: str
    """Of this service at the provider; ID tokens must be meant for it."""
    owner_claim: str = "email"
    """Claim that names the user."""
    groups_claim: str = "groups"
    """Claim that lists the user's groups."""
    scope_of_group: dict[str, Literal["read", "submit", "promote", "admin"]] = field(default_factory=dict)
    """Widest scope that members of a group get; users in none of them cannot log in."""
    session_hours: float = 12.0
    """Hours until a token that a login made expires."""

    def __post_init__(self) -> None:
        if not self.issuer.startswith(("https://", "http://127.0.0.1", "http://[::1]", "http://localhost")):
            raise ValueError(f"issuer = {self.issuer!r}: must be an https:// URL")
        if not 0 < self.session_hours <= 24 * 31:
            raise ValueError(f"session_hours = {self.session_hours}: must be above 0, at most 744")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """A service, as its YAML file has it."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    storage: str
    """Folder of everything that jobs leave behind: settings, logs, checkpoints, scores; a path or s3://."""
    database: str | None = field(default=None, repr=False)  # it may hold a password
    """URL of the queue's database, such as postgresql+psycopg://user@host/magnet; null: SQLite in `storage`."""
    ray: str = "http://127.0.0.1:8265"
    """Of the cluster's dashboard, which has the Jobs API."""
    ray_token_file: str | None = None
    """File with the token of a cluster that wants one; null: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, if any."""
    mlflow: str | None = None
    """Tracking URI for the jobs; null: an SQLite file in the storage folder."""
    python: str = "python"
    """Python of the cluster's nodes, with this package installed."""
    job_env: dict[str, str] = field(default_factory=dict)
    """More environment variables for jobs. No secrets: Ray's dashboard shows them."""
    mlflow_token_file: str | None = None
    """File with the token that jobs and API send to MLflow; null: none, or MLFLOW_TRACKING_TOKEN."""
    places: tuple[Place, ...] = ()
    """Where slides, manifests, models and outputs may lie, in addition to each user's own folder in `storage`."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Users by group; a login adds the groups that its provider names."""
    quotas: dict[str, Quota] = field(default_factory=dict)
    """Limits of single users, and of each member of a group as @NAME, in place of the ...per_user settings."""
    oidc: OidcSettings | None = None
    """Login by an OpenID Connect provider; null: tokens only."""
    host: str = "127.0.0.1"
    """Address that the API binds to. Other addresses than loopback need TLS, here or by a proxy in front."""
    port: int = 8290
    """Of the API."""
    hosts: tuple[str, ...] = ()
    """Names under which the API is called, beside its address and loopback; requests for others are refused."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For is believed."""
    tls_certificate: str | None = None
    """PEM file; with `tls_key` the API speaks HTTPS."""
    tls_key: str | None = None
    """PEM file of the certificate's key."""
    max_running: KindLimits = field(default_factory=KindLimits)
    """Jobs of each kind that run at once."""
    max_running_per_user: int = 4
    """Jobs of one user that run at once."""
    max_queued_per_user: int = 1000
    """Jobs of one user that wait, those of schedules and watches included."""
    max_recurring_per_user: int = 20
    """Watches and schedules of one user."""
    min_interval_s: float = 300.0
    """Shortest time between two jobs of a schedule."""
    max_body_bytes: int = 1 << 20
    """Of a request."""
    request_timeout_s: float = 20.0
    """Seconds in which a request's headers, and then its body, must have arrived."""
    max_connections: int = 500
    """Of the API at once."""
    requests_per_minute: int = 600
    """Of one user, by all tokens together; twice as many in a burst."""
    wrong_tokens_per_minute: int = 30
    """Requests without a valid token, from one address; twice as many in a burst."""
    max_followed_per_user: int = 10
    """Logs and events that one user follows at once."""
    token_days: float = 90.0
    """Days until a new token expires, unless its maker says otherwise."""
    max_token_days: float | None = None
    """Most days that its maker may say; null: any number, or never."""
    beat_s: float = 2.0
    """Seconds between two signs of life of a job; also how old a followed log may be."""
    silence_s: float = 30.0
    """Seconds without a sign of life after which a job that Ray no longer knows counts as dead."""
    hung_s: float = 900.0
    """The same for one that Ray says is running."""
    stalled_s: float = 3600.0
    """Seconds in which neither a job's progress nor its log changes, after which the attempt is ended and retried."""
    max_hours: KindHours = field(default_factory=KindHours)
    """Hours after which an attempt is ended; it is not retried."""
    retry_first_s: float = 10.0
    """Seconds before the second attempt; each further wait is twice as long."""
    retry_most_s: float = 600.0
    """The longest wait between two attempts."""
    keep_days: float | None = 90.0
    """Days after which an ended job's rows, logs and attempt folders are removed; results stay. null: never."""
    lease_s: float = 10.0
    """Seconds after which a dispatcher that died is replaced by one that waits."""
    arrivals_s: float = 60.0
    """Seconds between two looks at each watched prefix."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port = {self.port}: must be 0 to 65535")
        for name in POSITIVE_COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.max_recurring_per_user < 0:
            raise ValueError(f"max_recurring_per_user = {self.max_recurring_per_user}: must be 0 or more")
        for name in POSITIVE_NUMBERS:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a number above 0")
        if self.max_token_days is not None and not 0 < self.max_token_days < float("inf"):
            raise ValueError(f"max_token_days = {self.max_token_days}: must be a number above 0, or null")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be named together")
        if self.keep_days is not None and not 0 < self.keep_days < float("inf"):
            raise ValueError(f"keep_days = {self.keep_days}: must be a number above 0, or null")
        if self.silence_s < 3 * self.beat_s:
            raise ValueError(f"silence_s = {self.silence_s}: must be at least 3 * beat_s = {3 * self.beat_s:g}")
        for place in self.places:
            if f"{place.prefix}/".startswith(f"{self.storage.rstrip('/')}/"):
                raise ValueError(f"places: {place.prefix} lies in `storage`, which holds secrets and other users' jobs")
        if self.database is None and "://" in self.storage:
            raise ValueError("database must be named where storage is no folder: SQLite wants a disk")

    @property
    def database_url(self) -> str:
        """Of the queue's tables."""
        return self.database or f"sqlite:///{Path(self.storage).expanduser().resolve()}/private/queue.db"

    def user_folder(self, owner: str) -> str:
        """Folder of a user's jobs and runs; no other user's job may name a place in it."""
        return storage.join(self.storage, f"users/{owner}")

    def runs(self, owner: str) -> str:
        """Folder of a user's trainings and searches, and of MLflow's file where there is no server."""
        return storage.join(self.user_folder(owner), "runs")

    def job_folder(self, owner: str, job_id: str) -> str:
        """Folder of a job's settings, logs and, if nothing else is said, results."""
        return storage.join(self.user_folder(owner), f"jobs/{job_id}")


def service_settings(config_uri: str | None, overrides: list[str]) -> ServiceSettings:
    """A service's settings from a YAML file and ``key=value`` words.

    Raises:
        SettingsError: naming every key that is unknown or has a wrong value.
    """
    where, values = config_uri or "the command line", settings.written(config_uri, overrides)
    if "storage" not in values:
        raise SettingsError(f"{where}: storage is not set; name the folder for logs, checkpoints and scores")
    if "://" not in str(values["storage"]):
        values["storage"] = str(Path(str(values["storage"])).expanduser().resolve())
    return settings.parse(ServiceSettings, values, where)
