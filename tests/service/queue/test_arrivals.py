"""Watches and schedules: each version of a slide once, each due time once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from service.manifest import load_manifest
from service.queue import arrivals as module
from service.queue.arrivals import Arrivals, Schedule, Watch
from service.queue.requests import Check, from_json
from service.queue.store import Filter, JobStore
from service.queue.tables import Database
from service.service_settings import Place, ServiceSettings


class Own:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = Place(prefix=str(folder / "in")), Place(prefix="http://127.0.0.1:1/x")
        self.settings = ServiceSettings(storage=str(folder / "service"), places=places, arrivals_s=1e-6)
        self.store = JobStore(Database(self.settings.database_url))
        self.arrivals = Arrivals(self.store, self.settings)

    def scored(self) -> list[list[str]]:
        """The slides of each job, oldest job first."""
        jobs = reversed(self.store.page(Filter(kind="score")))
        manifests = [from_json(job.request).manifest for job in jobs]
        return [[s.slide_id for s in load_manifest(m, need_labels=False).slides] for m in manifests]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    (tmp_path / "in").mkdir()
    return Own(tmp_path)


def test_each_version_of_a_slide_is_scored_once(own: Own) -> None:
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    own.arrivals.tick()
    assert own.scored() == []
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    (own.folder / "in" / "notes.txt").write_bytes(b"no slide")
    own.arrivals.tick()
    own.arrivals.tick()
    (own.folder / "in" / "b.svs").write_bytes(b"1")
    own.arrivals.tick()
    (own.folder / "in" / "a.svs").write_bytes(b"replaced")
    Arrivals(own.store, own.settings).tick()  # also after a restart
    assert own.scored() == [["a"], ["b"], ["a"]]


def test_a_crash_after_submitting_submits_nothing_twice(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    add = own.store.add

    def dying(*arguments: Any, **options: Any) -> None:
        add(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(own.store, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        own.arrivals.tick()
    monkeypatch.undo()
    assert own.scored() == [["a"]]
    (own.folder / "in" / "b.svs").write_bytes(b"1")
    own.arrivals.tick()
    own.arrivals.tick()
    assert own.scored() == [["a"], ["b"]]


def test_a_slide_that_still_changes_is_left_alone(own: Own) -> None:
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0.2), "ada")
    for data in (b"1", b"12", b"123"):
        (own.folder / "in" / "a.svs").write_bytes(data)
        own.arrivals.tick()
        time.sleep(0.11)
    assert own.scored() == []
    time.sleep(0.2)
    own.arrivals.tick()
    assert own.scored() == [["a"]]


def test_a_folder_that_cannot_be_listed_is_noted_and_holds_up_no_other(own: Own) -> None:
    own.arrivals.add(Watch(folder="http://127.0.0.1:1/x/", settle_s=0), "ada")
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    own.arrivals.tick()
    assert own.scored() == [["a"]]
    assert "cannot be listed" in (own.arrivals.all()[0].note or "")


def test_a_schedule_submits_once_for_each_time_that_is_due(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_s = (time.time() // 60 + 1) * 60.0
    monkeypatch.setattr(module.time, "time", lambda: begin_s)
    own.arrivals.add(Schedule(cron="* * * * *", job=Check(manifest="/m.csv")), "ada")
    for minutes in (0, 1.1, 1.2, 2.3):
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes: at_s)
        own.arrivals.tick()
    monkeypatch.undo()
    assert len(own.store.page(Filter())) == 2
