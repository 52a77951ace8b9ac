"""Hostile names that try to reach files outside a user's rights: none succeeds, however it is used.

The observers are independent of the code under test: Python's audit events report every file that is opened, listed,
moved or removed, a web server records every request, the closed folders are compared before and after, and the results
are searched for a text that only the closed files contain.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from magnet.weights import read_state_dict
from service import storage
from service.cohort.folder import is_folder, list_slides
from service.cohort.manifest import check_slides, load_manifest
from service.cohort.outlines import read_outlines
from service.errors import MagnetError
from service.queue.allowed import join_result_file
from service.settings.train import read_train_settings
from service.slides.disk_cache import get_local_copy
from service.slides.reader import RegionReader
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, open_source
from service.storage.rights import Right, Rights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = b"what-only-the-closed-files-hold"
CHANGES = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2, "os.link": 2, "os.symlink": 2}
"""Events that change a folder, with the index of their first argument that is an open folder."""
EVENTS = ("open", "os.listdir", "os.scandir", *CHANGES)
NUM_EXAMPLES = int(os.environ.get("MAGNET_ATTACKS", "400"))


@dataclass
class Watcher:
    """Records every access to the closed folders while it is on."""

    closed: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    on: bool = False

    def record(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on or event not in EVENTS:
            return
        self.on = False  # resolving a name causes events too
        descriptors = arguments[CHANGES[event] :] if event in CHANGES else ()
        folders = [number for number in descriptors if isinstance(number, int) and number >= 0]
        try:
            for number, name in enumerate(arguments[:2]):
                if isinstance(name, str | bytes | os.PathLike):
                    path = os.fsdecode(name)
                    if folders:  # a name inside an open folder
                        path = f"{os.readlink(f'/proc/self/fd/{folders[number % len(folders)]}')}/{path}"
                    # Removing and renaming act on a link itself, opening acts on its target.
                    parent, base = os.path.split(path.rstrip("/"))
                    path = f"{os.path.realpath(parent)}/{base}" if event in CHANGES else os.path.realpath(path)
                    if any(path == folder or path.startswith(f"{folder}/") for folder in self.closed):
                        self.touched.append(f"{event} {path}")
        finally:
            self.on = True


WATCHER = Watcher()
sys.addaudithook(WATCHER.record)  # a hook cannot be removed before the process ends


@dataclass
class World:
    """``lab`` may be read, ``lab/out`` written; ``closed`` and ``lab/magnet`` are another user's."""

    folder: Path
    port: int
    requests: list[str]

    def fill(self) -> None:
        """Restore the files that an earlier name may have removed or replaced."""
        lab = self.folder / "lab"
        shutil.rmtree(lab / "out", ignore_errors=True)
        (lab / "out").mkdir()
        (lab / "out" / "y.csv").write_bytes(b"open to all")
        (lab / "out" / "back").symlink_to("../..")

    def closed_files(self) -> dict[str, str]:
        folders = (self.folder / "closed", self.folder / "lab" / "magnet")
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(os.path.realpath(name))
        for place in ("lab/out", "lab/magnet", "closed"):
            (folder / place).mkdir(parents=True)
        for place in ("closed/x.svs", "closed/m.csv", "closed/w.safetensors", "lab/magnet/x.svs"):
            (folder / place).write_bytes(SECRET)
        (folder / "closed" / "o.json").write_bytes(b'{"features": "' + SECRET + b'"}')
        (folder / "lab" / "x.svs").write_bytes(b"open to all")
        (folder / "lab" / "way").symlink_to(folder / "closed")
        (folder / "lab" / "one.svs").symlink_to(folder / "closed" / "x.svs")
        requests: list[str] = []
        server = serve(requests)
        rights = [
            Right(prefix=f"{folder}/lab", read=True),
            Right(prefix=f"{folder}/lab/magnet"),
            Right(prefix=f"{folder}/lab/out", read=True, write=True),
            Right(prefix=f"http://127.0.0.1:{server.server_port}/lab", read=True),
        ]
        patch.setenv("MAGNET_RIGHTS", Rights(rights).to_text())
        patch.setenv("MAGNET_STORAGE_DEADLINE_S", "0.2")
        patch.setenv("MAGNET_CACHE_DIR", f"{folder}/cache")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}/s3")
        patch.setenv("AWS_SKIP_SIGNATURE", "true")
        patch.chdir(folder / "lab")
        WATCHER.closed = [f"{folder}/closed", f"{folder}/lab/magnet"]
        yield World(folder, server.server_port, requests)
        WATCHER.closed = []
        server.shutdown()
        server.server_close()


def serve(requests: list[str]) -> ThreadingHTTPServer:
    """Serve secrets, and redirect some names in ``/lab`` to a place outside it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(302 if "way" in self.path else 404 if self.path.startswith("/lab") else 200)
            self.send_header("Location", "/closed/x.svs")
            self.end_headers()
            self.wfile.write(SECRET)

        do_HEAD = do_PUT = do_DELETE = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def read_rows(uri: str) -> object:
    """Check a manifest in the user's folder that lists the name as a slide."""
    manifest = f"{os.getcwd()}/out/m.csv"
    quoted = uri.replace('"', '""')
    Path(manifest).write_text(f'slide_id,uri\na,"{quoted}"\n', errors="surrogateescape")
    with RegionReader() as reader:
        return check_slides(load_manifest(manifest, need_labels=False), reader)


