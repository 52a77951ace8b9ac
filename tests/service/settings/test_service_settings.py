"""Settings of the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings.parsing import SettingsError
from service.settings.service import ServiceSettings, read_service_settings


def test_the_shipped_example_is_valid_and_hides_its_database() -> None:
    settings = read_service_settings(str(Path(__file__).parents[3] / "infra" / "service.yaml"), [])
    assert [place.prefix for place in settings.places] == ["s3://lab/slides", "s3://archive", "s3://lab/results"]
    assert "db.lab" not in repr(settings)


def test_the_default_database_is_a_file_in_the_storage_folder(tmp_path: Path) -> None:
    assert ServiceSettings(storage=str(tmp_path)).database_url == f"sqlite:///{tmp_path}/private/queue.db"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "storage is not set"),
        (["storage=s3://lab/x"], "database: is required"),
        (["storage=/x", "places=[{prefix: /x/private}]"], "places: /x/private is inside `storage`"),
        (["storage=/x", "places=[{prefix: /x}]"], "places: /x is inside `storage`"),
        (["storage=/x", "port=70000"], "port = 70000: must be 0 to 65535"),
        (["storage=/x", "silence_s=1"], "must be at least 3"),
        (["storage=/x", "max_running.train=-1"], r"max_running\.train = -1: must be 0 or more"),
        (["storage=/x", "colour=red"], "colour: unknown setting"),
        (["storage=/x", "places=[{prefx: /y}]"], r"places\.0\.prefx: unknown setting; did you mean places\.prefix\?"),
        (["storage=/x", "places=[{}]"], r"places\.0\.prefix: is required"),
    ],
)
def test_the_wrong_setting_is_named_in_the_error(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_service_settings(None, overrides)
