"""The label policy of a training: which slides of a manifest it learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from service.cohort.manifest import Manifest, check_classes
from service.cohort.manifest_table import ManifestError, Problem
from service.cohort.splits import SPLITS


def select_training_slides(manifest: Manifest, *, without_strata: Sequence[str], fit_on: str) -> Manifest:
    """Apply a label policy to the splits train and val of a manifest. Test is never changed.

    Args:
        manifest: manifest with splits.
        without_strata: strata whose slides are left out of train and val.
        fit_on: "train", or "train+val" to train on both splits.

    Raises:
        ManifestError: if train lacks a label, or if no val slide is left to choose the best epoch by.
    """
    # The paper leaves isolated tumour cells out of training, but reports scores for them.
    left_out = [s for s in manifest.slides if s.split != "test" and s.stratum in without_strata]
    kept = [s for s in manifest.slides if s.split == "test" or s.stratum not in without_strata]
    if fit_on == "train+val":
        kept = [replace(slide, split="train") if slide.split == "val" else slide for slide in kept]
    problems = check_classes(kept)
    if fit_on == "train" and not any(slide.split == "val" for slide in kept):
        problems.append(Problem(None, "split", "no slide has split val, which is needed to choose the best epoch"))
    if problems:
        raise ManifestError(problems, manifest.uri)
    return replace(manifest, slides=tuple(kept), left_out=tuple(left_out))


def describe_splits(manifest: Manifest) -> dict[str, str]:
    """Describe the number of slides in each split, and of those left out by stratum and split."""
    result = {}
    for name in SPLITS:
        slides = manifest.split(name)
        result[name] = f"{len(slides)} slides, {sum(slide.label or 0 for slide in slides)} positive"
    if manifest.left_out:
        counts = Counter(f"{slide.stratum} of {slide.split}" for slide in manifest.left_out)
        result["left out"] = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return result
