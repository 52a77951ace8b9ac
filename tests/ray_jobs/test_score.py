"""The scoring command without a cluster: its options, its blocks, and the settings of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import score
from ray_jobs.scoring import driver as scoring
from service.cohort.manifest import Slide
from service.errors import UsageError
from service.settings.score import ScoreSettings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call of the scoring job, which is replaced."""
    calls: list[dict[str, Any]] = []

    def fake(slides: list[Slide], model: str, settings: ScoreSettings, **options: Any) -> int:
        calls.append({"slides": slides, "model": model, "settings": settings, **options})
        return 0

    monkeypatch.setattr(scoring, "score", fake)
    return calls


def make_slide(number: int) -> Slide:
    return Slide(row=number, slide_id=f"s{number}", uri=f"/s{number}.svs", patient_id="p", label=number % 2)


def test_a_folder_is_scored_with_the_settings_of_options_and_file(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    for name in ("a.svs", "b.tif", "notes.txt"):
        (tmp_path / "new" / name).write_bytes(b"x")
    (tmp_path / "c.yaml").write_text("frames: 2\n")
    argv = ["--manifest", str(tmp_path / "new"), "--model", "m", "--out", str(tmp_path / "out"), "--num-workers", "2"]
    argv += ["--config", str(tmp_path / "c.yaml"), "--no-gate", "--stop-when-settled", "0.1", "--no-pictures"]
    assert score.main(argv) == 0
    (call,) = calls
    assert [slide.slide_id for slide in call["slides"]] == ["a", "b"]
    settings = call["settings"]
    assert (settings.gate, settings.frames, settings.stop_when_settled, settings.pictures) == (None, 2, 0.1, False)
    assert settings.compute.num_workers == 2
    assert "2 slides, 1 other files left out (1 .txt), such as notes.txt" in capsys.readouterr().out


def test_wrong_outlines_are_reported_before_the_scoring_starts(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide_id,uri\na,a.svs\n")
    argv = ["--manifest", str(tmp_path / "m.csv"), "--model", "m", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError):
        score.main([*argv, "--outlines", str(tmp_path / "none.geojson")])
    assert calls == []


def test_a_split_without_slides_is_refused(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide_id,uri,split\na,a.svs,train\n")
    argv = ["--manifest", str(tmp_path / "m.csv"), "--model", "m", "--out", str(tmp_path / "out"), "--split", "val"]
    with pytest.raises(UsageError, match=r"m\.csv: has no slides in the split 'val'"):
        score.main(argv)
    assert calls == []


def test_the_borders_of_blocks_do_not_depend_on_what_is_done() -> None:
    slides = [make_slide(n) for n in range(20)]
    ids = [block["slide_id"].to_pylist() for block in scoring._make_blocks(slides, set())]
    assert [len(block) for block in ids] == [8, 8, 4]
    assert [slide_id for block in ids for slide_id in block] == [slide.slide_id for slide in slides]
    rest = [block["slide_id"].to_pylist() for block in scoring._make_blocks(slides, set(ids[1]))]
    assert rest == [ids[0], ids[2]]
    assert scoring._make_blocks(slides, {slide.slide_id for slide in slides}) == []


@pytest.mark.parametrize(("num_slides", "size"), [(9, 8), (640, 10), (100_000, 64)])
def test_blocks_grow_with_the_manifest(num_slides: int, size: int) -> None:
    blocks = scoring._make_blocks([make_slide(0)] * num_slides, set())
    assert len(blocks[0]) == size
    assert sum(map(len, blocks)) == num_slides


def test_a_folder_of_scores_is_refused_for_other_settings(tmp_path: Path) -> None:
    out = str(tmp_path)
    scoring._require_same_settings(ScoreSettings(), out)
    scoring._require_same_settings(ScoreSettings(pictures=False), out)
    with pytest.raises(UsageError, match=r"other settings \(frames, gate\); name a new folder"):
        scoring._require_same_settings(ScoreSettings(frames=8, gate=None), out)
    assert json.loads((tmp_path / "settings.json").read_text())["frames"] == 1
