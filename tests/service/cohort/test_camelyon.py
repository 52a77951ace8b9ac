"""The manifest of the public Camelyon data, made from copies of its layout with empty slides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from service.cohort.camelyon import main
from service.cohort.label_policy import select_training_slides
from service.cohort.manifest import Manifest, load_manifest
from service.settings.train import read_train_settings
from service.testing.fake_store import HttpStore

PUBLISHED = {  # slides of each center with each label, counted in stages.csv: 318, 36, 59 and 87 in total
    "negative": (64, 58, 75, 60, 61),
    "itc": (11, 7, 2, 8, 8),
    "micro": (10, 23, 8, 13, 5),
    "macro": (15, 12, 15, 19, 26),
}


def touch(root: Path, *keys: str) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def full_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all names of the bucket; labels are assigned at random within each center."""
    root = tmp_path_factory.mktemp("camelyon")
    images = [f"normal_{n:03}" for n in range(1, 161) if n != 86] + [f"tumor_{n:03}" for n in range(1, 112)]
    tests = [f"test_{n:03}" for n in range(1, 131) if n != 49]
    touch(root, *(f"CAMELYON16/images/{name}.tif" for name in images + tests))
    touch(root, *(f"CAMELYON16/masks/{name}_mask.tif" for name in images), "CAMELYON16/README.md")
    sizes = ["Macro"] * 22 + ["Micro"] * 27
    rows = [f"{name},Tumor,IDC,{size}" for name, size in zip(tests, sizes, strict=False)]
    write(root / "CAMELYON16/evaluation/reference.csv", *rows, *(f"{name},Normal,None,None" for name in tests[49:]))

    patients = [f"patient_{n:03}" for n in range(200)]
    nodes = [f"{patient}_node_{n}" for patient in patients for n in range(5)]
    touch(root, *(f"CAMELYON17/images/{node}.tif" for node in nodes), "CAMELYON17/masks/patient_004_node_4_mask.tif")
    table = ["patient,stage,center"]
    for center in range(5):
        stages = np.repeat(list(PUBLISHED), [counts[center] for counts in PUBLISHED.values()])
        np.random.default_rng(center).shuffle(stages)
        for k, stage in enumerate(stages):
            table += [f"patient_{center * 20 + k // 5:03}.zip,pN0,{center}"] if k % 5 == 0 else []
            table.append(f"{nodes[center * 100 + k]}.tif,{stage},{center}")
    write(root / "CAMELYON17/stages.csv", *table)
    write(root / "CAMELYON17/evaluation/example.csv", "patient,stage", "patient_100_node_0.tif,macro")
    return root


def make_manifest(root: Path | str, out: Path, *options: str) -> Manifest:
    assert main([str(root), str(out), *options]) == 0
    return load_manifest(str(out), need_labels=True)


