"""Route of registered models."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.dependencies import Promoter, get_settings, get_store
from service.api.mlflow_models import MlflowModels
from service.api.problems import describe_problems
from service.api.promotions import promote_model
from service.api.request_bodies import Promotion
from service.api.response_bodies import Promoted

router = APIRouter(prefix="/v1/models", tags=["models"], responses=describe_problems(404))


@router.post("/promote")
def promote(request: Request, caller: Promoter, body: Promotion) -> Promoted:
    """Point an alias, such as `champion`, at a registered model."""
    models = MlflowModels(get_settings(request))
    return promote_model(models, get_store(request).database, caller, body.model, body.alias)
