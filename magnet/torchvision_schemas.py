"""A workaround that makes `import timm` succeed where torchvision's compiled operators cannot be loaded.

timm imports torchvision, and torchvision attaches Python code to its operators ``nms`` and ``qnms`` while it is
imported. Its wheels on the package index are built against CUDA. With a CPU-only torch their library does not load, the
operators have no schema, and the import fails with "operator torchvision::nms does not exist". With the two schemas
declared, the import succeeds. This package calls neither operator (non-maximum suppression of detection boxes).

Import this module before timm. If torchvision works, or is absent, this module has no effect.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: torch.library.Library | None = None  # the schemas exist as long as this object


def _operators_load(package: Path) -> bool:
    """Return whether torchvision's library of operators loads."""
    # The attempt has no side effect where it succeeds: torch keeps the library, and torchvision uses it.
    for library in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def declare() -> None:
    """Declare the two schemas if torchvision cannot; further calls have no effect."""
    global _library
    spec = find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    if not _operators_load(Path(spec.origin).parent):
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)


declare()
