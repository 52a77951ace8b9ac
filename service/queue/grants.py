"""The rights of a user and of a job to read and write places, from the service's settings."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from service import storage
from service.environment import CLIENT_FILE, read_cache_settings
from service.settings.service import ServiceSettings
from service.storage.rights import Right, Rights

SECRETS = (
    str(Path(CLIENT_FILE).parent),
    "~/.ray",
    "~/.aws",
    "~/.ssh",
    "~/.config/gcloud",
    "~/.azure",
    "~/.pgpass",
    "~/.netrc",
    "~/.kube",
    "~/.docker",
    "~/.gnupg",
)
"""Folders and files with credentials that are closed to all jobs, even if a place of the settings contains them."""


def groups_of(settings: ServiceSettings, owner: str, claimed: Collection[str] = ()) -> frozenset[str]:
    """Return the groups of a user: those of the settings, and those that a login named.

    Args:
        settings: of the service.
        owner: the user.
        claimed: groups that a login named.
    """
    return frozenset(claimed) | {name for name, members in settings.groups.items() if owner in members}


def user_rights(settings: ServiceSettings, owner: str, groups: Collection[str]) -> Rights:
    """Return the rights to the places that a user's requests may name.

    Args:
        settings: of the service.
        owner: the user.
        groups: of the user, as `groups_of` returns them.
    """
    return Rights(_of_user(settings, owner, groups))


def job_rights(settings: ServiceSettings, owner: str, groups: Collection[str], job_id: str) -> Rights:
    """Return the rights of a job: those of its user, and the right to write into its own folders.

    Args:
        settings: of the service.
        owner: the user.
        groups: of the user, as `groups_of` returns them.
        job_id: the job.
    """
    folders = [settings.job_folder(owner, job_id), storage.join(settings.runs(owner), job_id)]
    if settings.mlflow is None:
        folders.append(settings.runs(owner))  # where the embedded MLflow keeps its file and artifacts
    return Rights(
        [*_of_user(settings, owner, groups), *(Right(prefix=folder, read=True, write=True) for folder in folders)]
    )


def _of_user(settings: ServiceSettings, owner: str, groups: Collection[str]) -> list[Right]:
    """Return the places of the settings with the rights of a user, the closed places, and the user's folder."""
    names = {"*", owner, *(f"@{group}" for group in groups)}
    granted = [
        Right(prefix=place.prefix, read=bool(names & set(place.read)), write=bool(names & set(place.write)))
        for place in settings.places
    ]
    closed = [Right(prefix=place) for place in closed_places(settings)]
    user_folder = Right(prefix=settings.user_folder(owner), read=True)
    return [*granted, *closed, user_folder]


def closed_places(settings: ServiceSettings) -> list[str]:
    """Return the places that are closed to all jobs: the storage, credentials, and the cache.

    The cache contains copies of the slides of other users.
    """
    named = (settings.ray_token_file, settings.mlflow_token_file, settings.tls_key)
    places = [settings.storage, str(read_cache_settings().folder), *filter(None, named)]
    database = sa.make_url(settings.database_url)
    if database.get_backend_name() == "sqlite" and database.database:
        # DBOS keeps its tables in a second file, and SQLite its journals in two more.
        places += [f"{database.database}{ending}" for ending in ("", "-wal", "-shm", "-workflows")]
    return [str(Path(place).expanduser()) if "://" not in place else place for place in (*places, *SECRETS)]
