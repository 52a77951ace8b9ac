"""Weights of an encoder from a file or a URI, checked, and loaded without running code from the file.

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
"""Pattern of timm's tags, such as tv_in1k."""

UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError),
    *(LookupError, AttributeError, TypeError, ValueError, AssertionError),  # by the unpickler, for other kinds of files
)
"""Errors that the readers raise for a file that contains no weights."""

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the weights


def is_file_or_uri(weights: str) -> bool:
    """Return whether `weights` names a file or a URI, and not one of timm's tags, which contain neither . nor /."""
    return TAG.fullmatch(weights) is None


def read_state_dict(weights: str, *, sha256: str | None = None, fetch: FetchBytes | None = None) -> dict[str, Tensor]:
    """Read weights from a file.

    Args:
        weights: a path, or a ``file://`` or other URI, of a ``.safetensors`` or pickled file.
        sha256: hexadecimal digest that the file must have; None: any.
        fetch: reads paths and URIs; None: paths and ``file://`` URIs are read directly.

    Returns:
        Weights by name, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another digest, a file without weights, or a URI without `fetch`.
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
    return _unwrap(loaded, weights)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, ignore: Collection[str], source: str) -> None:
    """Load weights whose names and shapes are exactly those of the model.

    Args:
        model: receives the weights.
        state: weights by name.
        ignore: names of modules that `state` may have and the model lacks (a classifier).
        source: where the weights came from, for the message.

    Raises:
        ValueError: names are missing, not expected, or of another shape; each kind is listed.
    """
    expected = model.state_dict()
    given = {k: v for k, v in state.items() if k in expected or not any(k.startswith(f"{name}.") for name in ignore)}
    faults = {
        "missing": [k for k in expected if k not in given],
        "not expected": [k for k in given if k not in expected],
        "of another shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(expected[k].shape)}"
            for k in expected
            if k in given and given[k].shape != expected[k].shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {_abbreviate(names)}" for fault, names in faults.items() if names)
        raise ValueError(
            f"weights {source} do not fit this encoder: {listed}. Name the encoder that they were trained with"
        )
    model.load_state_dict(given, strict=True)


def _content(weights: str, fetch: FetchBytes | None) -> bytes:
    """Return the bytes of a path or URI."""
    if fetch is not None:  # also for local paths: with two readers one name could mean two files
        return fetch(weights)
    scheme, separator, rest = weights.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"weights {weights}: {scheme}:// cannot be read without fetch; pass fetch or a local path")
    path = Path(unquote(rest)) if separator else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights {weights}: no such file")
    return path.read_bytes()


def _unwrap(loaded: object, weights: str) -> dict[str, Tensor]:
    """Return the dictionary of tensors in a pickled file, which may be wrapped in a training checkpoint."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"weights {weights}: has no dictionary of tensors, neither at the top nor under one of {_WRAPPERS}"
        )
    return loaded


def _abbreviate(names: list[str], limit: int = 5) -> str:
    """Return the first names as a list in words."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
