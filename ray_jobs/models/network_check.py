"""Checks of a training's network before the cluster is used: names of encoders, and their weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from magnet.config import ModelConfig
from magnet.encoder import Encoder, classifier_names, make_encoder
from magnet.weights import is_file_or_uri, load_strictly, read_state_dict
from magnet.zoom import MagNet
from service import storage
from service.errors import MagnetError, NotFoundError, UsageError


def require_network(config: ModelConfig, encoders: Iterable[str] = ()) -> None:
    """Build the network without memory for its weights, and read each file of weights once.

    Args:
        config: settings of the network.
        encoders: names that a search tries instead of the classifier's encoder.

    Raises:
        UsageError: an encoder is unknown, or its weights are missing, corrupt or of another network.
        StorageError: the store of the weights failed; a retry can help.
    """
    with network_errors():
        with torch.device("meta"):
            for name in encoders:
                make_encoder(name, in_px=config.zoom.patch_px, to_be_loaded=True)
            model = MagNet(config, to_be_loaded=True)
        files = {(part.weights, part.weights_sha256) for part in (config.classifier, config.auxiliary)}
        for weights, sha256 in sorted(files, key=str):
            if weights is None or not is_file_or_uri(weights):
                continue
            state = read_state_dict(weights, sha256=sha256, fetch=storage.read_bytes)
            for encoder in _encoders_with(model, config, weights):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*is a no-op", UserWarning)  # on "meta" nothing is copied
                    load_strictly(encoder.backbone, state, ignore=classifier_names(encoder.backbone), source=weights)


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn errors of encoders and weights into `UsageError` while the context lasts.

    Raises:
        UsageError: an encoder is unknown, or its weights are missing, corrupt or of another network.
    """
    try:
        yield
    except MagnetError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:  # a pickled file can hold any type of object
        raise UsageError(f"the network cannot be built: {error}") from error


def _encoders_with(model: MagNet, config: ModelConfig, weights: str) -> list[Encoder]:
    """Return the encoders that load these weights: the classifier's, the auxiliary ones, or both."""
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    classifier = [model.encoder] if config.classifier.weights == weights else []
    auxiliary = [encoder for encoder in encoders if encoder is not model.encoder]
    return classifier + (auxiliary if config.auxiliary.weights == weights else [])
