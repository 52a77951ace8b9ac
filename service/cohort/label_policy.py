"""Which of a manifest's slides a training learns from, by its label policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from service.cohort.manifest import Manifest, ManifestError, Problem, check_classes
from service.cohort.splits import SPLITS


def training_slides(manifest: Manifest, *, without_strata: Sequence[str], fit_on: str) -> Manifest:
    """A manifest whose train and val splits are what a training uses; test stays as it is, whatever its strata.

    Args:
        manifest: with splits.
        without_strata: strata whose slides are taken out of train and val.
        fit_on: "train", or "train+val" to make one train split of both.

    Raises:
        ManifestError: training would lack a label, or there is nothing to choose the best epoch by.
    """
    out = [s for s in manifest.slides if s.split != "test" and s.stratum in without_strata]
    kept = [s for s in manifest.slides if s.split == "test" or s.stratum not in without_strata]
    if fit_on == "train+val":
        kept = [replace(slide, split="train") if slide.split == "val" else slide for slide in kept]
    problems = check_classes(kept)
    if fit_on == "train" and not any(slide.split == "val" for slide in kept):
        problems.append(Problem(None, "split", "no slide has split val, by which the best epoch is chosen"))
    if problems:
        raise ManifestError(problems, manifest.uri)
    return replace(manifest, slides=tuple(kept), left_out=tuple(out))


def slide_counts(manifest: Manifest) -> dict[str, str]:
    """Slides of each split, and those left out by stratum, in words."""
    result = {}
    for name in SPLITS:
        slides = manifest.split(name)
        result[name] = f"{len(slides)} slides, {sum(slide.label or 0 for slide in slides)} positive"
    if manifest.left_out:
        strata = Counter(f"{slide.stratum} of {slide.split}" for slide in manifest.left_out)
        result["left out"] = ", ".join(f"{count} {name}" for name, count in sorted(strata.items()))
    return result
