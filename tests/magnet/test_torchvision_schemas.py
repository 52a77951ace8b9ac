"""The schemas are declared only if torchvision's operators do not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from magnet import torchvision_schemas

PACKAGE = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_schemas_of_a_broken_torchvision_are_declared_once(tmp_path: Path) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    (broken / "_C.so").write_bytes(b"built for another torch")
    code = """
import torch, magnet.torchvision_schemas as schemas
schemas.declare()
print(torch.ops.torchvision.nms.default._schema, torch.ops.torchvision.qnms.default._schema)
"""
    # in a new interpreter, because operators are declared once per process
    path = os.pathsep.join([str(tmp_path), str(PACKAGE)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in done.stdout
    assert "torchvision::qnms(" in done.stdout


def test_nothing_is_declared_if_torchvision_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_schemas, "_library", None)
    monkeypatch.setattr(torchvision_schemas, "find_spec", lambda name: None)
    torchvision_schemas.declare()
    assert torchvision_schemas._library is None


def test_nothing_is_declared_if_the_operators_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_schemas, "_library", None)
    monkeypatch.setattr(torchvision_schemas, "_operators_load", lambda package: True)
    torchvision_schemas.declare()
    assert torchvision_schemas._library is None
