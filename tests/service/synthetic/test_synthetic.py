"""Generated cohorts: files for other readers, lesions hidden at low power, folders that are complete or absent."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageDraw

from service.errors import UsageError
from service.synthetic import cohort as cohort_module
from service.synthetic.__main__ import main
from service.synthetic.cohort import make_cohort
from service.synthetic.layers import Depth
from service.synthetic.layout import draw_layout
from service.synthetic.plan import CohortSettings, plan_slides
from service.synthetic.slide import SlideSpec, write_slide
from service.synthetic.textures import Stain, draw_textures

SIDE_PX = 4096
SMALLEST = {"num_slides": 2, "side_px": 2048, "seed": 3}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "out"
    strata = {"macro": 1.0, "micro": 1.0, "itc": 1.0}
    make_cohort(out, CohortSettings(num_slides=6, side_px=SIDE_PX, seed=5, strata=strata))
    return out


@pytest.fixture(scope="module")
def manifest(cohort: Path) -> list[dict[str, str]]:
    with open(cohort / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiles() -> dict[str, np.ndarray]:
    """Return textures without a hint, the variants of each stacked vertically."""
    drawn = draw_textures(np.random.default_rng(4), Stain(1.0, 1.0), hint=0.0)
    return {name: stack.reshape(-1, 256, 3).astype(float) for name, stack in drawn.items()}


def outlines(path: Path) -> list[tuple[dict[str, str], np.ndarray]]:
    features = json.loads(path.read_text())["features"]
    return [(f["properties"], np.array(f["geometry"]["coordinates"][0])) for f in features]


def rgb(slide: openslide.OpenSlide, corner: np.ndarray, level: int, side_px: int) -> np.ndarray:
    image = slide.read_region((int(corner[0]), int(corner[1])), level, (side_px, side_px))
    return np.asarray(image.convert("RGB")).astype(float)


def level_pixels(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    return rgb(slide, np.zeros(2), level, slide.level_dimensions[level][0])


def block_means(pixels: np.ndarray, block_px: int) -> np.ndarray:
    rows, columns = (n // block_px for n in pixels.shape[:2])
    return pixels.reshape(rows, block_px, columns, block_px, 3).mean((1, 3))


def spec(**changes: object) -> SlideSpec:
    values = {"slide_id": "s", "stratum": "macro", "center": 0, "side_px": 2048, "num_decoys": 3, "hint": 0.0}
    return SlideSpec(**{**values, "strata": (("macro", 1.0), ("micro", 1.0)), "seed": (0, 0), **changes})


class TestFiles:
    def test_openslide_reads_levels_and_pixel_size(self, cohort: Path) -> None:
        slide = openslide.OpenSlide(cohort / "slides/slide_0000.tif")
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((4096, 4096), (2048, 2048), (1024, 1024))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25)
        assert slide.properties["openslide.level[0].tile-width"] == "256"

    def test_tiles_are_jpeg_with_subsampled_colour(self, cohort: Path) -> None:
        with tifffile.TiffFile(cohort / "slides/slide_0000.tif") as file:
            assert len(file.pages) == 3
            for page in file.pages:
                assert page.compression == tifffile.COMPRESSION.JPEG
                assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
                assert page.tags["YCbCrSubSampling"].value == (2, 2)
                assert page.tile == (256, 256)

    def test_levels_are_means_of_the_finer_level(self, cohort: Path) -> None:
        """The error must be that of JPEG: clearly smaller than the effect of a shift by one pixel, and without bias."""
        properties, ring = outlines(cohort / "decoys.geojson")[0]
        slide = openslide.OpenSlide(cohort / f"slides/{properties['slide_id']}.tif")
        corner = (ring.mean(0) // 4 * 4 - 512).astype(int)
        fine, *coarser = (rgb(slide, corner, level, 1024 >> level) for level in range(3))
        for coarse in coarser:
            expected = block_means(fine, 2)
            shifts = [np.roll(expected, 1, axis) - coarse for axis in (0, 1)]
            assert np.abs(expected - coarse).mean() < 0.6 * min(np.abs(shift).mean() for shift in shifts)
            assert np.abs((expected - coarse).mean()) < 1
            fine = coarse

    def test_a_slide_whose_side_is_not_a_multiple_of_a_tile_has_the_right_size(self, tmp_path: Path) -> None:
        write_slide(spec(side_px=2301), tmp_path / "s.tif")
        slide = openslide.OpenSlide(tmp_path / "s.tif")
        assert slide.level_dimensions == ((2301, 2301), (1151, 1151), (576, 576))
        assert level_pixels(slide, 2)[-1, -1].min() > 230  # glass instead of padding

    @pytest.mark.slow
    def test_a_slide_of_a_hundred_thousand_pixels_takes_megabytes(self, tmp_path: Path) -> None:
        path = tmp_path / "s.tif"
        write_slide(spec(side_px=100_000), path)
        assert path.stat().st_size < 40e6
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff
            offsets = file.pages[0].dataoffsets
            assert len(offsets) == 391**2
            assert len(set(offsets)) < 2000
        slide = openslide.OpenSlide(path)
        assert slide.level_count == 8
        assert slide.level_dimensions[-1] == (782, 782)
        assert rgb(slide, np.array([99_700, 99_700]), 0, 300).min() > 230

    @pytest.mark.slow
    def test_equal_arguments_give_equal_bytes_for_any_number_of_jobs(self, tmp_path: Path) -> None:
        settings = CohortSettings(**SMALLEST)
        make_cohort(tmp_path / "first", settings)
        make_cohort(tmp_path / "second", settings, jobs=2)
        files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*") if p.is_file())
        assert [str(f) for f in files] == [
            *("decoys.geojson", "lesions.geojson", "manifest.csv", "settings.json"),
            *("slides/slide_0000.tif", "slides/slide_0001.tif"),
        ]
        assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "second" / f).read_bytes() for f in files)

    @pytest.mark.slow
    def test_another_seed_gives_another_slide(self, tmp_path: Path) -> None:
        write_slide(spec(seed=(0, 0)), tmp_path / "a.tif")
        write_slide(spec(seed=(0, 1)), tmp_path / "b.tif")
        assert (tmp_path / "a.tif").read_bytes() != (tmp_path / "b.tif").read_bytes()


class TestTruth:
    def test_manifest_and_outlines_agree(self, cohort: Path, manifest: list[dict[str, str]]) -> None:
        assert sorted(row["stratum"] for row in manifest) == ["itc", "macro", "micro", *["negative"] * 3]
        assert all((row["label"] == "1") == (row["stratum"] != "negative") for row in manifest)
        assert all((cohort / row["uri"]).is_file() for row in manifest)
        lesions = [(p["slide_id"], p["lesion"]) for p, _ in outlines(cohort / "lesions.geojson")]
        assert sorted(lesions) == sorted((r["slide_id"], r["stratum"]) for r in manifest if r["label"] == "1")
        decoys = [p["slide_id"] for p, _ in outlines(cohort / "decoys.geojson")]
        assert all(decoys.count(row["slide_id"]) == 3 - int(row["label"]) for row in manifest)

    def test_pixels_inside_the_outlines_are_dark(self, cohort: Path) -> None:
        """Candidates are 25 grey levels darker than lymphoid tissue; other tissue around them is even lighter."""
        for name in ("lesions", "decoys"):
            for properties, ring in outlines(cohort / f"{name}.geojson"):
                slide = openslide.OpenSlide(cohort / f"slides/{properties['slide_id']}.tif")
                grey = level_pixels(slide, 2).mean(-1)
                inside, outside = make_masks(ring / 4, grey.shape, margin_px=4)
                assert grey[outside].mean() - grey[inside].mean() > 18, properties

    def test_sizes_scale_with_the_side(self) -> None:
        """Sizes of the learning trial: 32,768 px, macro radius 2,048 to 3,072 px, micro radius 768 to 1,280 px."""
        for seed in range(20):
            layout = draw_layout(np.random.default_rng(seed), 32_768, "macro", 3, {"micro": 1.0})
            (lesion,) = (c.blob.radius for c in layout.candidates if c.is_lesion)
            assert 2048 <= lesion <= 3072
            assert len(layout.candidates) == 3
            assert all(768 <= c.blob.radius <= 1280 for c in layout.candidates if not c.is_lesion)
            assert 0.1 < tissue_share(layout.tissue_depth, 32_768) < 0.3

    def test_lesions_of_small_slides_are_large_enough_for_their_texture(self) -> None:
        layout = draw_layout(np.random.default_rng(0), 2048, "itc", 0, {"itc": 1.0})
        assert layout.candidates[0].blob.radius == 96

    def test_positive_and_negative_slides_have_the_same_number_of_dark_blobs(self) -> None:
        for stratum in ("negative", "micro"):
            layout = draw_layout(np.random.default_rng(1), 8192, stratum, 4, {"macro": 1.0})
            assert len(layout.candidates) == 4


class TestTextures:
    """Lesions compared with decoys, on the tiles of which slides are made."""

    def test_lesions_and_decoys_are_equal_at_low_power(self, tiles: dict[str, np.ndarray]) -> None:
        lesion, decoy = (block_means(tiles[name], 64) for name in ("lesion", "decoy"))
        assert np.abs(lesion.mean((0, 1)) - decoy.mean((0, 1))).max() < 0.3
        assert lesion.std((0, 1)).max() < 0.3
        assert decoy.std((0, 1)).max() < 0.3

    def test_mean_and_standard_deviation_are_equal_at_high_power(self, tiles: dict[str, np.ndarray]) -> None:
        assert np.abs(tiles["lesion"].mean((0, 1)) - tiles["decoy"].mean((0, 1))).max() < 0.3
        assert np.abs(tiles["lesion"].std((0, 1)) / tiles["decoy"].std((0, 1)) - 1).max() < 0.02

    def test_the_wavelength_of_lesions_is_doubled(self, tiles: dict[str, np.ndarray]) -> None:
        lesion, decoy = (mean_wavelength_px(tiles[name].mean(-1).reshape(-1, 256, 256)) for name in ("lesion", "decoy"))
        assert lesion / decoy == pytest.approx(2, abs=0.3)

    def test_a_hint_is_visible_at_low_power(self) -> None:
        tiles = draw_textures(np.random.default_rng(4), Stain(1.0, 1.0), hint=1.0)
        difference = tiles["lesion"].mean((0, 1, 2)) - tiles["decoy"].mean((0, 1, 2))
        assert np.abs(difference).max() > 10

    def test_candidates_on_a_slide_are_equal_at_low_power_and_differ_at_high_power(self, tmp_path: Path) -> None:
        """The same facts, tested on pixels read from a file: the largest square inside each macro candidate."""
        path = tmp_path / "s.tif"
        candidates = write_slide(spec(side_px=8192, strata=(("macro", 1.0),), num_decoys=2), path)
        slide = openslide.OpenSlide(path)
        crops = {}
        for candidate in candidates:
            centre = np.mean(candidate.points, axis=0)
            crops[candidate.is_lesion] = rgb(slide, centre // 64 * 64 - 256, 0, 512)
        lesion, decoy = (block_means(crops[k], 64) for k in (True, False))
        assert np.abs(lesion.mean((0, 1)) - decoy.mean((0, 1))).max() < 1
        assert max(lesion.std((0, 1)).max(), decoy.std((0, 1)).max()) < 1
        lesion_px, decoy_px = (mean_wavelength_px(crops[k].mean(-1)[None]) for k in (True, False))
        assert lesion_px > 1.5 * decoy_px


class TestPlan:
    def test_patients_are_in_one_split_and_splits_have_their_shares(self) -> None:
        slides = plan_slides(CohortSettings(num_slides=24, side_px=8192, seed=0))
        splits: dict[str, set[str]] = {}
        for slide in slides:
            splits.setdefault(slide.patient_id, set()).add(slide.split)
        assert all(len(names) == 1 for names in splits.values())
        assert 12 < len(splits) < 24
        for name, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
            labels = [slide.label for slide in slides if slide.split == name]
            assert abs(labels.count(1) - 12 * share) <= 1.5
            assert abs(labels.count(0) - 12 * share) <= 1.5

    def test_strata_follow_their_weights(self) -> None:
        weights = {"macro": 2.0, "micro": 1.0, "itc": 1.0}
        slides = plan_slides(CohortSettings(num_slides=40, side_px=8192, seed=0, positive=0.6, strata=weights))
        strata = [slide.stratum for slide in slides]
        assert [strata.count(name) for name in ("macro", "micro", "itc", "negative")] == [12, 6, 6, 16]


class TestCommand:
    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--num-slides", "0", "num-slides 0: must be 1 to"),
            ("--side-px", "1000", "side-px 1000: must be 2048 to 120000"),
            ("--side-px", "120001", "side-px 120001"),
            ("--seed", "-1", "seed -1"),
            ("--decoys", "-1", "decoys -1"),
            ("--hint", "1.5", "hint 1.5: must be 0 to 1"),
            ("--hint", "nan", "hint nan"),
            ("--positive", "2", "positive 2.0"),
            ("--jobs", "0", "jobs 0"),
            ("--strata", "huge=1", "'huge': must be one of macro, micro, itc"),
            ("--strata", "macro", "write NAME=WEIGHT pairs, such as macro=1,micro=1"),
            ("--split", "train=0,val=0", "at least one above 0"),
            ("--split", "dev=1", "'dev': must be one of train, val, test"),
        ],
    )
    def test_wrong_arguments_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
    ) -> None:
        arguments = {"--num-slides": "2", "--side-px": "2048", "--seed": "0", option: value}
        with pytest.raises(SystemExit) as exit_info:
            main([str(tmp_path / "out"), *(f"{k}={v}" for k, v in arguments.items())])
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_second_run_does_nothing_and_other_settings_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        command = [str(out), "--num-slides=1", "--side-px=2048", "--seed=0", "--positive=1"]
        assert main(command) == 0
        before = (out / "slides/slide_0000.tif").stat().st_mtime_ns
        assert main(command) == 0
        assert "made by an earlier run" in capsys.readouterr().out
        assert (out / "slides/slide_0000.tif").stat().st_mtime_ns == before
        assert main([*command, "--hint=1"]) == 2
        assert "other settings" in capsys.readouterr().err

    def test_a_folder_with_other_files_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "notes.txt").write_text("precious")
        assert main([str(tmp_path), "--num-slides=1", "--side-px=2048", "--seed=0"]) == 2
        assert "holds other files" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


class TestCompleteOrAbsent:
    def test_an_interrupted_run_leaves_no_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(spec: SlideSpec, path: Path) -> list[object]:
            path.write_bytes(b"part of a slide")
            raise KeyboardInterrupt

        monkeypatch.setattr(cohort_module, "write_slide", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cohort(tmp_path / "out", CohortSettings(**SMALLEST))
        assert list(tmp_path.iterdir()) == []

    def test_files_of_a_killed_run_are_removed(self, tmp_path: Path) -> None:
        partial_slides = tmp_path / ".out.partial/slides"
        partial_slides.mkdir(parents=True)
        (partial_slides / "slide_0099.tif").write_bytes(b"part of a slide")
        make_cohort(tmp_path / "out", CohortSettings(**SMALLEST))
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert len(list((tmp_path / "out/slides").iterdir())) == 2

    def test_two_processes_do_not_make_the_same_cohort(self, tmp_path: Path) -> None:
        (tmp_path / ".out.partial").mkdir()
        other = os.open(tmp_path / ".out.partial", os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="another process"):
                make_cohort(tmp_path / "out", CohortSettings(**SMALLEST))
        finally:
            os.close(other)


def make_masks(ring: np.ndarray, shape: tuple[int, int], margin_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the pixels inside a ring and of those around it, both without a margin along the ring."""
    inside, band, near = (Image.new("1", shape[::-1]) for _ in range(3))
    points = [tuple(p) for p in ring]
    ImageDraw.Draw(inside).polygon(points, fill=1)
    ImageDraw.Draw(band).line(points, fill=1, width=2 * margin_px)
    ImageDraw.Draw(near).line(points, fill=1, width=8 * margin_px)
    within, edge, around = (np.asarray(image) for image in (inside, band, near))
    return within & ~edge, around & ~within & ~edge


def mean_wavelength_px(tiles: np.ndarray) -> float:
    """Return the median wavelength of the power of (N, H, W) grey tiles, without wavelengths below 8 px (grain)."""
    power = np.abs(np.fft.fft2(tiles - tiles.mean((1, 2), keepdims=True))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(tiles.shape[1]), np.fft.fftfreq(tiles.shape[2]), indexing="ij"))
    kept = frequency < 1 / 8
    order = np.argsort(frequency[kept])
    total = np.cumsum(power.mean(0)[kept][order])
    return float(1 / frequency[kept][order][np.searchsorted(total, total[-1] / 2)])


def tissue_share(depth: Depth, side_px: int) -> float:
    y, x = np.mgrid[0:side_px:64j, 0:side_px:64j]
    return float((depth(x, y) > 0).mean())
