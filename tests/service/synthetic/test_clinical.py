"""The clinical world: sizes by definition, candidates that do not reveal the label, evidence that only cells show."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from service.synthetic.__main__ import main
from service.synthetic.clinical import (
    DIAMETERS_MM,
    ClinicalSettings,
    Scanner,
    draw_clinical_layout,
    draw_clinical_textures,
    draw_side_px,
)
from service.synthetic.layout import MPP, Layout
from service.synthetic.plan import CohortSettings
from service.synthetic.textures import Stain
from service.synthetic.tiff import TILE_PX

STRATA = {"macro": 2.0, "micro": 5.0, "itc": 3.0}
SIDE_PX = 80_128


def draw(seed: int, stratum: str) -> Layout:
    return draw_clinical_layout(np.random.default_rng(seed), SIDE_PX, stratum, 12.0, STRATA)


@pytest.fixture(scope="module")
def layouts() -> dict[str, list[Layout]]:
    return {stratum: [draw(seed, stratum) for seed in range(12)] for stratum in ("negative", *STRATA)}


@pytest.fixture(scope="module")
def textures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    drawn = draw_clinical_textures(rng, Stain(1.0, 1.0), Scanner((1.0, 1.0, 1.0), 1.0), contrast=25.0)
    return {name: tiles.astype(float) for name, tiles in drawn.items()}


def shrink(tiles: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return variants (N, 256, 256, 3) at a coarser pixel size, by averaging."""
    step = round(um_per_px / MPP)
    num = TILE_PX // step
    cut = tiles[:, : num * step, : num * step]
    return cut.reshape(len(tiles), num, step, num, step, 3).mean((2, 4))


def test_candidates_have_the_sizes_of_the_definitions(layouts: dict[str, list[Layout]]) -> None:
    candidates = [c for drawn in layouts.values() for layout in drawn for c in layout.candidates]
    for candidate in candidates:
        low, high = DIAMETERS_MM[candidate.size]
        assert low <= 2 * candidate.blob.radius * MPP / 1000 <= high
    assert {c.size for c in candidates if not c.is_lesion} == set(STRATA)


def test_a_positive_slide_has_one_lesion_of_its_stratum_and_a_negative_slide_has_none(
    layouts: dict[str, list[Layout]],
) -> None:
    for stratum, drawn in layouts.items():
        for layout in drawn:
            lesions = [c.size for c in layout.candidates if c.is_lesion]
            assert lesions == ([] if stratum == "negative" else [stratum])


def test_the_number_of_candidates_does_not_depend_on_the_label(layouts: dict[str, list[Layout]]) -> None:
    numbers = {stratum: [len(layout.candidates) for layout in drawn] for stratum, drawn in layouts.items()}
    assert numbers["micro"] == numbers["negative"]  # the number is the first that a seed draws
    assert 8 < np.mean(numbers["negative"]) < 16
    assert np.std(numbers["negative"]) > 1.5


def test_candidates_are_inside_tissue_and_do_not_overlap(layouts: dict[str, list[Layout]]) -> None:
    for layout in layouts["macro"]:
        for n, candidate in enumerate(layout.candidates):
            blob = candidate.blob
            assert layout.tissue_depth(np.array([blob.x]), np.array([blob.y]))[0] > blob.reach
            for other in layout.candidates[:n]:
                distance = np.hypot(blob.x - other.blob.x, blob.y - other.blob.y)
                assert distance > min(blob.reach, other.blob.reach)


def test_lesions_differ_from_decoys_at_cellular_resolution_only(textures: dict[str, np.ndarray]) -> None:
    """The difference is large at .5 and 1 um/px, and about the noise of JPEG from 2 um/px on."""
    contrast = {}
    for um_per_px in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        difference = shrink(textures["lesion"], um_per_px) - shrink(textures["decoy"], um_per_px)
        contrast[um_per_px] = float(np.sqrt((difference**2).mean()))
    assert contrast[0.5] > 8
    assert contrast[1.0] > 4
    assert contrast[2.0] < 0.2 * contrast[0.5]
    assert max(contrast[4.0], contrast[8.0]) < 1.5
    assert contrast[8.0] < 0.6


def test_the_means_of_candidates_are_darker_by_the_contrast() -> None:
    for contrast in (0.0, 5.0, 25.0):
        rng = np.random.default_rng(1)
        drawn = draw_clinical_textures(rng, Stain(1.0, 1.0), Scanner((1.0, 1.0, 1.0), 1.0), contrast)
        lymph, decoy, lesion = (drawn[name].astype(float).mean() for name in ("lymph", "decoy", "lesion"))
        assert lymph - decoy == pytest.approx(contrast, abs=0.6)
        assert lesion == pytest.approx(decoy, abs=0.3)


def test_variants_of_a_texture_fit_each_other_at_the_border(textures: dict[str, np.ndarray]) -> None:
    """Next to the border of any two variants, the step is no larger than between two rows inside a tile."""
    tiles = textures["lesion"]
    inside = np.abs(np.diff(tiles, axis=1)).mean()
    across = np.mean([np.abs(a[-1] - b[0]).mean() for a in tiles for b in tiles])
    assert across < 1.3 * inside


def test_sides_are_real_and_drawn_per_slide() -> None:
    sides_mm = [draw_side_px((3, n)) * MPP / 1000 for n in range(50)]
    assert 15 <= min(sides_mm) < 17
    assert 28 < max(sides_mm) <= 30.1
    assert draw_side_px((3, 7)) == draw_side_px((3, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contrast", "99"], "contrast 99.0: must be 0 to 60"),
        (["--mean-candidates", "0"], "mean-candidates 0.0: must be 1 to 40"),
        (["--side-px", "8192"], "side-px 8192: must be 40000 to 120000"),
        (["--hint", "1"], "--hint: of the plain world only"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--world=clinical", "--num-slides=1", "--seed=0", *options])
    assert message in capsys.readouterr().err


def test_the_plain_world_needs_a_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--num-slides=1", "--seed=0"])
    assert "side-px: must be given" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--num-slides=1", "--seed=0", "--side-px=2048", "--contrast=5"])
    assert "--contrast: of the clinical world only" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cohort_has_manifest_and_outlines(tmp_path: Path) -> None:
    main([str(tmp_path / "c"), "--world=clinical", "--num-slides=2", "--seed=4", "--side-px=60160", "--positive=0.5"])
    with open(tmp_path / "c" / "manifest.csv", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    lesions = json.loads((tmp_path / "c" / "lesions.geojson").read_text())["features"]
    assert sorted(labels) == ["0", "1"]
    assert len(lesions) == 1
    record = json.loads((tmp_path / "c" / "settings.json").read_text())
    assert record["clinical"] == {"mean_candidates": 12.0, "contrast": 25.0}
    assert "clinical" not in CohortSettings(num_slides=1, side_px=4096, seed=0).to_record()
    assert CohortSettings(num_slides=1, seed=0, clinical=ClinicalSettings()).side_px is None
