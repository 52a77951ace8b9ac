"""Routes of registered models."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.answers import Promoted
from service.api.callers import Promoter
from service.api.denials import actor_of
from service.api.mlflow_models import MlflowModels
from service.api.problems import documented
from service.api.routes.jobs import settings_of, store_of
from service.api.views import Promotion
from service.errors import MagnetError
from service.queue import audit

router = APIRouter(prefix="/v1/models", tags=["models"], responses=documented(404))


@router.post("/promote")
def promote(request: Request, caller: Promoter, body: Promotion) -> Promoted:
    """Point an alias, such as `champion`, at a registered model."""
    database, actor = store_of(request).database, actor_of(caller)
    models = MlflowModels(settings_of(request))
    # MLflow takes no part in our transaction: what is asked is recorded before, and how it ended after.
    with database.writing() as connection:
        audit.append(connection, actor, "model.promote", body.model, outcome="asked", detail=f"alias {body.alias}")
    try:
        name, version, earlier = models.promote(body.model, body.alias)
    except MagnetError as error:
        with database.writing() as connection:
            audit.append(connection, actor, "model.promote", body.model, outcome="failed", detail=str(error))
        raise
    with database.writing() as connection:
        detail = f"alias {body.alias} is version {version}, was {earlier or 'none'}"
        audit.append(connection, actor, "model.promote", body.model, detail=detail)
    return Promoted(name=name, alias=body.alias, version=version, earlier=earlier)
