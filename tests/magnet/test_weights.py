"""Files of weights: formats, digests, URIs, and weights that do not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from magnet.weights import is_file_or_uri, load_strictly, read_state_dict

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


@pytest.fixture(params=["w.safetensors", "w.pth", "w.pt"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        torch.save(STATE, path)
    return path


def assert_is_state(loaded: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[k], v) for k, v in STATE.items())


def test_paths_and_uris_give_the_same_weights(weights_file: Path) -> None:
    assert_is_state(read_state_dict(str(weights_file)))
    assert_is_state(read_state_dict(weights_file.as_uri()))
    requested = []

    def fetch(uri: str) -> bytes:
        requested.append(uri)
        return weights_file.read_bytes()

    uri = f"s3://bucket/models/{weights_file.name}"
    assert_is_state(read_state_dict(uri, fetch=fetch))
    assert requested == [uri]


def test_the_digest_is_checked(weights_file: Path) -> None:
    digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert_is_state(read_state_dict(str(weights_file), sha256=digest.upper()))
    with pytest.raises(ValueError, match=f"SHA-256 is {digest}, expected 00ff"):
        read_state_dict(str(weights_file), sha256="00ff")


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_training_checkpoints_are_unwrapped(key: str, tmp_path: Path) -> None:
    torch.save({key: STATE, "epoch": 3}, tmp_path / "w.pth")
    assert_is_state(read_state_dict(str(tmp_path / "w.pth")))


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: not a readable file of weights"):
        read_state_dict("w.pth")
    assert not Path("harmed").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_files_without_weights_are_rejected(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="not a readable file of weights"):
        read_state_dict(str(tmp_path / name))


def test_a_pickle_without_tensors_is_rejected(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no dictionary of tensors"):
        read_state_dict(str(tmp_path / "w.pth"))


def test_messages_name_missing_files_and_unreadable_schemes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_state_dict(str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="s3:// cannot be read without fetch"):
        read_state_dict("s3://bucket/w.pth")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("imagenet", False), ("tv_in1k", False), ("w.pth", True), ("a/w.safetensors", True), ("s3://b/w", True)],
)
def test_tags_are_distinguished_from_files(weights: str, expected: bool) -> None:
    assert is_file_or_uri(weights) is expected


def test_the_message_lists_every_weight_that_does_not_fit() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 2)})
    state = {"a.weight": torch.zeros(2, 4), "a.bias": torch.zeros(2), "c.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_strictly(model, state, ignore=["fc"], source="w.pth")
    for part in (
        "2 missing: b.weight, b.bias",
        "1 not expected: c.weight",
        "1 of another shape: a.weight (2, 4) instead of (2, 3)",
    ):
        assert part in str(caught.value)


def test_only_whole_modules_are_ignored() -> None:
    linear = torch.nn.Linear(3, 2)
    model = torch.nn.ModuleDict({"a": linear})
    load_strictly(model, {**STATE, "fc.weight": torch.zeros(1)}, ignore=["fc"], source="w.pth")
    torch.testing.assert_close(linear.weight.detach(), STATE["a.weight"])
    with pytest.raises(ValueError, match=r"1 not expected: fc2\.weight"):
        load_strictly(model, {**STATE, "fc2.weight": torch.zeros(1)}, ignore=["fc"], source="w.pth")
