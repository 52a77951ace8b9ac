"""Models in MLflow: a checkpoint becomes a registered model, a model's name becomes a checkpoint again."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from ray_jobs.models import checkpoints
from service.errors import UsageError
from service.storage import rights

SCORER = Path(__file__).parents[1] / "scoring" / "pyfunc_model.py"
"""The code that MLflow runs for a registered model: slide URIs in, probabilities and regions out."""


class ModelNotFoundError(UsageError):
    """No model under this name. To act: whoever named it. Retrying does not help."""


def register(tracking_uri: str, run_id: str, checkpoint: Path, *, name: str, alias: str) -> str:
    """Log a checkpoint as a model of a run, register it and point an alias at it; its version.

    Args:
        tracking_uri: of MLflow.
        run_id: the run that made it.
        checkpoint: its folder.
        name: in the registry.
        alias: as in ``models:/name@alias``.
    """
    mlflow.set_tracking_uri(tracking_uri)
    about = checkpoints.describe(checkpoint)
    # MLflow warns of type hints of rows that hold values of several types, past any filter; recorded, it is silent.
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SCORER),
            artifacts={"checkpoint": str(checkpoint)},
            registered_model_name=name,
            pip_requirements=["magnifying-networks"],
            metadata={"schedule": list(about.model.zoom.schedule), "step": about.step},
        )
    version = str(info.registered_model_version)
    MlflowClient(tracking_uri=tracking_uri).set_registered_model_alias(name, alias, version)
    return version


def resolve(model: str, tracking_uri: str, folder: Path) -> tuple[Path, str]:
    """Find a model by ``models:/name@alias``, ``models:/name/version``, ``runs:/id/model`` or a checkpoint's folder.

    Args:
        model: its name.
        tracking_uri: of MLflow.
        folder: where a registered model is put.

    Returns:
        The folder of its checkpoint, and its version in the registry or "".

    Raises:
        ModelNotFoundError: if there is none.
    """
    if not model.startswith(("models:/", "runs:/")):
        return checkpoints.local_folder(model, folder), ""
    mlflow.set_tracking_uri(tracking_uri)
    try:
        version = _version(model, tracking_uri)
        _require_readable(model, version, tracking_uri)
        place = Path(mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise ModelNotFoundError(
            f"{model}: not found in {tracking_uri} ({error}); train one first, or set MLFLOW_TRACKING_URI or --storage "
            f"to where it was trained"
        ) from error
    found = next(place.rglob(checkpoints.MODEL_FILE), None)
    if found is None:
        raise ModelNotFoundError(f"{model}: is no MagNet: it holds no {checkpoints.MODEL_FILE}")
    return found.parent, version


def _require_readable(model: str, version: str, tracking_uri: str) -> None:
    """Hold a model's files to this process's rights, where an MLflow server says that they lie on this machine.

    Artifacts that the server hands out itself need none. Without a server only jobs write the records.

    Raises:
        AccessError: they lie elsewhere.
    """
    if rights.in_force() is None or not tracking_uri.startswith("http"):
        return
    client = MlflowClient(tracking_uri=tracking_uri)
    if model.startswith("runs:/"):
        source = client.get_run(model.split("/")[1]).info.artifact_uri
    else:
        source = client.get_model_version_download_uri(_name(model), version)
        if source.startswith("models:/"):
            source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    if is_local_uri(source):
        rights.resolve(local_file_uri_to_path(source))


def promote(model: str, alias: str, tracking_uri: str) -> tuple[str, str, str | None]:
    """Point an alias at a registered model.

    Args:
        model: ``models:/name@alias`` or ``models:/name/version``.
        alias: that stands for it from now on, such as champion.
        tracking_uri: of MLflow.

    Returns:
        The model's name, its version, and the version that the alias stood for, None if there was none.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    name = _name(model)
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        version = _version(model, tracking_uri)
        earlier = client.get_registered_model(name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise ModelNotFoundError(f"{model}: not found in {tracking_uri} ({error})") from error
    return name, version, None if earlier is None else str(earlier)


def _name(model: str) -> str:
    """The registered name in ``models:/name@alias`` or ``models:/name/version``."""
    return model.removeprefix("models:/").partition("@")[0].partition("/")[0]


def _version(model: str, tracking_uri: str) -> str:
    """The registry's version behind a ``models:/`` name."""
    if not model.startswith("models:/"):
        return ""
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not at:
        return name.partition("/")[2]
    return str(MlflowClient(tracking_uri=tracking_uri).get_model_version_by_alias(name, alias).version)


def ui_command(tracking_uri: str) -> str:
    """What to type to see the runs."""
    if tracking_uri.startswith("http"):
        return f"open {tracking_uri}"
    return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracking_uri}"
