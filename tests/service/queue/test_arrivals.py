"""Watches and schedules: each version of a slide once, each due time once."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.cohort.manifest import load_manifest
from service.errors import UsageError
from service.queue import arrivals as module
from service.queue.arrivals import ADAPTER, Arrivals, Schedule, Watch
from service.queue.job_reader import Filter
from service.queue.job_rows import TooManyJobsError
from service.queue.requests import Check, from_json
from service.queue.store import JobStore
from service.queue.tables import Database, recurring
from service.settings.service import Place, Quota, ServiceSettings


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = Place(prefix=str(folder / "in")), Place(prefix="http://127.0.0.1:1/x")
        self.settings = ServiceSettings(
            storage=str(folder / "service"),
            places=places,
            arrivals_s=1e-6,
            min_interval_s=60,
            quotas={"eve": Quota(max_queued=1, max_recurring=2)},
        )
        self.store = JobStore(Database(self.settings.database_url))
        self.arrivals = Arrivals(self.store, self.settings)

    def scored(self) -> list[list[str]]:
        """The slides of each job, oldest job first."""
        jobs = reversed(self.store.page(Filter(kind="score")))
        manifests = [from_json(job.request).manifest for job in jobs]
        return [[s.slide_id for s in load_manifest(m, need_labels=False).slides] for m in manifests]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "in").mkdir()
    return Rig(tmp_path)


def test_each_version_of_a_slide_is_scored_once(rig: Rig) -> None:
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    rig.arrivals.tick()
    assert rig.scored() == []
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    (rig.folder / "in" / "notes.txt").write_bytes(b"no slide")
    rig.arrivals.tick()
    rig.arrivals.tick()
    (rig.folder / "in" / "b.svs").write_bytes(b"1")
    rig.arrivals.tick()
    (rig.folder / "in" / "a.svs").write_bytes(b"replaced")
    Arrivals(rig.store, rig.settings).tick()  # as after a restart
    assert rig.scored() == [["a"], ["b"], ["a"]]


def test_a_crash_after_submitting_submits_nothing_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    add = rig.store.add

    def dying(*arguments: Any, **options: Any) -> None:
        add(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(rig.store, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        rig.arrivals.tick()
    monkeypatch.undo()
    assert rig.scored() == [["a"]]
    (rig.folder / "in" / "b.svs").write_bytes(b"1")
    rig.arrivals.tick()
    rig.arrivals.tick()
    assert rig.scored() == [["a"], ["b"]]


def test_a_slide_that_still_changes_is_not_scored(rig: Rig) -> None:
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0.2), "ada")
    for data in (b"1", b"12", b"123"):
        (rig.folder / "in" / "a.svs").write_bytes(data)
        rig.arrivals.tick()
        time.sleep(0.11)
    assert rig.scored() == []
    time.sleep(0.2)
    rig.arrivals.tick()
    assert rig.scored() == [["a"]]


def test_a_folder_that_cannot_be_listed_is_noted_and_delays_no_other(rig: Rig) -> None:
    rig.arrivals.add(Watch(folder="http://127.0.0.1:1/x/", settle_s=0), "ada")
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    rig.arrivals.tick()
    assert rig.scored() == [["a"]]
    assert "cannot be listed" in (rig.arrivals.all()[0].note or "")


def test_a_schedule_submits_once_for_each_time_that_is_due(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_s = (time.time() // 60 + 1) * 60.0
    monkeypatch.setattr(module.time, "time", lambda: begin_s)
    rig.arrivals.add(Schedule(cron="* * * * *", job=Check(manifest="/m.csv")), "ada")
    for minutes in (0, 1.05, 1.2, 2.05):
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes: at_s)
        rig.arrivals.tick()
    monkeypatch.undo()
    assert len(rig.store.page(Filter())) == 2


@pytest.mark.parametrize(
    "cron", ["M H D MO * 0 2026", "0 0 30 2 *", "* * * * * *", "@daily", "0 0 * *", "R R * * *x", "61 * * * *"]
)
def test_an_expression_needs_five_fields_and_a_next_time(cron: str) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"what": "schedule", "cron": cron, "job": {"kind": "check", "manifest": "/m.csv"}})


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 2 * * *", "0 0 1 */3 *", "30 6 * * mon-fri"])
def test_common_expressions_are_accepted(cron: str) -> None:
    assert ADAPTER.validate_python({"what": "schedule", "cron": cron, "job": {"kind": "check", "manifest": "/m"}})


def test_times_that_are_too_close_are_refused_even_once_a_day(tmp_path: Path) -> None:
    settings = ServiceSettings(storage=str(tmp_path), min_interval_s=300)
    arrivals = Arrivals(JobStore(Database(settings.database_url)), settings)
    for cron in ("* * * * *", "0,4 3 * * *", "58,1 * * * *"):
        with pytest.raises(UsageError, match="s apart; this service allows one job in 300 s"):
            arrivals.add(Schedule(cron=cron, job=Check(manifest="/m.csv")), "ada")
    assert arrivals.add(Schedule(cron="*/5 * * * *", job=Check(manifest="/m.csv")), "ada")


def test_an_older_schedule_obeys_a_new_smallest_interval(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.arrivals.add(Schedule(cron="* * * * *", job=Check(manifest="/m.csv")), "ada")
    strict = Arrivals(rig.store, replace(rig.settings, min_interval_s=600))
    begin_s = rig.arrivals.all()[0].next_s
    for minutes in range(60):
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes + 0.4: at_s)
        strict.tick()
    monkeypatch.undo()
    assert len(rig.store.page(Filter(), limit=500)) == 6


def test_corrupt_rows_are_disabled_and_the_others_continue(rig: Rig) -> None:
    rig.arrivals.add(Schedule(cron="0 2 * * *", job=Check(manifest="/m.csv")), "ada")
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    seven_fields, no_json, good = rig.arrivals.all()
    bodies = {seven_fields.id: seven_fields.body.replace("0 2 * * *", "M H D MO * 0 2026"), no_json.id: "{"}
    with rig.store.database.writing() as connection:
        for entry_id, body in bodies.items():
            row = recurring.update().where(recurring.c.id == entry_id)
            connection.execute(row.values(body=body, next_s=0.0, note="kept"))
    rig.arrivals.tick()
    rig.arrivals.tick()
    assert rig.scored() == [["a"]]
    disabled = [rig.arrivals.entry(entry_id) for entry_id in bodies]
    assert [entry.note for entry in disabled] == ["kept", "kept"]
    assert "five" in (disabled[0].disabled or "")
    assert "JSONDecodeError" in (disabled[1].disabled or "")
    assert rig.arrivals.entry(good.id).disabled is None


def test_an_unexpected_error_disables_only_its_watch(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    for _ in range(2):
        rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    real, calls = module.list_slides, []

    def failing(folder: str) -> Any:
        calls.append(folder)
        if len(calls) == 1:
            raise KeyError("nobody expects this")
        return real(folder)

    monkeypatch.setattr(module, "list_slides", failing)
    rig.arrivals.tick()
    first, second = rig.arrivals.all()
    assert (first.disabled or "").startswith("KeyError: 'nobody expects this'")
    assert second.disabled is None
    assert rig.scored() == [["a"]]


def test_names_that_are_not_utf8_are_reported_and_other_slides_scored(rig: Rig) -> None:
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "ada")
    folder = os.fsencode(rig.folder / "in")
    Path(os.fsdecode(folder + b"/caf\xe9.svs")).write_bytes(b"1")
    os.mkdir(folder + b"/gr\xfc\xdfe")
    Path(os.fsdecode(folder + b"/gr\xfc\xdfe/b.svs")).write_bytes(b"1")
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    rig.arrivals.tick()
    [entry] = rig.arrivals.all()
    assert rig.scored() == [["a"]]
    assert entry.disabled is None
    assert "2 file names are not UTF-8: caf\\xe9.svs, gr\\xfc\\xdfe/b.svs; rename them" in (entry.note or "")


def test_a_user_has_as_many_watches_and_schedules_as_the_quota_allows(rig: Rig) -> None:
    for _ in range(2):
        rig.arrivals.add(Watch(folder=f"{rig.folder}/in/"), "eve")
    with pytest.raises(TooManyJobsError, match="2 watches and schedules"):
        rig.arrivals.add(Watch(folder=f"{rig.folder}/in/"), "eve")
    assert rig.arrivals.add(Watch(folder=f"{rig.folder}/in/"), "ada")


def test_a_schedule_over_its_users_quota_skips_a_time_and_continues(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.arrivals.add(Schedule(cron="*/2 * * * *", job=Check(manifest="/m.csv")), "eve")
    begin_s = rig.arrivals.all()[0].next_s
    notes = []
    for minutes in (0, 2, 4):
        if minutes == 4:
            rig.store.cancel(rig.store.page(Filter())[0].id)
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes: at_s)
        rig.arrivals.tick()
        monkeypatch.undo()
        notes.append((rig.arrivals.all()[0].note or "").split()[0])
    assert notes == ["submitted", "skipped:", "submitted"]


def test_a_watch_over_its_users_quota_keeps_its_slides_for_the_next_look(rig: Rig) -> None:
    waiting, _ = rig.store.add(Check(manifest="/m.csv"), "eve")
    rig.arrivals.add(Watch(folder=f"{rig.folder}/in/", settle_s=0), "eve")
    (rig.folder / "in" / "a.svs").write_bytes(b"1")
    rig.arrivals.tick()
    assert (rig.scored(), (rig.arrivals.all()[0].note or "")[:6]) == ([], "waits:")
    rig.store.cancel(waiting.id)
    rig.arrivals.tick()
    assert rig.scored() == [["a"]]
