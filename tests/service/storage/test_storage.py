"""Whole objects and ranges: files, and an object store over HTTP with all its faults."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from service import storage
from service.errors import AccessError, NotFoundError, SlideChangedError, SlideError, StorageError, UsageError
from service.storage import stores
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, open_source
from service.storage.uri import Location, parse
from service.testing.fake_store import HttpStore

DATA = bytes(range(256)) * 64


@pytest.fixture
def other_clouds(store: HttpStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make ``gs://bucket`` and ``az://bucket`` refer to the same store."""
    account = {"gcs_base_url": store.endpoint, "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", store.endpoint)
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    stores.forget_stores()


@pytest.mark.usefixtures("other_clouds")
@pytest.mark.parametrize("scheme", ["file", "plain", "s3", "gs"])
def test_objects_are_written_listed_read_and_deleted(store: HttpStore, tmp_path: Path, scheme: str) -> None:
    folders = {"file": f"file://{tmp_path}/files", "plain": f"{tmp_path}/files"}
    root = folders.get(scheme, f"{scheme}://bucket/cohort")
    uris = [storage.join(root, name) for name in ("a b#c.csv", "deep/d\u00e9.png")]
    for uri in uris:
        storage.write_bytes(uri, DATA)
    assert sorted(storage.list_uris(root)) == sorted(uris)
    assert [storage.read_bytes(uri) for uri in uris] == [DATA, DATA]
    assert storage.stat(uris[0])[0] == len(DATA)
    storage.delete(uris[0])
    storage.delete(uris[0])
    assert [storage.exists(uri) for uri in uris] == [False, True]
    with pytest.raises(NotFoundError, match="a b#c"):
        storage.read_bytes(uris[0])
    storage.delete_all(root)
    storage.delete_all(root)
    assert storage.list_uris(root) == []


@pytest.mark.usefixtures("other_clouds")
def test_azure_is_read_written_and_listed() -> None:
    """Deleting is not tested: it uses batch requests, which the fake store does not support."""
    storage.write_bytes("az://bucket/cohort/a b.svs", DATA)
    assert storage.list_uris("az://bucket/cohort") == ["az://bucket/cohort/a b.svs"]
    assert storage.stat("az://bucket/cohort/a b.svs")[0] == len(DATA)
    assert open_source("az://bucket/cohort/a b.svs", OpenFiles()).read(100, 50, ReadCounters()) == DATA[100:150]
    assert not storage.exists("az://bucket/cohort/b.svs")


def test_a_web_server_is_read_but_neither_written_nor_listed(store: HttpStore) -> None:
    (store.folder / "x y.svs").write_bytes(DATA)
    assert storage.read_bytes(store.url("x%20y.svs")) == DATA
    with pytest.raises(UsageError, match="cannot write"):
        storage.write_bytes(store.url("z"), DATA)
    with pytest.raises(UsageError, match="cannot be listed"):
        storage.list_uris(store.url(""))


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "table.csv"
    storage.write_bytes(str(place), b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(str(place), b"new")
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("base", "relative", "joined"),
    [
        ("s3://bucket/cohort", "slides/1.svs", "s3://bucket/cohort/slides/1.svs"),
        ("s3://bucket", "1.svs", "s3://bucket/1.svs"),
        ("s3://bucket/a/b", "../1.svs", "s3://bucket/a/1.svs"),
        ("/data/cohort", "./1.svs", "/data/cohort/1.svs"),
        ("s3://bucket/cohort", "gs://other/1.svs", "gs://other/1.svs"),
        ("s3://bucket/cohort", "/mnt/1.svs", "/mnt/1.svs"),
    ],
)
def test_relative_names_are_joined_to_their_folder(base: str, relative: str, joined: str) -> None:
    assert storage.join(base, relative) == joined


def test_uris_are_parsed() -> None:
    assert parse("s3://bucket/a/b c.svs") == Location("s3", "bucket", "a/b c.svs")
    assert parse("file:///data/b%20c.svs") == Location("file", "", "/data/b c.svs")
    assert storage.parent("s3://bucket/a/x.svs") == "s3://bucket/a"
    assert storage.name("s3://bucket/a/x.svs") == "x.svs"
    for wrong in ("ftp://host/x", "s3:///x", "https://host/x?X-Amz-Signature=1"):
        with pytest.raises(UsageError):
            parse(wrong)
    with pytest.raises(UsageError, match="out of the store"):
        storage.join("s3://bucket/a", "../../x")


