"""The service's own settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings.service import ServiceSettings, service_settings
from service.settings.train import SettingsError


def test_the_shipped_example_is_valid_and_hides_its_database() -> None:
    settings = service_settings(str(Path(__file__).parents[3] / "infra" / "service.yaml"), [])
    assert [place.prefix for place in settings.places] == ["s3://lab/slides", "s3://archive", "s3://lab/results"]
    assert "db.lab" not in repr(settings)


def test_the_queue_is_a_file_beside_everything_else_unless_told_otherwise(tmp_path: Path) -> None:
    assert ServiceSettings(storage=str(tmp_path)).database_url == f"sqlite:///{tmp_path}/private/queue.db"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "storage is not set"),
        (["storage=s3://lab/x"], "database must be named"),
        (["storage=/x", "places=[{prefix: /x/private}]"], "places: /x/private lies in `storage`"),
        (["storage=/x", "places=[{prefix: /x}]"], "places: /x lies in `storage`"),
        (["storage=/x", "port=70000"], "port = 70000: must be 0 to 65535"),
        (["storage=/x", "silence_s=1"], "must be at least 3"),
        (["storage=/x", "max_running.train=-1"], "train = -1: must be 0 or more"),
        (["storage=/x", "colour=red"], "colour: unknown setting"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        service_settings(None, words)
