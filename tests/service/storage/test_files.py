"""Local files of a process with rights: no link, pipe or race gives access to others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import openslide
import pytest
from PIL import Image

from service import storage
from service.cohort.folder import list_slides
from service.errors import AccessError, MagnetError, SlideChangedError, UnsupportedSlideError, UsageError
from service.slides.disk_cache import find_companions, get_local_copy
from service.slides.reader import RegionReader
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, open_source
from service.storage.rights import Right, Rights, apply_rights, current_rights

SECRET = b"secret of another user"


@pytest.fixture
def allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that may be read and written, next to one that may not."""
    for name in ("allowed", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.svs").write_bytes(SECRET)
    rights = Rights([Right(prefix=str(tmp_path / "allowed"), read=True, write=True)])
    monkeypatch.setenv("MAGNET_RIGHTS", rights.to_text())
    return tmp_path / "allowed"


def swap_before_open(monkeypatch: pytest.MonkeyPatch, victim: Path, target: Path) -> None:
    """Replace `victim` by a link between the check of a name and its opening."""
    real = os.open

    def swap_and_open(path: str, *arguments: object, **options: object) -> int:
        if not victim.is_symlink() and str(path).startswith(str(victim)):
            victim.rename(victim.with_name("moved"))
            victim.symlink_to(target)
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swap_and_open)


