"""The two presets, as differences from the defaults of the settings, which are the paper's.

`paper` is the paper's network and recipe. `evidence` keeps the zoom but trains each layer's map to predict where
evidence was found below it, calibrated on negative slides; training starts with exploration, and the classifier's
gradient does not reach the regions. A run names one preset; all other changes are logged as overrides.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "evidence": {
        "model": {
            "zoom": {"frozen_patch": False, "grey_tolerance": None, "margin_px": 2},
            "locator": {
                "share_stacks": "layer",
                "inner_stride": 2,
                "padding": "replicate",
                "normalise_maps": True,
                "temperature": 1.0,
                "tissue_mask": True,
                "peak_radius": 0.25,
                "inhibit_siblings": True,
                "inhibit_radius": 0.25,
                "scale_clamp": "straight_through",
                "scale_min": 0.12,
                "scale_max": 0.3,
                "centre": "bounded",
                "sampler": "bilinear",
            },
            "classifier": {"head": "evidence"},
            "auxiliary": {"encoder": None},
        },
        "recipe": {
            "learning_rate": 1e-3,
            "locator_learning_rate": 2e-3,
            "clip_norm": 1.0,
            "theta_gradient": "off",
            "explore_until": 0.5,
            "explore_end": 0.9,
            "value_weight": 1.0,
            "value_at": "patches",
            "auxiliary_weight": 0.0,
            "paradoxical_weight": 0.0,
        },
    },
}
"""Differences from the defaults by name of the preset, then by part: "model" and "recipe"."""
