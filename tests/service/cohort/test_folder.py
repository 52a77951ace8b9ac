"""A folder of slides as a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cohort.folder import is_folder, list_slides
from service.errors import UsageError
from service.testing.fake_store import HttpStore


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_every_slide_below_becomes_a_row_and_other_files_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.svs", "sub/b c.TIFF", "sub/d\u00e4.ndpi", "notes.txt", "sub/x.dat", "sub/.hidden.svs", "list.csv")
    manifest, other = list_slides(str(tmp_path))
    assert [slide.slide_id for slide in manifest.slides] == ["a", "sub-b c", "sub-d\u00e4"]
    assert [slide.uri for slide in manifest.slides][:2] == [str(tmp_path / "a.svs"), str(tmp_path / "sub" / "b c.TIFF")]
    assert manifest.slides[0].patient_id == "a"
    assert manifest.slides[0].label is None
    assert other.describe().startswith("4 other files left out (")
    assert "1 .txt" in other.describe()


def test_slides_with_equal_ids_get_unique_ones(tmp_path: Path) -> None:
    fill(tmp_path, "a/s.svs", "a-s.tif", "b.svs")
    ids = [slide.slide_id for slide in list_slides(str(tmp_path))[0].slides]
    assert len(set(ids)) == 3
    assert sum(slide_id.startswith("a-s-") for slide_id in ids) == 2
    assert ids == [slide.slide_id for slide in list_slides(f"{tmp_path}/")[0].slides]


def test_names_that_are_not_allowed_as_ids_are_changed(tmp_path: Path) -> None:
    fill(tmp_path, "-a?b*.svs", f"{'long' * 40}.svs")
    ids = [slide.slide_id for slide in list_slides(str(tmp_path))[0].slides]
    assert ids == ["_-a_b_", "long" * 20]


def test_a_prefix_of_a_bucket_is_listed(store: HttpStore) -> None:
    fill(store.folder, "new/a.svs", "new/deep/b.tif", "newer/c.svs", "new/readme.md")
    manifest, other = list_slides("s3://bucket/new/")
    assert [slide.uri for slide in manifest.slides] == ["s3://bucket/new/a.svs", "s3://bucket/new/deep/b.tif"]
    assert other.names == ("readme.md",)


def test_the_error_for_a_folder_without_slides_says_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    with pytest.raises(UsageError, match=r"no slides in this folder \(1 other files left out \(1 \.png\)"):
        list_slides(str(tmp_path))


def test_folders_and_manifests_are_distinguished(tmp_path: Path) -> None:
    fill(tmp_path, "m.csv")
    assert is_folder(str(tmp_path))
    assert is_folder("s3://bucket/new/")
    assert not is_folder(str(tmp_path / "m.csv"))
    assert not is_folder("s3://bucket/new")
