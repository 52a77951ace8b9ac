"""What the service itself is told: where its things lie, whom it serves, and how much runs at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from magnet.config import CLOSED
from service import settings, storage
from service.settings import SettingsError


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
    allowed_prefixes: tuple[str, ...] = ()
    """Where slides, manifests, models and outputs of jobs may lie, beside `storage`."""
    host: str = "127.0.0.1"
    """Address that the API binds to. Anything but loopback wants TLS in front."""
    port: int = 8290
    """Of the API."""
    max_running: KindLimits = field(default_factory=KindLimits)
    """Jobs of each kind that run at once."""
    max_running_per_user: int = 4
    """Jobs of one user that run at once."""
    max_queued_per_user: int = 1000
    """Jobs of one user that wait."""
    max_body_bytes: int = 1 << 20
    """Of a request."""
    requests_per_minute: int = 600
    """Of one token; twice as many in a burst."""
    beat_s: float = 2.0
    """Seconds between two signs of life of a job; also how old a followed log may be."""
    silence_s: float = 30.0
    """Seconds without a sign of life after which a job that Ray no longer knows counts as dead."""
    hung_s: float = 900.0
    """The same for one that Ray says is running."""
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
        for name in ("max_running_per_user", "max_queued_per_user", "max_body_bytes", "requests_per_minute"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        seconds = ("beat_s", "silence_s", "hung_s", "retry_first_s", "retry_most_s", "lease_s", "arrivals_s")
        for name in seconds:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a number above 0")
        if self.keep_days is not None and not 0 < self.keep_days < float("inf"):
            raise ValueError(f"keep_days = {self.keep_days}: must be a number above 0, or null")
        if self.silence_s < 3 * self.beat_s:
            raise ValueError(f"silence_s = {self.silence_s}: must be at least 3 * beat_s = {3 * self.beat_s:g}")
        if self.database is None and "://" in self.storage:
            raise ValueError("database must be named where storage is no folder: SQLite wants a disk")

    @property
    def database_url(self) -> str:
        """Of the queue's tables."""
        return self.database or f"sqlite:///{Path(self.storage).expanduser().resolve()}/queue.db"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All places that a job may name."""
        return (self.storage, *self.allowed_prefixes)

    @property
    def runs(self) -> str:
        """Folder of trainings and searches, and of MLflow's file where there is no server."""
        return storage.join(self.storage, "runs")

    def job_folder(self, job_id: str) -> str:
        """Folder of a job's settings, logs and, if nothing else is said, results."""
        return storage.join(self.storage, f"jobs/{job_id}")


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
