"""Whose job may touch what: the rights of a user and of a job, from the service's settings."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from service import storage
from service.environment import CLIENT_FILE, cache_settings
from service.settings.service import ServiceSettings
from service.storage.rights import Right, Rights

SECRETS = (
    *(
        str(Path(CLIENT_FILE).parent),
        "~/.ray",
        "~/.aws",
        "~/.ssh",
        "~/.config/gcloud",
        "~/.azure",
        "~/.pgpass",
        "~/.netrc",
    ),
    *("~/.kube", "~/.docker", "~/.gnupg"),
)
"""Folders and files that are closed to all jobs, also where a place of the settings holds them."""


def groups_of(settings: ServiceSettings, owner: str, claimed: Collection[str] = ()) -> frozenset[str]:
    """The groups of a user: those of the settings, and those that a login named."""
    return frozenset(claimed) | {name for name, members in settings.groups.items() if owner in members}


def user_rights(settings: ServiceSettings, owner: str, groups: Collection[str]) -> Rights:
    """What a user's requests may name.

    Args:
        settings: of the service.
        owner: the user.
        groups: as `groups_of` gives them.
    """
    return Rights(_of_user(settings, owner, groups))


def job_rights(settings: ServiceSettings, owner: str, groups: Collection[str], job_id: str) -> Rights:
    """What a job may touch: what its user may, and its own folders, which it writes."""
    own = [settings.job_folder(owner, job_id), storage.join(settings.runs(owner), job_id)]
    if settings.mlflow is None:
        own.append(settings.runs(owner))  # where the embedded MLflow keeps its file and artifacts
    return Rights([*_of_user(settings, owner, groups), *(Right(prefix=place, read=True, write=True) for place in own)])


def _of_user(settings: ServiceSettings, owner: str, groups: Collection[str]) -> list[Right]:
    names = {"*", owner, *(f"@{group}" for group in groups)}
    found = [
        Right(prefix=place.prefix, read=bool(names & set(place.read)), write=bool(names & set(place.write)))
        for place in settings.places
    ]
    closed = [Right(prefix=place) for place in closed_places(settings)]
    own = Right(prefix=settings.user_folder(owner), read=True)
    return [*found, *closed, own]


def closed_places(settings: ServiceSettings) -> list[str]:
    """What no job may touch: the storage, secrets, and copies of other users' slides in the cache."""
    named = (settings.ray_token_file, settings.mlflow_token_file, settings.tls_key)
    places = [settings.storage, str(cache_settings().folder), *filter(None, named)]
    database = sa.make_url(settings.database_url)
    if database.get_backend_name() == "sqlite" and database.database:
        # DBOS keeps a file beside the queue's, and SQLite its journals.
        places += [f"{database.database}{ending}" for ending in ("", "-wal", "-shm", "-workflows")]
    return [str(Path(place).expanduser()) if "://" not in place else place for place in (*places, *SECRETS)]
