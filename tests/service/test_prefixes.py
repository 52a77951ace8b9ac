"""Which places lie below which."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.manifest import ManifestError, load_manifest
from service.prefixes import is_below


@pytest.mark.parametrize(
    ("place", "prefix", "below"),
    [
        ("s3://lab/a/x.svs", "s3://lab/a", True),
        ("s3://lab/a/x.svs", "s3://lab/a/", True),
        ("s3://lab/ab/x.svs", "s3://lab/a", False),
        ("s3://lab/a/../b.svs", "s3://lab/a", False),
        ("gs://lab/a/x.svs", "s3://lab/a", False),
        ("s3://lab2/x", "s3://lab", False),
        ("/data/../etc/passwd", "/data", False),
        ("file:///data/%2e%2e/etc/passwd", "/data", False),
        ("file:///data/x", "/data", True),
        ("ftp://lab/x", "s3://lab", False),
        ("/data/x\0", "/data", False),
    ],
)
def test_is_below(place: str, prefix: str, below: bool) -> None:
    assert is_below(place, [prefix]) == below


def test_a_manifest_of_a_job_names_only_allowed_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_text("slide_id,uri\na,a.svs\nb,/etc/passwd\nc,http://169.254.169.254/x.svs\n")
    assert len(load_manifest(str(tmp_path / "m.csv"), need_labels=False).slides) == 3
    monkeypatch.setenv("MAGNET_ALLOWED_PREFIXES", f"s3://lab\n{tmp_path}")
    with pytest.raises(ManifestError) as raised:
        load_manifest(str(tmp_path / "m.csv"), need_labels=False)
    assert [problem.row for problem in raised.value.problems] == [3, 4]  # lines of the file