def test_all_labelled_slides_are_listed(full_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = make_manifest(full_copy, tmp_path / "m.csv").to_frame()
    new = frame["slide_id"].str.startswith("patient_")
    assert frame[new]["stratum"].value_counts().to_dict() == {"negative": 318, "itc": 36, "micro": 59, "macro": 87}
    assert frame[new].groupby("center")["slide_id"].count().tolist() == [100] * 5
    assert Counter(frame[~new]["label"]) == {0: 239, 1: 160}
    assert Counter(frame[~new]["stratum"].fillna("")) == {"negative": 239, "": 111, "macro": 22, "micro": 27}
    assert (frame[frame["stratum"] == "itc"]["label"] == 1).all()
    by_id = frame.set_index("slide_id")
    assert by_id.loc["patient_004_node_4", "patient_id"] == "patient_004"
    assert by_id.loc["tumor_111", "uri"] == f"{full_copy}/CAMELYON16/images/tumor_111.tif"
    output = capsys.readouterr().out
    assert "left out: 500 Camelyon17 slides of patients from 100 on" in output
    assert "kept: test_114" in output
    assert "Camelyon16: 399 of 399 labelled slides found" in output
    assert "Camelyon17: 500 of 500 labelled slides found" in output


def test_a_quarter_of_camelyon17_is_test_and_a_fifth_of_the_rest_is_val(full_copy: Path, tmp_path: Path) -> None:
    manifest = make_manifest(full_copy, tmp_path / "m.csv")  # loading refuses a patient in two splits
    count = {name: len(manifest.split(name)) for name in ("train", "val", "test")}
    assert count["test"] == pytest.approx(0.25 * 500, abs=5)
    assert count["val"] == pytest.approx(0.2 * (899 - count["test"]), abs=5)
    assert sum(count.values()) == 899
    assert all(slide.patient_id.startswith("patient_") for slide in manifest.split("test"))
    strata = Counter(slide.stratum for slide in manifest.split("test"))
    for name, counts in PUBLISHED.items():  # as even as patients allow
        assert strata[name] == pytest.approx(0.25 * sum(counts), abs=3), name
    for name in ("train", "val"):
        assert {slide.slide_id.partition("_")[0] for slide in manifest.split(name)} >= {"normal", "tumor", "patient"}


def test_only_the_seed_decides_the_splits(full_copy: Path, tmp_path: Path) -> None:
    first, again = (make_manifest(full_copy, tmp_path / f"{n}.csv") for n in range(2))
    assert first.sha256 == again.sha256
    assert make_manifest(full_copy, tmp_path / "other.csv", "--seed", "1").sha256 != first.sha256


def test_with_itc_in_test_no_other_split_has_itc(full_copy: Path, tmp_path: Path) -> None:
    manifest = make_manifest(full_copy, tmp_path / "m.csv", "--itc-in-test")
    assert Counter(slide.split for slide in manifest.slides if slide.stratum == "itc") == {"test": 36}
    assert all(slide.patient_id.startswith("patient_") for slide in manifest.split("test"))


@pytest.mark.parametrize("config", ["camelyon-3layer", "camelyon-4layer", "camelyon-evidence"])
def test_the_configs_train_without_itc_and_test_with_itc(config: str, full_copy: Path, tmp_path: Path) -> None:
    manifest = make_manifest(full_copy, tmp_path / "m.csv")
    path = str(Path(__file__).parents[3] / "configs" / f"{config}.yaml")
    for overrides, fits in (([], ("train",)), (["fit_on=train+val"], ("train", "val"))):
        settings = read_train_settings(path, overrides)
        used = select_training_slides(manifest, without_strata=settings.train_without_strata, fit_on=settings.fit_on)
        trained = {slide.slide_id for slide in used.split("train")}
        assert trained == {s.slide_id for name in fits for s in manifest.split(name) if s.stratum != "itc"}
        assert used.split("test") == manifest.split("test")
    assert {slide.stratum for slide in manifest.split("test")} == {"negative", "macro", "micro", "itc"}


@pytest.fixture
def small_copy(store: HttpStore) -> Path:
    """Return a folder with some slides of both sets, served by an object store, with tables as in older copies."""
    root = store.folder
    touch(root, *(f"CAMELYON16/images/{name}.tif" for name in ("normal_001", "normal_086", "tumor_001", "test_001")))
    touch(root, *(f"CAMELYON17/images/patient_0{p}_node_{n}.tif" for p in (20, 21, 55, 99) for n in range(5)))
    write(root / "CAMELYON16/evaluation/reference.csv", "test_001,Tumor,IDC,Macro")
    stages = [
        f"patient_0{p}_node_{n}.tif,{'macro' if n == 3 else 'negative'}" for p in (20, 21, 55, 99) for n in range(5)
    ]
    write(root / "CAMELYON17/stages.csv", "patient,stage", "patient_020.zip,pN1", *stages)
    return root


def test_a_public_bucket_is_read_without_credentials(
    small_copy: Path, store: HttpStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    slides = {slide.slide_id: slide for slide in make_manifest("s3://bucket", tmp_path / "m.csv").slides}
    assert len(slides) == 24
    assert slides["tumor_001"].uri == "s3://bucket/CAMELYON16/images/tumor_001.tif"
    assert (slides["test_001"].label, slides["test_001"].stratum) == (1, "macro")
    read = {request.key for request in store.gets() if request.key}
    assert read == {"CAMELYON16/evaluation/reference.csv", "CAMELYON17/stages.csv"}


def test_centers_follow_from_patient_numbers_if_the_table_has_none(small_copy: Path, tmp_path: Path) -> None:
    centers = {slide.patient_id: slide.center for slide in make_manifest(small_copy, tmp_path / "m.csv").slides}
    assert [centers[f"patient_{p:03}"] for p in (20, 21, 55, 99)] == ["1", "1", "2", "4"]
    assert centers["normal_001"] is None


@pytest.mark.parametrize(
    ("added", "labels", "message"),
    [
        ([], {"normal_086": 1}, "positive: normal_086"),
        (["tumor_111"], {"tumor_111": 1}, "left out: normal_086, which the organisers renamed"),
        (["test_049"], {"normal_086": 1}, "left out: test_049, a duplicate"),
        (["test_002"], {"normal_086": 1}, "left out: test_002, which reference.csv does not name"),
    ],
)
def test_known_errors_of_the_data_are_handled_and_reported(
    small_copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    added: list[str],
    labels: dict[str, int],
    message: str,
) -> None:
    touch(small_copy, *(f"CAMELYON16/images/{name}.tif" for name in added))
    label_of = {slide.slide_id: slide.label for slide in make_manifest(small_copy, tmp_path / "m.csv").slides}
    usual = {"normal_001": 0, "tumor_001": 1, "test_001": 1}
    assert {name: label for name, label in label_of.items() if not name.startswith("patient_")} == usual | labels
    assert message in capsys.readouterr().out


def test_missing_slides_of_a_partial_copy_are_reported(
    small_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_copy / "CAMELYON17/images/patient_055_node_2.tif").unlink()
    touch(small_copy, "CAMELYON17/images/patient_030_node_0.tif", "CAMELYON17/images/patient_100_node_0.tif")
    frame = pd.DataFrame(slide.slide_id for slide in make_manifest(small_copy, tmp_path / "m.csv").slides)
    assert len(frame) == 4 + 19
    output = capsys.readouterr().out
    assert "not found: 1 slides that stages.csv names, the first patient_055_node_2" in output
    assert "left out: patient_030_node_0, which stages.csv does not name" in output
    assert "left out: 1 Camelyon17 slides of patients from 100 on" in output
    assert "Camelyon17: 19 of 500" in output


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("CAMELYON16/images", "CAMELYON16: has no images"),
        ("CAMELYON17/stages.csv", "CAMELYON17: has 0 files stages.csv"),
        ("CAMELYON16/evaluation/reference.csv", "CAMELYON16: has 0 files reference.csv"),
    ],
)
def test_a_folder_without_the_layout_of_the_bucket_is_refused(
    small_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, message: str
) -> None:
    (small_copy / missing).rename(tmp_path / "elsewhere")
    assert main([str(small_copy), str(tmp_path / "m.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists()


def test_an_unknown_stage_is_refused_with_its_row(
    small_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(small_copy / "CAMELYON17/stages.csv", "patient,stage", "patient_020_node_0.tif,huge")
    assert main([str(small_copy), str(tmp_path / "m.csv")]) == 2
    assert (
        "stages.csv: row 2: stage 'huge' is unknown; known are negative, macro, micro, itc" in capsys.readouterr().err
    )
