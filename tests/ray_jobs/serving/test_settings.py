"""The folder of `magnet serve`: ports, settings, secrets, and who may read them."""

from __future__ import annotations

import argparse
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from ray_jobs.serving.folder import find_own_token, make_temporary_folder, prepare_folder, read_or_create_secret
from ray_jobs.serving.parts import Part
from ray_jobs.serving.settings import describe_places, update_settings
from service.api.tokens import Tokens
from service.errors import UsageError
from service.operations.restore import lock_folder
from service.queue.tables import Database
from service.settings.service import ServiceSettings


def make_options(**values: object) -> argparse.Namespace:
    """Return options of the command line; those that are not given have their defaults."""
    return argparse.Namespace(**{"allow": [], "allow_write": [], "port": None, "set": []} | values)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "service"
    prepare_folder(folder)
    return folder


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ports_stay_the_same_over_restarts(storage: Path) -> None:
    """People keep links to MLflow's runs and Ray's jobs."""
    first = update_settings(storage, make_options(port=1234))
    second = update_settings(storage, make_options())
    assert (second.mlflow, second.ray, second.port) == (first.mlflow, first.ray, 1234)


def test_a_port_in_use_is_replaced_and_reported(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = update_settings(storage, make_options())
    with socket.socket() as other:
        port = urlsplit(str(first.mlflow)).port
        other.bind(("127.0.0.1", port))
        other.listen()
        second = update_settings(storage, make_options())
    assert second.mlflow != first.mlflow
    assert second.ray == first.ray
    assert f"port {port} of MLflow is in use" in capsys.readouterr().out


def test_edited_settings_stay_and_options_change_them(storage: Path, tmp_path: Path) -> None:
    update_settings(storage, make_options(allow=["s3://lab"]))
    file = storage / "service.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"max_queued_per_user": 7}))
    stored = update_settings(storage, make_options(set=["retry_first_s=2"]))
    assert (stored.max_queued_per_user, stored.retry_first_s) == (7, 2)
    assert [place.prefix for place in stored.places] == ["s3://lab"]
    changed = update_settings(storage, make_options(allow=[str(tmp_path / "a")]))
    assert [place.prefix for place in changed.places] == [str(tmp_path / "a")]
    assert changed.retry_first_s == 2


def test_invalid_settings_leave_the_stored_ones_unchanged(storage: Path) -> None:
    update_settings(storage, make_options())
    before = (storage / "service.yaml").read_text()
    with pytest.raises(UsageError, match="port"):
        update_settings(storage, make_options(set=["port=-1"]))
    assert (storage / "service.yaml").read_text() == before


def test_places_state_who_may_read_and_write(storage: Path, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    settings = update_settings(storage, make_options(allow=[a, b], allow_write=[b]))
    assert [(place.prefix, place.read, place.write) for place in settings.places] == [
        (b, ("*",), ("*",)),
        (a, ("*",), ()),
    ]
    assert describe_places(settings) == [f"{b}  (read: *; write: *)", f"{a}  (read: *; write: nobody)"]


@pytest.mark.parametrize("inside", [".", "private", "users/ada", "private/../private"])
@pytest.mark.parametrize("option", ["allow", "allow_write"])
def test_places_in_the_services_own_folder_are_refused(storage: Path, inside: str, option: str) -> None:
    with pytest.raises(UsageError, match="the service's own folder"):
        update_settings(storage, make_options(**{option: [str(storage / inside)]}))


def test_a_link_into_the_services_own_folder_is_refused(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(storage / "private")
    with pytest.raises(UsageError, match="the service's own folder"):
        update_settings(storage, make_options(allow=[str(tmp_path / "link")]))


def test_a_place_that_contains_secrets_causes_a_warning(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    update_settings(storage, make_options(allow=[str(home)]))
    assert f"warning: {home} contains {home}/.ssh" in capsys.readouterr().out


def test_settings_contain_no_secrets(storage: Path) -> None:
    for name in ("ray-token", "mlflow-token", "admin-token"):
        read_or_create_secret(storage / "private" / name)
    settings = update_settings(storage, make_options())
    text = (storage / "service.yaml").read_text()
    assert not [path for path in (storage / "private").glob("*-token") if path.read_text() in text]
    assert settings.ray_token_file == str(storage / "private" / "ray-token")
    with pytest.raises(UsageError, match="no passwords"):
        update_settings(storage, make_options(set=["database=postgresql://u:hunter2@db/magnet"]))
    assert "hunter2" not in (storage / "service.yaml").read_text()


def test_an_open_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    storage = tmp_path / "old"
    storage.mkdir(mode=0o755)
    for name in ("queue.db", "queue.db-wal", "ray-token"):
        (storage / name).write_text(name)
        (storage / name).chmod(0o644)
    private = prepare_folder(storage)
    assert (get_mode(storage), get_mode(private)) == (0o700, 0o700)
    for name in ("queue.db", "queue.db-wal", "ray-token"):
        assert not (storage / name).exists()
        assert get_mode(private / name) == 0o600
        assert (private / name).read_text() == name


def test_a_private_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    storage, elsewhere = tmp_path / "service", tmp_path / "elsewhere"
    storage.mkdir()
    elsewhere.mkdir()
    (storage / "private").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        prepare_folder(storage)


def test_only_one_service_at_a_time_uses_the_folder(storage: Path) -> None:
    with lock_folder(storage / "private"), pytest.raises(UsageError, match="in use"), lock_folder(storage / "private"):
        pass
    with lock_folder(storage / "private"):
        pass


def test_rays_folder_is_private_and_temporary(storage: Path) -> None:
    private = storage / "private"
    with make_temporary_folder(private) as folder:
        assert get_mode(folder.parent) == 0o700
        assert len(str(folder)) < 30  # the path of a socket may have 107 bytes
    assert not folder.parent.exists()


def test_the_folder_that_a_killed_service_left_is_removed(storage: Path) -> None:
    code = (
        "import os, pathlib, sys; from ray_jobs.serving.folder import make_temporary_folder\n"
        "with make_temporary_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    argv = [sys.executable, "-c", code, str(storage / "private")]
    old_folder = Path(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()).parent
    assert old_folder.is_dir()
    with make_temporary_folder(storage / "private"):
        assert not old_folder.exists()


def test_no_other_folder_is_removed(storage: Path, tmp_path: Path) -> None:
    (storage / "private" / "ray-folder").write_text(str(tmp_path))
    with make_temporary_folder(storage / "private"):
        assert tmp_path.is_dir()


def test_the_users_token_is_kept_while_it_is_valid(storage: Path) -> None:
    settings, file = ServiceSettings(storage=str(storage)), storage / "private" / "admin-token"
    first = find_own_token(settings, file)
    assert find_own_token(settings, file) == first
    assert get_mode(file) == 0o600
    database = Database(settings.database_url)
    Tokens(database).revoke(Tokens(database).identify(first).token_id)
    database.close()
    second = find_own_token(settings, file)
    assert second != first
    assert file.read_text() == second


def test_files_of_a_part_are_private_and_it_does_not_inherit_the_shells_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    code = "import os, sys; open(sys.argv[1], 'w').write(repr(sorted(os.environ)))"
    part = Part("x", [sys.executable, "-c", code, str(tmp_path / "file")], tmp_path / "log", {"OWN": "1"})
    part.start()
    assert part.process is not None
    assert part.process.wait(60) == 0
    names = (tmp_path / "file").read_text()
    assert "'OWN'" in names
    assert "RAY_ADDRESS" not in names
    assert "MLFLOW_TRACKING_TOKEN" not in names
    assert (get_mode(tmp_path / "file"), get_mode(tmp_path / "log")) == (0o600, 0o600)
