"""Last lines of scorings and searches: users of the service get commands, not paths on the server."""

from __future__ import annotations

from ray_jobs.scoring.driver import result_lines
from ray_jobs.tuning.driver import list_next_steps


def test_a_job_of_the_service_prints_commands_and_no_folders() -> None:
    lines = [
        *result_lines("/srv/secret/out", "score-1"),
        *list_next_steps("s3://lab/m.csv", "/srv/secret/best.yaml", "tune-1"),
    ]
    assert not [line for line in lines if "/srv/secret" in line]
    text = "\n".join(lines)
    for command in ("magnet scores score-1", "magnet report score-1", "magnet best tune-1 > best.yaml"):
        assert command in text
    assert "magnet submit train --manifest s3://lab/m.csv --config best.yaml" in text


def test_a_job_started_by_hand_prints_its_folder() -> None:
    assert "/out/report.html" in result_lines("/out", None)[1]
    assert list_next_steps("m.csv", "/runs/best.yaml", None)[0].endswith("--manifest m.csv --config /runs/best.yaml")