def read_folder(uri: str) -> object:
    return [storage.read_bytes(slide.uri) for slide in list_slides(uri)[0].slides] if is_folder(uri) else None


ACTIONS: dict[str, Callable[[str], object]] = {
    "read_bytes": storage.read_bytes,
    "stat": storage.stat,
    "exists": storage.exists,
    "list_uris": storage.list_uris,
    "ranges": lambda uri: (source := open_source(uri, OpenFiles())).read(0, min(source.size_bytes, 9), ReadCounters()),
    "copy": lambda uri: get_local_copy(open_source(uri, OpenFiles()), ReadCounters()).path,
    "slide": lambda uri: RegionReader().info(uri),
    "manifest": lambda uri: load_manifest(uri, need_labels=True),
    "rows": read_rows,
    "folder": read_folder,
    "outlines": read_outlines,
    "settings": read_train_settings,
    "weights": lambda uri: read_state_dict(uri, fetch=storage.read_bytes),
    "write_bytes": lambda uri: storage.write_bytes(uri, b"x"),
    "delete": storage.delete,
    "delete_all": storage.delete_all,
    "image": lambda uri: storage.read_bytes(join_result_file(f"{os.getcwd()}/out", uri)),
}

PARTS = st.sampled_from(
    (
        *("..", ".", "", "lab", "closed", "out", "way", "back", "magnet"),
        *("x.svs", "one.svs", "m.csv", "w.safetensors", "o.json"),
        *(
            "%2e%2e",
            "%252e%252e",
            "..%2f",
            "%2F",
            "..\\",
            "~",
            "*",
            "\0",
            "\n",
            " ",
            "?",
            "#",
            "@",
            ":",
            "\u2025",
            "\udcff",
        ),
    )
)
ROOTS = st.sampled_from(
    (
        *("{world}/lab", "{world}/lab/out", "{world}/closed", "{world}", "", "/", "//", "~", "../closed"),
        *("{world}/lab/../closed", "/proc/self/root{world}/closed", "/proc/self/cwd/.."),
        *("file://{world}/lab", "file://{world}/closed", "FILE://{world}/lab/way", "file://localhost{world}/closed"),
        *("file:{world}", "http://127.0.0.1:{port}/lab", "http://127.0.0.1:{port}/closed", "http://127.0.0.1:{port}"),
        *("http://127.0.0.1:{port}/lab/way", "http://localhost:{port}/lab", "http://x@127.0.0.1:{port}/lab"),
        *("HTTP://127.0.0.1:{port}/lab", "http://[::1]:{port}/lab", "s3://lab", "s3://lab/..", "s3://closed"),
        *("gs://lab", "az://lab"),
    )
)
NAMES = st.builds(
    lambda root, parts, end: "/".join([root, *parts]) + end,
    *(ROOTS, st.lists(PARTS, max_size=5), st.sampled_from(["", "/"])),
)


@pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS.keys())
@settings(
    max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
@given(name=NAMES)
@example(name="{world}/lab/way/x.svs")
@example(name="{world}/lab/one.svs")
@example(name="{world}/lab/out/back/closed/x.svs")
@example(name="file://{world}/lab/%2e%2e/closed/x.svs")
@example(name="{world}/lab/../closed/x.svs?../../lab/x.svs")
@example(name="http://127.0.0.1:{port}/lab/way/x.svs")
@example(name="http://127.0.0.1:{port}/lab/%2e%2e/closed/x.svs")
@example(name="{world}/lab/magnet/x.svs")
def test_no_name_gives_access_outside_the_rights(world: World, act: Callable[[str], object], name: str) -> None:
    uri = name.replace("{world}", str(world.folder)).replace("{port}", str(world.port))
    world.fill()
    before, world.requests[:], WATCHER.touched[:] = world.closed_files(), [], []
    WATCHER.on = True
    try:
        result = repr(act(uri))
    except (MagnetError, ValueError, OSError) as error:
        result = f"{error!r} {error}"
    finally:
        WATCHER.on = False
    assert WATCHER.touched == []
    assert world.closed_files() == before
    assert [path for path in world.requests if not path.startswith("/lab")] == []
    assert SECRET.decode() not in result


def test_the_watcher_detects_access_outside_the_rights(world: World) -> None:
    """Without rights the same names give access, and the observers detect it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MAGNET_RIGHTS")
        WATCHER.touched[:], world.requests[:], WATCHER.on = [], [], True
        try:
            assert storage.read_bytes(f"{world.folder}/lab/way/x.svs") == SECRET
            storage.list_uris(f"{world.folder}/lab/way")
            assert storage.read_bytes(f"http://127.0.0.1:{world.port}/lab/way") == SECRET
        finally:
            WATCHER.on = False
    assert {touch.split()[0] for touch in WATCHER.touched} >= {"open", "os.scandir"}
    assert world.requests == ["/lab/way", "/closed/x.svs"]
