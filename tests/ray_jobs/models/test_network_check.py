"""Encoders and weights are checked before the cluster is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from magnet.config import ModelConfig
from magnet.encoder import make_encoder
from ray_jobs.models.network_check import require_network
from ray_jobs.training import driver as training
from service.cohort.manifest import Manifest
from service.errors import NotFoundError, UsageError
from service.settings.train import read_train_settings

BASE = read_train_settings(None, ["model.zoom.schedule=[2,2]", "model.classifier.encoder=test_resnet"])


def with_weights(weights: str | None, encoder: str = "test_resnet", sha256: str | None = None) -> ModelConfig:
    classifier = replace(BASE.model.classifier, encoder=encoder, weights=weights, weights_sha256=sha256)
    return replace(BASE.model, classifier=classifier)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.torch.save_file(make_encoder("test_resnet").backbone.state_dict(), path)
    return str(path)


def test_weights_that_fit_are_accepted_as_path_and_as_uri(weights: str) -> None:
    require_network(with_weights(weights))
    require_network(with_weights(f"file://{weights}"))
    require_network(with_weights(None))


def test_wrong_encoders_and_weights_are_usage_errors_that_name_the_problem(weights: str, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(Path(weights).read_bytes()[:1000])
    (tmp_path / "text.pth").write_text("these are no weights")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    for config, message in (
        (with_weights(None, "resnet_18"), "timm has no such model"),
        (with_weights("nobody", "resnet18"), "timm has no weights 'nobody'"),
        (with_weights(weights, "resnet18"), "do not fit this encoder"),
        (with_weights(weights, sha256="0" * 64), "SHA-256 is"),
        (with_weights(str(tmp_path / "torn.safetensors")), "not a readable file"),
        (with_weights(str(tmp_path / "text.pth")), "not a readable file"),
        (with_weights(str(tmp_path / "list.pth")), "has no dictionary of tensors"),
    ):
        with pytest.raises(UsageError, match=message):
            require_network(config)
    with pytest.raises(NotFoundError, match="no such file"):
        require_network(with_weights("/no/such.safetensors"))
    with pytest.raises(UsageError, match="'dream'"):
        require_network(with_weights(None), ["test_resnet", "dream"])


def test_a_training_refuses_wrong_weights_before_it_asks_for_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connections: list[object] = []
    monkeypatch.setattr(training.cluster, "connect", connections.append)
    settings = replace(BASE, model=with_weights("/no/such.safetensors"))
    with pytest.raises(UsageError, match="no such file"):
        training.run_training(settings, Manifest(slides=(), uri="/m.csv", sha256=""), name="x", storage=str(tmp_path))
    assert connections == []
