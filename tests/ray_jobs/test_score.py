"""What the scoring command makes of its options, without a cluster."""

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
    """What the job was asked for."""
    found: list[dict[str, Any]] = []

    def fake(slides: list[Slide], model: str, settings: ScoreSettings, **options: Any) -> int:
        found.append({"slides": slides, "model": model, "settings": settings, **options})
        return 0

    monkeypatch.setattr(scoring, "score", fake)
    return found


def slide(number: int) -> Slide:
    return Slide(row=number, slide_id=f"s{number}", uri=f"/s{number}.svs", patient_id="p", label=number % 2)


def test_a_folder_is_scored_with_the_settings_of_options_words_and_file(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    for name in ("a.svs", "b.tif", "notes.txt"):
        (tmp_path / "new" / name).write_bytes(b"x")
    (tmp_path / "c.yaml").write_text("frames: 2\n")
    words = ["--manifest", str(tmp_path / "new"), "--model", "m", "--out", str(tmp_path / "out"), "--num-workers", "2"]
    words += ["--config", str(tmp_path / "c.yaml"), "--no-gate", "--stop-when-settled", "0.1", "--no-pictures"]
    assert score.main(words) == 0
    (call,) = calls
    assert [one.slide_id for one in call["slides"]] == ["a", "b"]
    settings = call["settings"]
    assert (settings.gate, settings.frames, settings.stop_when_settled, settings.pictures) == (None, 2, 0.1, False)
    assert settings.compute.num_workers == 2
    assert "2 slides, 1 other files left out (1 .txt), such as notes.txt" in capsys.readouterr().out


def test_outlines_are_read_before_anything_starts(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("slide_id,uri\na,a.svs\n")
    words = ["--manifest", str(tmp_path / "m.csv"), "--model", "m", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError):
        score.main([*words, "--outlines", str(tmp_path / "none.geojson")])
    assert calls == []


def test_blocks_are_those_of_the_manifest_whatever_is_done_already() -> None:
    slides = [slide(n) for n in range(20)]
    ids = [block["slide_id"].to_pylist() for block in scoring._blocks(slides, set())]
    assert [len(block) for block in ids] == [8, 8, 4]
    assert [one for block in ids for one in block] == [one.slide_id for one in slides]
    later = [block["slide_id"].to_pylist() for block in scoring._blocks(slides, set(ids[1]))]
    assert later == [ids[0], ids[2]]
    assert scoring._blocks(slides, {one.slide_id for one in slides}) == []


@pytest.mark.parametrize(("num_slides", "size"), [(9, 8), (640, 10), (100_000, 64)])
def test_blocks_grow_with_the_manifest(num_slides: int, size: int) -> None:
    blocks = scoring._blocks([slide(0)] * num_slides, set())
    assert len(blocks[0]) == size
    assert sum(map(len, blocks)) == num_slides


def test_a_folder_of_scores_holds_rows_of_one_kind(tmp_path: Path) -> None:
    out = str(tmp_path)
    scoring._keep_settings(ScoreSettings(), out)
    scoring._keep_settings(ScoreSettings(pictures=False), out)
    with pytest.raises(UsageError, match=r"other settings \(frames, gate\); take a new folder"):
        scoring._keep_settings(ScoreSettings(frames=8, gate=None), out)
    assert json.loads((tmp_path / "settings.json").read_text())["frames"] == 1
