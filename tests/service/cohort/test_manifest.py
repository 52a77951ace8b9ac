"""Manifests: reading, and reporting of all problems at once."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from service.cohort.manifest import Manifest, ManifestError, assign_splits, check_slides, load_manifest
from service.errors import NotFoundError, SlideError
from service.slides.reader import RegionReader

HEADER = "slide_id,uri,patient_id,center,label,stratum,split\n"
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
GOOD = (
    HEADER
    + "a,slides/a.tif,p1,0,0,negative,train\n"
    + "b,slides/b.tif,p2,1,1,macro,train\n"
    + "c,slides/c.tif,p3,1,1,itc,test\n"
)


def load(folder: Path, content: str | bytes, need_labels: bool = True, name: str = "m.csv") -> Manifest:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_manifest(str(path), need_labels=need_labels)


def problems(folder: Path, content: str | bytes, need_labels: bool = True) -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(ManifestError) as caught:
        load(folder, content, need_labels)
    return [(p.row, p.column, p.reason) for p in caught.value.problems]


class TestReading:
    def test_rows_become_slides(self, tmp_path: Path) -> None:
        manifest = load(tmp_path, GOOD)
        first, second, third = manifest.slides
        assert (first.row, first.slide_id, first.patient_id, first.center) == (2, "a", "p1", "0")
        assert (second.label, second.stratum, second.split) == (1, "macro", "train")
        assert third.uri == str(tmp_path / "slides/c.tif")
        assert manifest.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
        assert [slide.slide_id for slide in manifest.split("train")] == ["a", "b"]
        assert manifest.split("val") == ()

    def test_two_columns_are_enough_for_scoring(self, tmp_path: Path) -> None:
        (slide,) = load(tmp_path, "slide_id,uri\nx,s3://bucket/x.svs\n", need_labels=False).slides
        assert (slide.uri, slide.patient_id) == ("s3://bucket/x.svs", "x")
        assert slide.label is slide.stratum is slide.split is slide.center is None

    def test_more_columns_are_kept(self, tmp_path: Path) -> None:
        manifest = load(tmp_path, "slide_id,uri,scanner\nx,x.svs,Acme 5\n", need_labels=False)
        assert manifest.slides[0].extra == {"scanner": "Acme 5"}
        frame = manifest.to_frame()
        assert list(frame.columns) == [
            "slide_id",
            "uri",
            "patient_id",
            "center",
            "label",
            "stratum",
            "split",
            "scanner",
        ]
        assert frame["scanner"].tolist() == ["Acme 5"]
        assert frame["label"].isna().all()

    def test_frame_holds_labels_as_integers(self, tmp_path: Path) -> None:
        frame = load(tmp_path, GOOD).to_frame()
        assert frame["label"].tolist() == [0, 1, 1]
        assert str(frame["label"].dtype) == "Int64"

    @pytest.mark.parametrize(
        "content",
        [
            GOOD.encode("utf-8-sig"),
            GOOD.replace("\n", "\r\n").encode(),
            ("\n" + GOOD.replace("\n", "\n\n") + ",,,,,,\n").encode(),
            GOOD.rstrip("\n").replace(",", " , ").encode(),
        ],
        ids=["byte order mark", "CRLF", "blank lines", "spaces, no last newline"],
    )
    def test_unusual_but_valid_csv_is_read(self, tmp_path: Path, content: bytes) -> None:
        slides = load(tmp_path, content).slides
        assert [(s.slide_id, s.label, s.split) for s in slides] == [
            ("a", 0, "train"),
            ("b", 1, "train"),
            ("c", 1, "test"),
        ]

    def test_row_numbers_are_line_numbers_of_the_file(self, tmp_path: Path) -> None:
        content = 'slide_id,uri,note\n\na,a.tif,"two\nlines, with a comma"\nb,b.tif,\n'
        slides = load(tmp_path, content, need_labels=False).slides
        assert [slide.row for slide in slides] == [3, 5]
        assert slides[0].extra == {"note": "two\nlines, with a comma"}

    def test_ids_that_look_like_numbers_remain_texts(self, tmp_path: Path) -> None:
        slides = load(tmp_path, "slide_id,uri,patient_id\n007,a.tif,0012\n7,b.tif,1e5\n", need_labels=False).slides
        assert [(s.slide_id, s.patient_id) for s in slides] == [("007", "0012"), ("7", "1e5")]

    def test_parquet_is_read(self, tmp_path: Path) -> None:
        table = {"slide_id": ["007", "x"], "uri": ["a.tif", "b.tif"], "label": [0.0, 1.0], "patient_id": [12, None]}
        pd.DataFrame(table).to_parquet(tmp_path / "m.parquet")
        manifest = load_manifest(str(tmp_path / "m.parquet"), need_labels=True)
        assert [(s.row, s.slide_id, s.label, s.patient_id) for s in manifest.slides] == [
            (1, "007", 0, "12"),
            (2, "x", 1, "x"),
        ]

    def test_parquet_cells_of_any_type_are_read(self, tmp_path: Path) -> None:
        table = {
            "slide_id": [7, 8],
            "uri": ["a", "b"],
            "label": [True, False],
            "a": [float("inf"), None],
            "b": [[1], []],
        }
        pd.DataFrame(table).to_parquet(tmp_path / "m.parquet")
        slides = load_manifest(str(tmp_path / "m.parquet"), need_labels=True).slides
        assert [(s.slide_id, s.label, s.extra) for s in slides] == [
            ("7", 1, {"a": "inf", "b": "[1]"}),
            ("8", 0, {"a": "", "b": "[]"}),
        ]

    def test_relative_uris_may_leave_the_folder_of_the_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "tables").mkdir()
        (slide,) = load(tmp_path, "slide_id,uri\nx,../slides/x.svs\n", need_labels=False, name="tables/m.csv").slides
        assert slide.uri == str(tmp_path / "slides/x.svs")

    def test_a_missing_file_is_not_a_manifest_error(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            load_manifest(str(tmp_path / "none.csv"), need_labels=False)


class TestProblems:
    def test_all_problems_are_reported_with_row_and_column(self, tmp_path: Path) -> None:
        content = (
            HEADER
            + "a,a.tif,p1,0,0,negative,train\n"
            + "a,b.tif,p2,0,1,macro,train\n"
            + ",c.tif,p3,0,1,macro,val\n"
            + "d,a.tif,p4,0,yes,,test\n"
            + "e,,p5,0,1,huge,test\n"
            + "f,f.tif,p1,0,0,negative,test\n"
            + "g,g.tif,p7,0,1,negative,dev\n"
            + "h/../h,h.tif,p8,0,0,macro,\n"
        )
        reported = problems(tmp_path, content)
        assert [(row, column) for row, column, _ in reported] == [
            (3, "slide_id"),
            (4, "slide_id"),
            (5, "label"),
            (5, "uri"),
            (6, "uri"),
            (6, "stratum"),
            (7, "split"),
            (8, "stratum"),
            (8, "split"),
            (9, "slide_id"),
            (9, "stratum"),
            (9, "split"),
        ]
        reasons = [reason for _, _, reason in reported]
        assert reasons[0] == "'a' duplicates row 2"
        assert reasons[2] == "'yes' is neither 0 (negative) nor 1 (positive)"
        assert reasons[6] == "patient 'p1' is in test, but in train in row 2; a patient must be in one split"
        assert reasons[7] == "'negative' contradicts label 1; only negative slides have label 0"

    def test_a_missing_column_or_a_short_row_hides_no_other_problem(self, tmp_path: Path) -> None:
        content = "slide_id,uri,split\na,a.tif,train\nb,a.tif,train\nc,c.tif\nd,d.tif,dev\n"
        assert [(row, column) for row, column, _ in problems(tmp_path, content)] == [
            (None, "label"),
            (3, "uri"),
            (4, None),
            (5, "split"),
        ]

    def test_the_message_has_one_line_per_problem(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError) as caught:
            load(tmp_path, "slide_id,uri,label\na,a.tif,2\nb,b.tif,\n")
        assert str(caught.value).splitlines() == [
            f"{tmp_path / 'm.csv'}: 2 problems",
            "  row 2, column label: '2' is neither 0 (negative) nor 1 (positive)",
            "  row 3, column label: is empty",
        ]

    def test_the_error_survives_pickling(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError) as caught:
            load(tmp_path, "slide_id,uri,label\na,a.tif,2\n")
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)

    @pytest.mark.parametrize(
        ("content", "row", "column", "reason"),
        [
            (b"", None, None, "is empty"),
            (b"\n\n", None, None, "is empty"),
            (b"slide_id,uri,label\n", None, None, "no slides"),
            (b"slide_id;uri;label\na;a.tif;0\n", None, None, "separated by ';'; save the table with commas"),
            (b"slide_id\turi\tlabel\na\ta.tif\t0\n", None, None, "separated by a tab"),
            (
                b"slide,uri,label\na,a.tif,0\n",
                None,
                "slide_id",
                "is missing; the table has the columns slide, uri, label",
            ),
            (b"slide_id,uri\na,a.tif\n", None, "label", "is missing"),
            (b"slide_id,uri,label,uri\na,a.tif,0,b.tif\n", None, "uri", "more than once"),
            (b"slide_id,uri,label\na,a.tif\n", 2, None, "has 2 cells, the header has 3"),
            (b'slide_id,uri,label\na,a.tif,0\nb,"b.tif,1\n', 3, None, "is not valid CSV"),
            (b"slide_id,uri,label\na,a.tif,0\nM\xfcller,b.tif,1\n", 3, None, "is not UTF-8"),
            (b"\xff\xfes\x00l\x00", 1, None, "is not UTF-8"),
            (b"PAR1 and then nothing", None, None, "damaged Parquet"),
        ],
    )
    def test_the_error_says_why_a_table_cannot_be_read(
        self, tmp_path: Path, content: bytes, row: int | None, column: str | None, reason: str
    ) -> None:
        ((reported_row, reported_column, reported_reason),) = problems(tmp_path, content)
        assert (reported_row, reported_column) == (row, column)
        assert reason in reported_reason

    @pytest.mark.parametrize("slide_id", ["a/b", "..", ".hidden", "a\\b", "a:b", "a*", "x" * 101, "-rf", "a.", 'a"b'])
    def test_ids_that_cannot_name_a_file_are_refused(self, tmp_path: Path, slide_id: str) -> None:
        quoted = '"' + slide_id.replace('"', '""') + '"'
        ((row, column, reason),) = problems(tmp_path, f"slide_id,uri\n{quoted},a.tif\n", need_labels=False)
        assert (row, column) == (2, "slide_id")
        assert "cannot name a file" in reason

    @pytest.mark.parametrize("slide_id", ["S12-3456 A1.2", "Müller_7", "TCGA-CR-7395-01A-01-TS1", "(copy) x+y"])
    def test_ids_that_can_name_a_file_are_accepted(self, tmp_path: Path, slide_id: str) -> None:
        assert load(tmp_path, f"slide_id,uri\n{slide_id},a.tif\n", need_labels=False).slides[0].slide_id == slide_id

    @pytest.mark.parametrize(
        ("splits", "reason"),
        [
            (("train", "test", "test"), "no slide in train has label 1; training needs both labels"),
            (("test", "train", "train"), "no slide in train has label 0; training needs both labels"),
        ],
    )
    def test_training_needs_both_labels(self, tmp_path: Path, splits: tuple[str, ...], reason: str) -> None:
        rows = [f"s{k},{k}.tif,{int(k > 0)},{split}\n" for k, split in enumerate(splits)]
        content = "slide_id,uri,label,split\n" + "".join(rows)
        assert problems(tmp_path, content) == [(None, "label", reason)]
        assert len(load(tmp_path, content, need_labels=False).slides) == 3

    def test_labels_may_be_missing_if_they_are_not_needed(self, tmp_path: Path) -> None:
        content = "slide_id,uri,label\na,a.tif,\nb,b.tif,1\n"
        assert [s.label for s in load(tmp_path, content, need_labels=False).slides] == [None, 1]
        assert problems(tmp_path, content) == [(2, "label", "is empty")]

    def test_a_relative_uri_that_leaves_the_bucket_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = b"slide_id,uri\na,../../a.tif\n"
        monkeypatch.setattr("service.storage.read_bytes", lambda uri, **_: content)
        with pytest.raises(ManifestError, match=r"row 2, column uri: .*leads out"):
            load_manifest("s3://bucket/folder/m.csv", need_labels=False)


class TestSplits:
    def cohort(self, folder: Path, order: int = 1) -> Manifest:
        rows = [
            f"s{k},{k}.tif,p{k // 2},{label},{stratum}\n"
            for k in range(40)
            for label, stratum in [(0, "negative") if k < 20 else (1, "macro") if k < 30 else (1, "micro")]
        ]
        return load(folder, "slide_id,uri,patient_id,label,stratum\n" + "".join(rows[::order]))

    def test_patients_stay_together_and_strata_are_distributed_evenly(self, tmp_path: Path) -> None:
        slides = assign_splits(self.cohort(tmp_path), 0, SHARES).slides
        assert len({(s.patient_id, s.split) for s in slides}) == 20
        assert Counter((s.stratum, s.split) for s in slides) == {
            ("negative", "train"): 12,
            ("negative", "val"): 4,
            ("negative", "test"): 4,
            ("macro", "train"): 6,
            ("macro", "val"): 2,
            ("macro", "test"): 2,
            ("micro", "train"): 6,
            ("micro", "val"): 2,
            ("micro", "test"): 2,
        }

    def test_splits_depend_on_the_seed_but_not_on_the_order_of_rows(self, tmp_path: Path) -> None:
        def splits(order: int, seed: int) -> dict[str, str | None]:
            return {s.slide_id: s.split for s in assign_splits(self.cohort(tmp_path, order), seed, SHARES).slides}

        assert splits(1, 0) == splits(-1, 0)
        assert splits(1, 0) != splits(1, 1)

    def test_splits_of_the_manifest_are_kept(self, tmp_path: Path) -> None:
        manifest = load(tmp_path, GOOD)
        assert assign_splits(manifest, 0, SHARES) is manifest

    def test_too_few_patients_for_both_labels_in_train_are_an_error(self, tmp_path: Path) -> None:
        manifest = load(tmp_path, "slide_id,uri,label\na,a.tif,0\nb,b.tif,1\n")
        with pytest.raises(ManifestError, match="no slide in train has label"):
            assign_splits(manifest, 0, {"val": 1.0})

    def test_slides_without_labels_can_be_split(self, tmp_path: Path) -> None:
        content = "slide_id,uri\n" + "".join(f"s{k},{k}.tif\n" for k in range(10))
        slides = assign_splits(load(tmp_path, content, need_labels=False), 0, SHARES).slides
        assert Counter(s.split for s in slides) == {"train": 6, "val": 2, "test": 2}


class TestCheckSlides:
    def test_each_broken_file_is_reported(self, tmp_path: Path, test_data: Path) -> None:
        bad = ["empty.svs", "header-only.svs", "random-bytes.svs", "truncated-half.svs", "unknown-compression.tiff"]
        uris = [*(f"{test_data}/bad/{name}" for name in bad), f"{test_data}/slides/cmu-1-small-region.svs", "gone.svs"]
        content = "slide_id,uri\n" + "".join(f"s{k},{uri}\n" for k, uri in enumerate(uris))
        reported = check_slides(load(tmp_path, content, need_labels=False), RegionReader(), num_threads=4)
        assert [(p.row, p.slide_id) for p in reported] == [
            (2, "s0"),
            (3, "s1"),
            (4, "s2"),
            (5, "s3"),
            (6, "s4"),
            (8, "s6"),
        ]
        assert [p.uri for p in reported][:5] == uris[:5]
        assert all(p.reason for p in reported)
        assert str(reported[0]).startswith(f"row 2, s0, {uris[0]}: ")

    def test_readable_slides_give_no_problem(self, tmp_path: Path) -> None:
        class Fine:
            def info(self, uri: str) -> str:
                return uri

        assert check_slides(load(tmp_path, GOOD), Fine()) == []

    def test_all_slides_are_opened_although_the_first_fails(self, tmp_path: Path) -> None:
        class Broken:
            def info(self, uri: str) -> object:
                raise SlideError("is broken", uri=uri)

        reported = check_slides(load(tmp_path, GOOD), Broken(), num_threads=2)
        assert [(p.row, p.reason) for p in reported] == [(2, "is broken"), (3, "is broken"), (4, "is broken")]
