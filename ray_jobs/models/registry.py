"""Models in MLflow's registry: registering a checkpoint, and finding the checkpoint of a model's name."""

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

# A path and no import: MLflow copies the file, and models must not depend on scoring.
SCORER = Path(__file__).parents[1] / "scoring" / "pyfunc_model.py"
"""File that MLflow executes for a registered model."""


class ModelNotFoundError(UsageError):
    """There is no model with this name. To act: the user who named it. A retry does not help."""


def register(tracking_uri: str, run_id: str, checkpoint: Path, *, name: str, alias: str) -> str:
    """Log a checkpoint as a model of a run, register it and set an alias.

    Args:
        tracking_uri: tracking URI of MLflow.
        run_id: id of the run that trained the model.
        checkpoint: folder of the checkpoint.
        name: name in the registry.
        alias: alias as in ``models:/name@alias``.

    Returns:
        The model's version in the registry.
    """
    mlflow.set_tracking_uri(tracking_uri)
    saved = checkpoints.read_info(checkpoint)
    # MLflow warns about the type hints of `predict` and ignores warning filters; recording the warnings silences it.
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SCORER),
            artifacts={"checkpoint": str(checkpoint)},
            registered_model_name=name,
            # Otherwise MLflow loads the model in another process to find out which packages it imports.
            pip_requirements=["magnifying-networks"],
            metadata={"schedule": list(saved.model.zoom.schedule), "step": saved.step},
        )
    version = str(info.registered_model_version)
    MlflowClient(tracking_uri=tracking_uri).set_registered_model_alias(name, alias, version)
    return version


def resolve(model: str, tracking_uri: str, folder: Path) -> tuple[Path, str]:
    """Find a model by its name.

    Args:
        model: ``models:/name@alias``, ``models:/name/version``, ``runs:/id/model`` or a checkpoint's folder.
        tracking_uri: tracking URI of MLflow.
        folder: receives the files of a registered model.

    Returns:
        The folder of its checkpoint, and its version in the registry ("" outside a registry).

    Raises:
        ModelNotFoundError: there is no such model.
    """
    if not model.startswith(("models:/", "runs:/")):
        return checkpoints.copy_to_local(model, folder), ""
    mlflow.set_tracking_uri(tracking_uri)
    try:
        version = _version(model, tracking_uri)
        _require_readable(model, version, tracking_uri)
        place = Path(mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise ModelNotFoundError(
            f"{model}: not found in {tracking_uri} ({error}); train a model first, or set MLFLOW_TRACKING_URI or "
            f"--storage to the values of its training"
        ) from error
    # MLflow decides on the names of the folders above the checkpoint.
    weights = next(place.rglob(checkpoints.MODEL_FILE), None)
    if weights is None:
        raise ModelNotFoundError(f"{model}: is not a MagNet: it holds no {checkpoints.MODEL_FILE}")
    return weights.parent, version


def _require_readable(model: str, version: str, tracking_uri: str) -> None:
    """Check this process's rights to a model's files, if an MLflow server says that they are on this machine.

    The answer of a server is not trusted: it could name any file. Artifacts that the server itself sends need no
    rights. Without a server the records are safe, since only jobs write them.

    Raises:
        AccessError: the files are outside the folders that this process may read.
    """
    if rights.current_rights() is None or not tracking_uri.startswith("http"):
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
    """Set an alias of a registered model.

    Args:
        model: ``models:/name@alias`` or ``models:/name/version``.
        alias: alias to set, such as champion.
        tracking_uri: tracking URI of MLflow.

    Returns:
        The model's name, its version, and the version that had the alias before (None if there was none).

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
    """Return the registered name in ``models:/name@alias`` or ``models:/name/version``."""
    return model.removeprefix("models:/").partition("@")[0].partition("/")[0]


def _version(model: str, tracking_uri: str) -> str:
    """Return the registry's version of a ``models:/`` name; "" for other names."""
    if not model.startswith("models:/"):
        return ""
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not at:
        return name.partition("/")[2]
    return str(MlflowClient(tracking_uri=tracking_uri).get_model_version_by_alias(name, alias).version)


def format_ui_command(tracking_uri: str) -> str:
    """Return the command that shows the runs."""
    if tracking_uri.startswith("http"):
        return f"open {tracking_uri}"
    return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracking_uri}"