@pytest.mark.parametrize("fault", ["500", "503", "reset", "short", "403", "expired"])
def test_a_read_succeeds_after_two_faults_in_a_row(store: HttpStore, fault: str) -> None:
    (store.folder / "x").write_bytes(DATA)
    source = open_source("s3://bucket/x", OpenFiles())
    store.faults.extend([fault] if fault in ("403", "expired") else [fault, fault])
    assert source.read(100, 5000, ReadCounters()) == DATA[100:5100]
    assert not store.faults


def test_reads_from_a_failing_store_end_at_the_deadline(store: HttpStore) -> None:
    (store.folder / "x").write_bytes(DATA)
    source = open_source("s3://bucket/x", OpenFiles(), deadline_s=0.6)
    store.faults.extend(["503"] * 1000)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"bucket/x: the store failed: .*503.*gave up after \d+ attempts in 0.6 s"):
        source.read(0, 10, ReadCounters())
    assert time.monotonic() - began < 1.5


def test_denied_credentials_fail_without_further_retries(store: HttpStore) -> None:
    (store.folder / "x").write_bytes(DATA)
    store.faults.extend(["403"] * 10)
    with pytest.raises(AccessError, match="check credentials"):
        storage.read_bytes("s3://bucket/x")
    assert len(store.gets()) == 2  # one more try with fresh credentials, then none


def test_public_buckets_need_no_credentials(store: HttpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.folder / "x").write_bytes(DATA)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert storage.read_bytes("s3://bucket/x") == DATA


def test_the_endpoint_of_an_aws_profile_is_used(
    store: HttpStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (store.folder / "x").write_bytes(DATA)
    config = tmp_path / "config"
    config.write_text(f"[profile lab]\nregion = eu-central-1\nendpoint_url = {store.endpoint}\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert storage.read_bytes("s3://bucket/x") == DATA


def test_a_bucket_may_be_part_of_the_host_name(store: HttpStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store acts as the proxy that resolves the host; a bucket in the path would become a folder there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, store.endpoint)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    store.bucket = ""
    storage.write_bytes("s3://slides/a.svs", DATA)
    assert (store.folder / "a.svs").read_bytes() == DATA
    assert storage.read_bytes("s3://slides/a.svs") == DATA
    assert storage.list_uris("s3://slides") == ["s3://slides/a.svs"]


@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_replaced_object_is_detected(store: HttpStore, place: str) -> None:
    path = store.folder / "x"
    path.write_bytes(DATA)
    source = open_source(str(path) if place == "file" else "s3://bucket/x", OpenFiles())
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(SlideChangedError, match="replaced"):
        source.read(0, 10, ReadCounters())


def test_ranges_outside_the_file_are_refused_without_a_request(store: HttpStore) -> None:
    (store.folder / "x").write_bytes(DATA)
    source = open_source("s3://bucket/x", OpenFiles())
    for offset, length in ((len(DATA) - 5, 6), (-1, 5), (1 << 60, 1), (0, -1)):
        with pytest.raises(SlideError, match="truncated or damaged"):
            source.read(offset, length, ReadCounters())
    assert not store.gets()


def test_the_number_of_open_files_is_limited(tmp_path: Path) -> None:
    files = OpenFiles(max_files=3)
    for n in range(20):
        (tmp_path / str(n)).write_bytes(DATA)
        open_source(str(tmp_path / str(n)), files).read(0, 1, ReadCounters())
    held = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert sum(place.parent == tmp_path for place in held) == 3
    files.close()


def test_reads_are_counted(store: HttpStore) -> None:
    (store.folder / "x").write_bytes(DATA)
    counters = ReadCounters()
    source = open_source("s3://bucket/x", OpenFiles())
    source.read(0, 10, counters)
    source.read(50, 100, counters)
    assert (counters.requests, counters.bytes) == (2, 110)
    assert counters.wait_s > 0