READS: dict[str, Callable[[str], object]] = {
    "read_bytes": storage.read_bytes,
    "stat": storage.stat,
    "ranges": lambda uri: open_source(uri, OpenFiles()).read(0, 4, ReadCounters()),
    "list": lambda uri: storage.list_uris(uri.rpartition("/")[0]),
    "slides_under": lambda uri: list_slides(uri.rpartition("/")[0]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_linked_folder_outside_the_rights_is_refused(allowed: Path, read: Callable[[str], object]) -> None:
    (allowed / "link").symlink_to(allowed.parent / "closed")
    with pytest.raises(AccessError, match="lies outside"):
        read(f"{allowed}/link/x.svs")
    read(f"{allowed}/x.svs")


def test_only_links_that_lead_outside_are_refused_in_a_folder_of_slides(allowed: Path) -> None:
    (allowed / "out.svs").symlink_to(allowed.parent / "closed" / "x.svs")
    (allowed / "in.svs").symlink_to(allowed / "x.svs")
    (allowed / "folder").symlink_to(allowed.parent / "closed")
    slides = list_slides(str(allowed))[0].slides
    assert [slide.slide_id for slide in slides] == ["in", "out", "x"]
    assert storage.read_bytes(slides[0].uri) == SECRET
    with pytest.raises(AccessError):
        storage.read_bytes(slides[1].uri)
    with RegionReader() as reader, pytest.raises(AccessError):
        reader.info(slides[1].uri)


def test_a_file_replaced_by_a_link_while_it_is_opened_is_not_read(
    allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_before_open(monkeypatch, allowed / "x.svs", allowed.parent / "closed" / "x.svs")
    with pytest.raises(MagnetError):
        storage.read_bytes(f"{allowed}/x.svs")


def test_a_folder_replaced_by_a_link_while_a_file_is_opened_is_not_read(
    allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (allowed / "deep").mkdir()
    (allowed / "deep" / "x.svs").write_bytes(b"own")
    swap_before_open(monkeypatch, allowed / "deep", allowed.parent / "closed")
    with pytest.raises(AccessError):
        storage.read_bytes(f"{allowed}/deep/x.svs")


def test_ranges_of_a_replaced_file_are_not_read(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"{allowed}/x.svs", OpenFiles())
    swap_before_open(monkeypatch, allowed / "x.svs", allowed.parent / "closed" / "x.svs")
    with pytest.raises((AccessError, SlideChangedError, MagnetError)):
        source.read(0, 4, ReadCounters())


def test_nothing_is_written_through_a_folder_replaced_by_a_link(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (allowed / "out").mkdir()
    swap_before_open(monkeypatch, allowed / "out", allowed.parent / "closed")
    with pytest.raises(MagnetError):
        storage.write_bytes(f"{allowed}/out/scores.csv", b"x")
    assert [path.name for path in (allowed.parent / "closed").iterdir()] == ["x.svs"]


@pytest.mark.parametrize("act", [lambda uri: storage.write_bytes(uri, b"x"), storage.delete, storage.delete_all])
def test_nothing_outside_is_written_or_deleted(allowed: Path, act: Callable[[str], None]) -> None:
    closed = allowed.parent / "closed"
    (allowed / "link").symlink_to(closed)
    for place in (f"{closed}/x.svs", f"{allowed}/../closed/x.svs", f"{allowed}/link/x.svs", f"{allowed}/link"):
        with pytest.raises(AccessError, match="may write"):
            act(place)
    assert (closed / "x.svs").read_bytes() == SECRET


def test_a_pipe_is_refused_without_waiting(allowed: Path) -> None:
    os.mkfifo(allowed / "m.csv")
    with pytest.raises(UsageError, match="pipe or device"):
        storage.read_bytes(f"{allowed}/m.csv")


def test_a_file_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(bytes(11))
    with pytest.raises(UsageError, match="has 11 bytes, more than the limit of 10"):
        storage.read_bytes(str(tmp_path / "m.csv"), most_bytes=10)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ("x.vms", "ImageFile=../closed/x.jpg"),
        ("x.vms", "MapFile=/etc/x.jpg"),
        ("x.vmu", "ImageFile=..\\closed\\x"),
        ("x.ndpi", "ImageFile=../closed/x.jpg"),  # OpenSlide recognises such a file by its content
        ("x.tif", "ImageFile(1,0)=../closed/x.jpg"),
        ("x/Slidedat.ini", "FILE_0 = ../../closed/Data.dat"),
        ("x/Slidedat.ini", "INDEXFILE = /etc/Index.dat"),
    ],
)
def test_an_index_file_that_names_files_elsewhere_is_refused(tmp_path: Path, index: str, line: str) -> None:
    """OpenSlide joins such names to the slide's folder and opens the result."""
    path = tmp_path / index
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[Virtual Microscope Specimen]\n{line}\nDATE = 01/02/2026\n")
    slide = tmp_path / "x.mrxs" if index.endswith(".ini") else path
    slide.touch()
    with pytest.raises(UnsupportedSlideError, match="outside the slide's folder"):
        find_companions(open_source(str(slide), OpenFiles()), ReadCounters())


def test_an_index_file_under_another_suffix_cannot_make_openslide_read_elsewhere(allowed: Path) -> None:
    for name in ("x", "map"):
        Image.new("RGB", (64, 64)).save(allowed.parent / "closed" / f"{name}.jpg", restart_marker_blocks=1)
    index = "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
    (allowed / "evil.ndpi").write_text(f"{index}ImageFile=../closed/x.jpg\nMapFile=../closed/map.jpg\n")
    assert openslide.OpenSlide(str(allowed / "evil.ndpi")).dimensions == (64, 64)  # without our check
    with RegionReader() as reader, pytest.raises(UnsupportedSlideError, match="outside the slide's folder"):
        reader.info(f"{allowed}/evil.ndpi")


def test_a_dicom_file_under_another_suffix_is_copied_because_openslide_reads_its_whole_folder(
    allowed: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNET_CACHE_DIR", str(allowed.parent / "cache"))
    shutil.copy(test_data / "slides" / "lymph-node-jpeg.dcm", allowed / "d.tif")
    copy = get_local_copy(open_source(f"{allowed}/d.tif", OpenFiles()), ReadCounters())
    assert copy.path.startswith(f"{allowed.parent}/cache/")


def test_reading_on_behalf_of_a_user_respects_the_users_rights(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API reads results in this way: its process has no rights that would limit it."""
    rights = current_rights()
    assert rights is not None
    monkeypatch.delenv("MAGNET_RIGHTS")
    (allowed / "deep").mkdir()
    (allowed / "deep" / "x.svs").write_bytes(b"own")
    with apply_rights(rights):
        assert storage.read_bytes(f"{allowed}/deep/x.svs") == b"own"
        swap_before_open(monkeypatch, allowed / "deep", allowed.parent / "closed")
        with pytest.raises(AccessError):
            storage.read_bytes(f"{allowed}/deep/x.svs")
    assert storage.read_bytes(f"{allowed}/deep/x.svs") == SECRET  # the rights no longer apply


def test_a_slide_of_several_files_is_refused_if_one_is_outside_the_rights(
    allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNET_CACHE_DIR", str(allowed.parent / "cache"))
    (allowed / "x").mkdir()
    (allowed / "x.mrxs").write_bytes(b"JPEG")
    (allowed / "x" / "Data0000.dat").symlink_to(allowed.parent / "closed" / "x.svs")
    source = open_source(f"{allowed}/x.mrxs", OpenFiles())
    with pytest.raises(AccessError):
        get_local_copy(source, ReadCounters())


def test_openslide_reads_the_descriptor_that_was_checked(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = test_data / "slides" / "fluorescence-dapi.ndpi"
    with RegionReader() as reader:
        expected = reader.info(str(slide))
    monkeypatch.setenv("MAGNET_RIGHTS", Rights([Right(prefix=str(test_data), read=True)]).to_text())
    with RegionReader() as reader:
        assert reader.info(str(slide)) == expected
