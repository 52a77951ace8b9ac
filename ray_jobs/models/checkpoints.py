"""What a training leaves in storage and goes on from: weights, optimizer, step and what the epoch has summed up.

A folder holds `model.safetensors` (the network, readable without this project), `settings.json` (how to build it),
`training.pt` (tensors and plain values only, read with `weights_only`) and, at an epoch's end, `validation.json`
(label and probability of each validation slide). `checkpoint_store` publishes the folder when it is whole. No state of
random generators is in it: whatever is random in a step follows from the seed and the step's number.
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
"""Raised when a checkpoint of an older version can no longer be read."""

MODEL_FILE, SETTINGS_FILE, TRAINING_FILE = "model.safetensors", "settings.json", "training.pt"
VALIDATION_FILE = "validation.json"


class CheckpointError(UsageError):
    """A checkpoint is missing, torn or of another network. To act: whoever named it. Retrying does not help."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint's description."""

    model: ModelConfig
    """The network."""
    step: int
    """Steps done."""
    metrics: dict[str, float]
    """Of the validation at that step."""
    threshold: float
    """Probability from which on a slide is called positive."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A checkpoint in storage that everybody can read, and what to call it in tables."""

    uri: str
    """Its folder."""
    name: str
    """As the user named it."""
    version: str
    """Of the registry, or empty."""
    sha256: str
    """Of the weights."""
    threshold: float
    """Probability from which on a slide is called positive."""

    def load(self) -> MagNet:
        """The network, on the CPU, in evaluation mode."""
        with tempfile.TemporaryDirectory() as folder:
            for name in (MODEL_FILE, SETTINGS_FILE):
                (Path(folder) / name).write_bytes(storage.read_bytes(storage.join(self.uri, name)))
            return load_model(Path(folder))


def publish(folder: Path, uri: str, *, name: str, version: str) -> NamedModel:
    """Put a checkpoint where workers can read it. What is there already must be the same model.

    Args:
        folder: of the checkpoint, on this machine.
        uri: folder in storage.
        name: as the user named it.
        version: of the registry, or empty.

    Raises:
        CheckpointError: `folder` holds no checkpoint, or `uri` holds another one.
    """
    threshold = describe(folder).threshold
    weights = (folder / MODEL_FILE).read_bytes()
    there = storage.join(uri, MODEL_FILE)
    if not storage.exists(there):
        storage.write_bytes(storage.join(uri, SETTINGS_FILE), (folder / SETTINGS_FILE).read_bytes())
        storage.write_bytes(there, weights)
    elif storage.read_bytes(there) != weights:
        raise CheckpointError(f"{uri}: holds another model than {name}; take a new folder for another model's scores")
    return NamedModel(uri, name, version, hashlib.sha256(weights).hexdigest(), threshold)


def local_folder(uri: str, folder: Path) -> Path:
    """A checkpoint's folder on this machine.

    Args:
        uri: of its folder, a path or URI.
        folder: receives its files, unless they can be read where they lie.

    Raises:
        CheckpointError: there is none.
    """
    if "://" not in uri and rights.in_force() is None:
        return Path(uri)
    try:
        for name in (MODEL_FILE, SETTINGS_FILE):
            (folder / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
    except NotFoundError as error:
        raise CheckpointError(f"{uri}: no checkpoint lies here; name the folder that train.py wrote") from error
    return folder


def packed(model: nn.Module, saved: Saved, training: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint.

    Args:
        model: its weights are stored.
        saved: the description.
        training: what `load_training` gives back: tensors, containers and plain values.

    Returns:
        Content by name. In memory, so that a full disk shows nowhere but in the store.
    """
    # safetensors takes contiguous tensors only, which channels-last weights are not
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {"format": FORMAT, "model": to_dict(saved.model), "step": saved.step}
    about |= {"metrics": saved.metrics, "threshold": saved.threshold}
    buffer = io.BytesIO()
    torch.save(dict(training), buffer)
    return {
        MODEL_FILE: to_safetensors(weights),
        TRAINING_FILE: buffer.getvalue(),
        SETTINGS_FILE: (json.dumps(about, indent=2) + "\n").encode(),
    }


def save(folder: Path, model: nn.Module, saved: Saved, training: Mapping[str, Any]) -> None:
    """Write a checkpoint into a folder that exists; arguments as for `packed`."""
    for name, data in packed(model, saved, training).items():
        (folder / name).write_bytes(data)


def describe(folder: Path) -> Saved:
    """The description of the checkpoint in a folder.

    Raises:
        CheckpointError: if the folder holds none, or one of another format.
    """
    path = folder / SETTINGS_FILE
    try:
        about = json.loads(path.read_text())
        version = about["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: no readable checkpoint ({error!r}); name the folder that train.py wrote"
        ) from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {version}; this version reads format {FORMAT}")
    model = parse(ModelConfig, about["model"], str(path))
    return Saved(model, about["step"], about["metrics"], about["threshold"])


def load_model(folder: Path) -> MagNet:
    """The network of a checkpoint, its weights loaded, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: if the weights are missing, torn or of another network.
    """
    model = MagNet(describe(folder).model, to_be_loaded=True)
    load_weights(folder, model)
    return model.eval()


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into a network built alike.

    Raises:
        CheckpointError: as `load_model`.
    """
    try:
        model.load_state_dict(load_file(folder / MODEL_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / MODEL_FILE}: {error}") from error


def load_training(folder: Path) -> dict[str, Any]:
    """What `save` was given as `training`.

    Raises:
        CheckpointError: if the file is missing or torn.
    """
    try:
        return torch.load(folder / TRAINING_FILE, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder / TRAINING_FILE}: {error}") from error
