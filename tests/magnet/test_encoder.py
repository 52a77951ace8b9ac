"""Encoders: construction, freezing, checkpointing, input normalisation."""

from __future__ import annotations

import copy
import logging
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from magnet.config import AuxiliaryConfig, ClassifierConfig, ModelConfig, ZoomConfig
from magnet.encoder import Encoder, make_encoder, timm  # a bare import of timm would come too early here
from magnet.zoom import MagNet


def views(num: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))


def saved(name: str, folder: Path, **options: Any) -> tuple[Any, Path]:
    """Return a timm model with its classifier, and the safetensors file of its weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval(), path


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet10t"])
def test_any_timm_model_gives_features(name: str) -> None:
    encoder = make_encoder(name)
    features = encoder(views(2, 64))
    assert features.shape == (2, encoder.num_features)


def test_inception_v3_accepts_the_patches_of_the_paper() -> None:
    encoder = make_encoder("inception_v3").eval()
    with torch.inference_mode():
        assert encoder(views(1, 224)).shape == (1, 2048)


def test_features_equal_those_of_the_timm_model_on_normalised_pixels(tmp_path: Path) -> None:
    model, path = saved("test_resnet", tmp_path)
    encoder = make_encoder("test_resnet", str(path)).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    view = views(2, 64)
    expected = model.forward_head(model.forward_features((view - mean) / std), pre_logits=True)
    torch.testing.assert_close(encoder(view), expected)


@pytest.mark.slow
def test_published_inception_files_load_although_they_contain_two_classifiers(tmp_path: Path) -> None:
    _, path = saved("inception_v3", tmp_path, aux_logits=True)
    assert any(k.startswith("AuxLogits.") for k in safetensors.torch.load_file(path))
    make_encoder("inception_v3", str(path))


def test_random_weights_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_encoder("test_resnet")
    assert "test_resnet" in caplog.text
    assert "random" in caplog.text


@pytest.mark.parametrize(
    ("weights", "requested"), [("imagenet", "resnet18"), ("tv_in1k", "resnet18.tv_in1k")], ids=["default", "tag"]
)
def test_published_weights_are_requested_from_timm_by_name(
    weights: str, requested: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create, names = timm.create_model, []

    def offline(name: str, *, pretrained: bool, **options: Any) -> Any:
        names.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with caplog.at_level(logging.WARNING):
        make_encoder("resnet18", weights)
    assert names == [(requested, True)]
    assert caplog.records == []


def test_a_frozen_encoder_does_not_change_and_passes_the_gradient_on() -> None:
    encoder = make_encoder("test_resnet", trained=False).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    view = views(4, 64).requires_grad_()
    encoder(view).square().sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())  # batch statistics too
    assert not any(p.requires_grad for p in encoder.parameters())
    assert view.grad is not None
    assert view.grad.abs().sum() > 0


def test_a_trained_encoder_follows_train_and_eval() -> None:
    encoder = make_encoder("test_resnet")
    assert encoder.train().backbone.training
    assert not encoder.eval().backbone.training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [("test_resnet", 64), ("resnet10t", 64), ("test_efficientnet", 64), ("test_vit", 160), ("inception_v3", 96)],
)
def test_checkpointing_reduces_memory_and_changes_no_result(name: str, side: int) -> None:
    kept, features, grads, states = [], [], [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = make_encoder(name, trained=True, checkpointing=checkpointing).train()
        saved_bytes = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved_bytes
            saved_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            out = encoder(views(2, side))
            kept.append(saved_bytes)
        out.square().sum().backward()
        features.append(out.detach())
        grads.append([p.grad for p in encoder.parameters()])
        states.append(encoder.state_dict())  # statistics of batch normalisation included
    assert kept[1] < 0.7 * kept[0]
    torch.testing.assert_close(features[0], features[1])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.slow
def test_copies_and_pickles_of_a_checkpointed_encoder_do_not_share_weights() -> None:
    encoder = make_encoder("resnet10t", checkpointing=True).eval()
    expected = encoder(views(1, 64))
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(twin(views(1, 64)), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert twin(views(1, 64)).abs().sum() == 0
        torch.testing.assert_close(encoder(views(1, 64)), expected)


def test_channels_last_changes_the_memory_format_and_not_the_features() -> None:
    features = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        encoder = make_encoder("test_resnet", channels_last=channels_last).eval()
        is_channels_last: list[bool] = []  # inputs and weights of the convolutions of more than one pixel
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
                module.register_forward_pre_hook(
                    lambda conv, inputs, out=is_channels_last: out.extend(
                        t.is_contiguous(memory_format=torch.channels_last) for t in (*inputs, conv.weight)
                    )
                )
        features.append(encoder(views(2, 64)))
        assert is_channels_last == [channels_last] * len(is_channels_last)
        assert is_channels_last
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compilation_does_not_change_features_gradients_or_state(monkeypatch: pytest.MonkeyPatch) -> None:
    # this backend traces and differentiates as usual, but needs no C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        encoder = make_encoder("test_resnet", channels_last=True, compile=compile).train()
        features = encoder(views(2, 64))
        features.square().sum().backward()
        results.append((features.detach(), {k: p.grad for k, p in encoder.named_parameters()}, encoder.state_dict()))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_a_model_for_scoring_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    config = ModelConfig(
        zoom=ZoomConfig(schedule=(1,)),
        classifier=ClassifierConfig(encoder="test_resnet", compile=True),
        auxiliary=AuxiliaryConfig(encoder=None),
    )
    with pytest.raises(RuntimeError, match="no C"):
        MagNet(config)
    MagNet(config, to_be_loaded=True)  # as for scoring


def test_models_of_fixed_input_size_can_be_built_for_another_size() -> None:
    encoder = make_encoder("test_vit", in_px=64)
    assert encoder(views(1, 64)).shape == (1, encoder.num_features)


def test_any_backbone_can_be_wrapped() -> None:
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = Encoder(pool, 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    features = encoder(torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(features, torch.tensor([[2.0, 1.0, 0.5]]))


def test_the_message_about_an_unknown_model_lists_similar_names() -> None:
    with pytest.raises(ValueError, match=r"resnet19.*similar names: .*resnet18"):
        make_encoder("resnet19")


def test_the_message_about_an_unknown_tag_names_it() -> None:
    with pytest.raises(ValueError, match="no weights 'nosuchtag'"):
        make_encoder("test_resnet", "nosuchtag")


def test_the_message_about_unreachable_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(OSError, match=r"'imagenet'.*no route to host.*give a path or URI"):
        make_encoder("resnet18", "imagenet")
