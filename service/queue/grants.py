"""Whose job may touch what: the rights of a user and of a job, from the service's settings."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from service import storage
from service.environment import CLIENT_FILE
from service.service_settings import ServiceSettings
from service.storage.rights import Right, Rights

SECRET_FOLDERS = (str(Path(CLIENT_FILE).parent), "~/.ray", "~/.aws", "~/.ssh", "~/.config/gcloud", "~/.azure")
"""Closed to all jobs, also where a place of the settings holds them."""


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
    closed = [Right(prefix=str(Path(folder).expanduser())) for folder in SECRET_FOLDERS]
    own = Right(prefix=settings.user_folder(owner), read=True)
    return [*found, *closed, Right(prefix=settings.storage), own]
