"""Loading an encoder's weights from a file or a URI, checked and without running code from the file.

Source: ``safetensors`` for the preferred format; ``torch.load(weights_only=True)`` for pickled ones.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import unquote

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

FetchBytes = Callable[[str], bytes]
"""Returns the bytes of a URI."""

TAG = re.compile(r"[A-Za-z0-9_-]+")
"""A tag of timm's, such as tv_in1k."""

UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError),
    *(LookupError, AttributeError, TypeError, ValueError, AssertionError),  # of the unpickler, for a file of other kind
)
"""What reading a file that holds no weights raises."""

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the weights


def is_file_or_uri(weights: str) -> bool:
    """Whether `weights` names a file or a URI rather than one of timm's tags, which are plain words."""
    return TAG.fullmatch(weights) is None


def read_state_dict(weights: str, *, sha256: str | None = None, fetch: FetchBytes | None = None) -> dict[str, Tensor]:
    """Weights by name, on the CPU.

    Args:
        weights: a path, or a ``file://`` or other URI; ``.safetensors`` at its end, or a pickled file.
        sha256: hexadecimal digest that the file must have.
        fetch: reads paths and URIs; None: paths and ``file://`` are read here.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another digest, not a file of weights, or a URI without `fetch`.
    """
    content = _content(weights, fetch)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(
            f"weights {weights}: SHA-256 is {digest}, expected {sha256}; fetch the file again or correct the digest"
        )
    try:
        if weights.endswith(".safetensors"):
            return safetensors.torch.load(content)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"weights {weights}: not a readable file of weights ({error})") from error
    return _unwrapped(loaded, weights)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, ignore: Collection[str], source: str) -> None:
    """Load weights whose names and shapes are exactly the model's, but for whole modules of the file not wanted.

    Args:
        model: receives the weights.
        state: weights by name.
        ignore: names of modules that the file may have and the model lacks (a classifier).
        source: where the weights came from, for the message.

    Raises:
        ValueError: names missing, not expected, or of another shape, each listed.
    """
    own = model.state_dict()
    given = {k: v for k, v in state.items() if k in own or not any(k.startswith(f"{name}.") for name in ignore)}
    faults = {
        "missing": [k for k in own if k not in given],
        "not expected": [k for k in given if k not in own],
        "of another shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in given and given[k].shape != own[k].shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"weights {source} do not fit this encoder: {listed}. Name the encoder that they belong to")
    model.load_state_dict(given, strict=True)


def _content(weights: str, fetch: FetchBytes | None) -> bytes:
    if fetch is not None:  # one reader for all names: two could read different files
        return fetch(weights)
    scheme, separator, rest = weights.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"weights {weights}: nothing here reads {scheme}://; pass fetch or a local path")
    path = Path(unquote(rest)) if separator else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights {weights}: no such file")
    return path.read_bytes()


def _unwrapped(loaded: object, weights: str) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"weights {weights}: holds no dictionary of tensors, neither bare nor under {_WRAPPERS}")
    return loaded


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
