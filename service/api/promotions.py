"""Promotion of registered models, recorded in the audit log."""

from __future__ import annotations

from service.api.access import Caller
from service.api.audit_records import to_actor
from service.api.mlflow_models import MlflowModels
from service.api.response_bodies import Promoted
from service.errors import MagnetError
from service.queue import audit
from service.queue.tables import Database


def promote_model(models: MlflowModels, database: Database, caller: Caller, model: str, alias: str) -> Promoted:
    """Point an alias at a registered model.

    Args:
        models: client of MLflow's registered models.
        database: the queue's database.
        caller: who promotes the model.
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        alias: the alias to set.

    Raises:
        MagnetError: as `MlflowModels.promote`; the failure is recorded.
    """
    actor = to_actor(caller)
    # MLflow takes no part in our transaction: the request is recorded before, and its outcome after.
    with database.writing() as connection:
        audit.append(connection, actor, "model.promote", model, outcome="asked", detail=f"alias {alias}")
    try:
        name, version, earlier = models.promote(model, alias)
    except MagnetError as error:
        with database.writing() as connection:
            audit.append(connection, actor, "model.promote", model, outcome="failed", detail=str(error))
        raise
    with database.writing() as connection:
        detail = f"alias {alias} is version {version}, was {earlier or 'none'}"
        audit.append(connection, actor, "model.promote", model, detail=detail)
    return Promoted(name=name, alias=alias, version=version, earlier=earlier)
