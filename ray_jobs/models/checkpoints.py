"""The content of a checkpoint: weights, optimizer state, step, and the sums of the epoch so far.

A folder holds `model.safetensors` (the network, readable without this project), `settings.json` (how to build it),
`training.pt` (tensors and plain values only, read with `weights_only`) and, at the end of an epoch, `validation.json`
(label and probability of each validation slide). `checkpoint_store` publishes the folder when it is complete.

A checkpoint holds no state of random generators: all random numbers of a step follow from the seed and the step.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from magnet.config import ModelConfig
from magnet.zoom import MagNet
from service import storage
from service.errors import NotFoundError, UsageError
from service.settings.parsing import parse, to_dict
from service.storage import rights

FORMAT = 1
"""Version of the format; it is increased when older checkpoints can no longer be read."""

MODEL_FILE, SETTINGS_FILE, TRAINING_FILE = "model.safetensors", "settings.json", "training.pt"
VALIDATION_FILE = "validation.json"


class CheckpointError(UsageError):
    """A checkpoint is missing, corrupt or of another network. To act: the user who named it. A retry does not help."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Description of a checkpoint: the content of `settings.json`."""

    model: ModelConfig
    """Settings of the network."""
    step: int
    """Number of steps done."""
    metrics: dict[str, float]
    """Validation metrics at that step by name."""
    threshold: float
    """Probability at and above which a slide is called positive."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A checkpoint that all workers can read, and what tables call it."""

    uri: str
    """Path or URI of its folder."""
    name: str
    """Name that the user gave, such as ``models:/magnet@champion``."""
    version: str
    """Version in the registry; empty outside a registry."""
    sha256: str
    """SHA-256 of the file of weights; empty for an untrained network."""
    threshold: float
    """Probability at and above which a slide is called positive."""

    def load(self) -> MagNet:
        """Load the network, on the CPU and in evaluation mode."""
        with tempfile.TemporaryDirectory() as folder:
            for name in (MODEL_FILE, SETTINGS_FILE):
                (Path(folder) / name).write_bytes(storage.read_bytes(storage.join(self.uri, name)))
            return load_model(Path(folder))


def publish(folder: Path, uri: str, *, name: str, version: str) -> NamedModel:
    """Copy a checkpoint to where all workers can read it. A model that is already there must be the same.

    Args:
        folder: the checkpoint's folder on this machine.
        uri: path or URI of the folder to copy to.
        name: name that the user gave.
        version: version in the registry, or empty.

    Raises:
        CheckpointError: `folder` holds no checkpoint, or `uri` holds another one.
    """
    threshold = read_info(folder).threshold
    weights = (folder / MODEL_FILE).read_bytes()
    target = storage.join(uri, MODEL_FILE)
    if not storage.exists(target):
        # The weights come last: if they are there, an earlier process wrote both files.
        storage.write_bytes(storage.join(uri, SETTINGS_FILE), (folder / SETTINGS_FILE).read_bytes())
        storage.write_bytes(target, weights)
    elif storage.read_bytes(target) != weights:
        raise CheckpointError(f"{uri}: holds another model than {name}; name a new folder for this model's scores")
    return NamedModel(uri, name, version, hashlib.sha256(weights).hexdigest(), threshold)


def copy_to_local(uri: str, folder: Path) -> Path:
    """Return a checkpoint's folder on this machine.

    Args:
        uri: path or URI of its folder.
        folder: receives its files, unless they can be read in place.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    # With restricted rights a path is read through `storage`, which checks it.
    if "://" not in uri and rights.current_rights() is None:
        return Path(uri)
    try:
        for name in (MODEL_FILE, SETTINGS_FILE):
            (folder / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
    except NotFoundError as error:
        raise CheckpointError(f"{uri}: holds no checkpoint; name a folder that train.py wrote") from error
    return folder


def pack_checkpoint(model: nn.Module, saved: CheckpointInfo, training: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a checkpoint.

    Args:
        model: network whose weights are stored.
        saved: description of the checkpoint.
        training: what `load_training` returns later: tensors, containers and plain values.

    Returns:
        Content by name. It is in memory, not on disk: a full disk can only fail the store, which handles it.
    """
    # safetensors accepts contiguous tensors only; channels-last weights are not contiguous.
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    settings = {"format": FORMAT, "model": to_dict(saved.model), "step": saved.step}
    settings |= {"metrics": saved.metrics, "threshold": saved.threshold}
    buffer = io.BytesIO()
    torch.save(dict(training), buffer)
    return {
        MODEL_FILE: to_safetensors(weights),
        TRAINING_FILE: buffer.getvalue(),
        SETTINGS_FILE: (json.dumps(settings, indent=2) + "\n").encode(),
    }


def read_info(folder: Path) -> CheckpointInfo:
    """Read the description of the checkpoint in a folder.

    Raises:
        CheckpointError: the folder holds no checkpoint, or one of another format.
    """
    path = folder / SETTINGS_FILE
    try:
        settings = json.loads(path.read_text())
        version = settings["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: is not a readable checkpoint ({error!r}); name a folder that train.py wrote"
        ) from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: has checkpoint format {version}; this version reads format {FORMAT}")
    model = parse(ModelConfig, settings["model"], str(path))
    return CheckpointInfo(model, settings["step"], settings["metrics"], settings["threshold"])


def load_model(folder: Path) -> MagNet:
    """Load the network of a checkpoint, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: the weights are missing, corrupt or of another network.
    """
    model = MagNet(read_info(folder).model, to_be_loaded=True)
    load_weights(folder, model)
    return model.eval()


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into a network with the same settings.

    Raises:
        CheckpointError: as for `load_model`.
    """
    try:
        model.load_state_dict(load_file(folder / MODEL_FILE))
    # A RuntimeError means that names or shapes of the weights differ from the network's.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / MODEL_FILE}: {error}") from error


def load_training(folder: Path) -> dict[str, Any]:
    """Load what `pack_checkpoint` was given as `training`.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    try:
        # Unlike a plain pickle, `weights_only` cannot run code.
        return torch.load(folder / TRAINING_FILE, weights_only=True, map_location="cpu")
    # Which of these errors torch raises depends on where the file is truncated.
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder / TRAINING_FILE}: {error}") from error
