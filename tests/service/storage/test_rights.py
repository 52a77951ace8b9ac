"""The places that a process with rights may access: its user's places and folder, by their resolved names."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import storage
from service.cohort.manifest import ManifestError, load_manifest
from service.errors import AccessError, UsageError
from service.queue.grants import groups_of, job_rights, user_rights
from service.settings.service import Place, ServiceSettings
from service.storage.rights import Right, Rights, parse_rights


def is_readable(place: str, *prefixes: str) -> bool:
    try:
        Rights(Right(prefix=prefix, read=True) for prefix in prefixes).require(place)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(
    ("place", "prefix", "allowed"),
    [
        ("s3://lab/a/x.svs", "s3://lab/a", True),
        ("s3://lab/a/x.svs", "s3://lab/a/", True),
        ("s3://lab/ab/x.svs", "s3://lab/a", False),
        ("s3://lab/a/../b.svs", "s3://lab/a", False),
        ("s3://lab/a/./b.svs", "s3://lab/a", False),
        ("gs://lab/a/x.svs", "s3://lab/a", False),
        ("s3://lab2/x", "s3://lab", False),
        ("/data/../etc/passwd", "/data", False),
        ("file:///data/%2e%2e/etc/passwd", "/data", False),
        ("file:///data/x", "/data", True),
        ("FILE:///data/x", "/data", True),
        ("/data-other/x", "/data", False),
        ("ftp://lab/x", "s3://lab", False),
        ("/data/x\0", "/data", False),
        ("https://lab.org/a/%2e%2e/b", "https://lab.org/a", False),
        ("https://lab.org@evil.org/a/x", "https://lab.org/a", False),
        ("https://lab.org:444/a/x", "https://lab.org/a", False),
        ("http://lab.org/a/x", "https://lab.org/a", False),
        ("http://[::1]:80/a/x", "http://[::1]:80/a", True),
    ],
)
def test_rights_apply_to_the_resolved_place(place: str, prefix: str, allowed: bool) -> None:
    assert is_readable(place, prefix) == allowed


def test_the_longest_prefix_decides_and_writing_is_a_separate_right() -> None:
    rights = Rights(
        [
            Right(prefix="s3://lab", read=True),
            Right(prefix="s3://lab/magnet"),
            Right(prefix="s3://lab/magnet/users/ada", read=True),
            Right(prefix="s3://lab/magnet/users/ada/jobs/1", write=True),
        ]
    )
    home = "s3://lab/magnet/users/ada"
    reads = {
        "s3://lab/x": True,
        "s3://lab/magnet/queue.db": False,
        f"{home}/m.csv": True,
        f"{home}/jobs/1/log": True,
    }
    writes = {
        "s3://lab/x": False,
        f"{home}/m.csv": False,
        f"{home}/jobs/1/log": True,
        f"{home}/jobs/2/log": False,
    }
    for places, write in ((reads, False), (writes, True)):
        for place, allowed in places.items():
            location = storage.rights.canonicalize(storage.uri.parse(place), follow_links=True)
            assert rights.allows(location, write=write) == allowed


def test_rights_are_passed_by_the_environment() -> None:
    rights = Rights([Right(prefix="s3://lab/a b", read=True), Right(prefix="/data", write=True)])
    assert parse_rights(rights.to_text()).rights == rights.rights
    with pytest.raises(UsageError, match="malformed"):
        parse_rights('{"prefix": 1')


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    places = (
        Place(prefix="s3://slides"),
        Place(prefix="s3://archive", read=("@pathology",), write=("bob",)),
        Place(prefix=str(tmp_path)),
    )
    groups = {"pathology": ("ada",)}
    return ServiceSettings(storage=str(tmp_path / "service"), places=places, groups=groups)


def test_no_user_may_read_another_users_folder(settings: ServiceSettings) -> None:
    ada, bob = (user_rights(settings, who, groups_of(settings, who)) for who in ("ada", "bob"))
    result = f"{settings.job_folder('ada', 'score-1')}/scores/scores.csv"
    ada.require(result)
    for place in (result, f"{settings.storage}/private/ray-token", f"{settings.storage}/users", settings.storage):
        with pytest.raises(AccessError):
            bob.require(place)


def test_groups_read_and_single_users_write(settings: ServiceSettings) -> None:
    ada, bob, eve = (user_rights(settings, who, groups_of(settings, who)) for who in ("ada", "bob", "eve"))
    for rights in (ada, bob, eve):
        rights.require("s3://slides/x.svs")
    ada.require("s3://archive/x.svs")
    bob.require("s3://archive/x.svs", write=True)
    for rights, write in ((ada, True), (eve, False)):
        with pytest.raises(AccessError):
            rights.require("s3://archive/x.svs", write=write)
    user_rights(settings, "eve", groups_of(settings, "eve", ["pathology"])).require("s3://archive/x.svs")


def test_a_job_writes_in_its_own_folders_only(settings: ServiceSettings) -> None:
    rights = job_rights(ServiceSettings(storage=settings.storage, mlflow="http://m"), "ada", [], "train-1")
    rights.require(f"{settings.job_folder('ada', 'train-1')}/attempts/1/beat.json", write=True)
    rights.require(f"{settings.runs('ada')}/train-1/checkpoint", write=True)
    for place in (
        settings.job_folder("ada", "train-2"),
        settings.user_folder("ada"),
        f"{settings.runs('ada')}/train-2",
    ):
        rights.require(place)
        with pytest.raises(AccessError):
            rights.require(place, write=True)


def test_places_with_credentials_are_closed_even_inside_a_readable_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAGNET_CACHE_DIR", str(tmp_path / "cache"))
    settings = ServiceSettings(
        storage=str(tmp_path / "service"),
        places=(Place(prefix=str(tmp_path)),),
        database=f"sqlite:///{tmp_path}/queue.db",
        ray_token_file=str(tmp_path / "keys" / "ray"),
        mlflow_token_file=str(tmp_path / "keys" / "mlflow"),
        tls_certificate=str(tmp_path / "keys" / "tls.crt"),
        tls_key=str(tmp_path / "keys" / "tls.pem"),
    )
    rights = user_rights(settings, "ada", [])
    rights.require(f"{tmp_path}/slides/x.svs")
    closed = (".aws/credentials", ".config/magnet/client.json", ".ray/auth_token", ".ssh/id_ed25519", ".pgpass")
    for name in (
        *closed,
        "keys/ray",
        "keys/mlflow",
        "keys/tls.pem",
        "queue.db",
        "queue.db-wal",
        "cache/slides/x/a.ndpi",
    ):
        with pytest.raises(AccessError):
            rights.require(f"{tmp_path}/{name}")


def test_a_manifest_of_a_job_names_only_allowed_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/etc")
    rows = "a,a.svs\nb,/etc/passwd\nc,http://169.254.169.254/x.svs\nd,link/passwd\n"
    (tmp_path / "m.csv").write_text(f"slide_id,uri\n{rows}")
    assert len(load_manifest(str(tmp_path / "m.csv"), need_labels=False).slides) == 4
    monkeypatch.setenv("MAGNET_RIGHTS", Rights([Right(prefix=str(tmp_path), read=True)]).to_text())
    with pytest.raises(ManifestError) as raised:
        load_manifest(str(tmp_path / "m.csv"), need_labels=False)
    assert [problem.row for problem in raised.value.problems] == [3, 4, 5]  # lines of the file


@pytest.mark.parametrize(
    "content", ["s3cr3t-token-of-the-cluster", "key: s3cr3t\nother: s3cr3t", "s3cr3t;s3cr3t\n1;2", "a\0s3cr3t"]
)
def test_the_content_of_a_file_that_is_not_a_manifest_is_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ManifestError) as raised:
        load_manifest(str(tmp_path / "token"), need_labels=True)
    assert "s3cr3t" not in str(raised.value)


def test_a_misspelt_column_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("Slide-ID,path\na,a.svs\n")
    with pytest.raises(ManifestError, match="'slide-id' looks like slide_id"):
        load_manifest(str(tmp_path / "m.csv"), need_labels=False)
