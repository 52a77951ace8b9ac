"""The label policy of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cohort.label_policy import describe_splits, select_training_slides
from service.cohort.manifest import Manifest, ManifestError, load_manifest
from service.settings.parsing import SettingsError
from service.settings.train import read_train_settings

ROWS = """slide_id,uri,label,stratum,split
n1,n1.tif,0,negative,train
a1,a1.tif,1,macro,train
i1,i1.tif,1,itc,train
u1,u1.tif,1,,train
n2,n2.tif,0,negative,val
i2,i2.tif,1,itc,val
a2,a2.tif,1,micro,val
n3,n3.tif,0,negative,test
i3,i3.tif,1,itc,test
"""


def cohort(folder: Path, rows: str = ROWS) -> Manifest:
    (folder / "m.csv").write_text(rows)
    return load_manifest(str(folder / "m.csv"), need_labels=True)


def ids(manifest: Manifest) -> dict[str, list[str]]:
    return {name: [s.slide_id for s in manifest.split(name)] for name in ("train", "val", "test")}


def test_nothing_is_left_out_by_default(tmp_path: Path) -> None:
    settings = read_train_settings(None)
    manifest = cohort(tmp_path)
    used = select_training_slides(manifest, without_strata=settings.train_without_strata, fit_on=settings.fit_on)
    assert used == manifest
    assert "left out" not in describe_splits(used)


def test_a_stratum_is_left_out_of_train_and_val_but_not_of_test(tmp_path: Path) -> None:
    used = select_training_slides(cohort(tmp_path), without_strata=("itc",), fit_on="train")
    assert ids(used) == {"train": ["n1", "a1", "u1"], "val": ["n2", "a2"], "test": ["n3", "i3"]}
    assert [slide.slide_id for slide in used.left_out] == ["i1", "i2"]
    assert describe_splits(used) == {
        "train": "3 slides, 2 positive",
        "val": "2 slides, 1 positive",
        "test": "2 slides, 1 positive",
        "left out": "1 itc of train, 1 itc of val",
    }


def test_the_final_retraining_uses_train_and_val(tmp_path: Path) -> None:
    used = select_training_slides(cohort(tmp_path), without_strata=("itc",), fit_on="train+val")
    assert ids(used) == {"train": ["n1", "a1", "u1", "n2", "a2"], "val": [], "test": ["n3", "i3"]}


def test_the_final_retraining_needs_no_val(tmp_path: Path) -> None:
    rows = "".join(line for line in ROWS.splitlines(keepends=True) if not line.endswith("val\n"))
    with pytest.raises(ManifestError, match="no slide has split val"):
        select_training_slides(cohort(tmp_path, rows), without_strata=(), fit_on="train")
    assert ids(select_training_slides(cohort(tmp_path, rows), without_strata=(), fit_on="train+val"))["val"] == []


def test_the_remaining_slides_must_have_both_labels(tmp_path: Path) -> None:
    manifest = cohort(tmp_path, ROWS.replace("u1,u1.tif,1,,train\n", ""))
    with pytest.raises(ManifestError, match="no slide in train has label 1"):
        select_training_slides(manifest, without_strata=("macro", "micro", "itc"), fit_on="train")


def test_the_policy_is_a_setting() -> None:
    settings = read_train_settings(None, ["train_without_strata=[itc]", "fit_on=train+val"])
    assert (settings.train_without_strata, settings.fit_on) == (("itc",), "train+val")
    for wrong in ("train_without_strata=[negative]", "fit_on=test"):
        with pytest.raises(SettingsError, match=wrong.partition("=")[0]):
            read_train_settings(None, [wrong])
