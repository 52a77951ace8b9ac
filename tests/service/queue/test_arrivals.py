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
from service.queue.job_rows import TooManyJobsError
from service.queue.requests import Check, from_json
from service.queue.store import Filter, JobStore
from service.queue.tables import Database, recurring
from service.settings.service import Place, Quota, ServiceSettings


class Own:
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
    for minutes in (0, 1.05, 1.2, 2.05):
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes: at_s)
        own.arrivals.tick()
    monkeypatch.undo()
    assert len(own.store.page(Filter())) == 2


@pytest.mark.parametrize(
    "cron", ["M H D MO * 0 2026", "0 0 30 2 *", "* * * * * *", "@daily", "0 0 * *", "R R * * *x", "61 * * * *"]
)
def test_an_expression_without_five_fields_or_without_times_is_refused(cron: str) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"what": "schedule", "cron": cron, "job": {"kind": "check", "manifest": "/m.csv"}})


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 2 * * *", "0 0 1 */3 *", "30 6 * * mon-fri"])
def test_ordinary_expressions_are_taken(cron: str) -> None:
    assert ADAPTER.validate_python({"what": "schedule", "cron": cron, "job": {"kind": "check", "manifest": "/m"}})


def test_times_that_are_too_close_are_refused_also_if_they_come_once_a_day(tmp_path: Path) -> None:
    settings = ServiceSettings(storage=str(tmp_path), min_interval_s=300)
    arrivals = Arrivals(JobStore(Database(settings.database_url)), settings)
    for cron in ("* * * * *", "0,4 3 * * *", "58,1 * * * *"):
        with pytest.raises(UsageError, match="s apart; this service allows one job in 300 s"):
            arrivals.add(Schedule(cron=cron, job=Check(manifest="/m.csv")), "ada")
    assert arrivals.add(Schedule(cron="*/5 * * * *", job=Check(manifest="/m.csv")), "ada")


def test_a_schedule_from_before_the_smallest_interval_keeps_to_it(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.arrivals.add(Schedule(cron="* * * * *", job=Check(manifest="/m.csv")), "ada")
    strict = Arrivals(own.store, replace(own.settings, min_interval_s=600))
    begin_s = own.arrivals.all()[0].next_s
    for minutes in range(60):
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes + 0.4: at_s)
        strict.tick()
    monkeypatch.undo()
    assert len(own.store.page(Filter(), limit=500)) == 6


def test_damaged_rows_disable_themselves_and_the_others_go_on(own: Own) -> None:
    own.arrivals.add(Schedule(cron="0 2 * * *", job=Check(manifest="/m.csv")), "ada")
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    seven_fields, no_json, good = own.arrivals.all()
    bodies = {seven_fields.id: seven_fields.body.replace("0 2 * * *", "M H D MO * 0 2026"), no_json.id: "{"}
    with own.store.database.writing() as connection:
        for entry_id, body in bodies.items():
            row = recurring.update().where(recurring.c.id == entry_id)
            connection.execute(row.values(body=body, next_s=0.0, note="kept"))
    own.arrivals.tick()
    own.arrivals.tick()
    assert own.scored() == [["a"]]
    disabled = [own.arrivals.entry(entry_id) for entry_id in bodies]
    assert [entry.note for entry in disabled] == ["kept", "kept"]
    assert "five" in (disabled[0].disabled or "")
    assert "JSONDecodeError" in (disabled[1].disabled or "")
    assert own.arrivals.entry(good.id).disabled is None


def test_an_unexpected_error_disables_one_watch_alone(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    for _ in range(2):
        own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    real, calls = module.slides_under, []

    def failing(folder: str) -> Any:
        calls.append(folder)
        if len(calls) == 1:
            raise KeyError("nobody expects this")
        return real(folder)

    monkeypatch.setattr(module, "slides_under", failing)
    own.arrivals.tick()
    first, second = own.arrivals.all()
    assert (first.disabled or "").startswith("KeyError: 'nobody expects this'")
    assert second.disabled is None
    assert own.scored() == [["a"]]


def test_names_that_are_not_utf8_are_named_and_nothing_else_is_lost(own: Own) -> None:
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "ada")
    folder = os.fsencode(own.folder / "in")
    Path(os.fsdecode(folder + b"/caf\xe9.svs")).write_bytes(b"1")
    os.mkdir(folder + b"/gr\xfc\xdfe")
    Path(os.fsdecode(folder + b"/gr\xfc\xdfe/b.svs")).write_bytes(b"1")
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    own.arrivals.tick()
    [entry] = own.arrivals.all()
    assert own.scored() == [["a"]]
    assert entry.disabled is None
    assert "2 file names are not UTF-8: caf\\xe9.svs, gr\\xfc\\xdfe/b.svs; rename them" in (entry.note or "")


def test_a_user_has_as_many_watches_and_schedules_as_the_quota_allows(own: Own) -> None:
    for _ in range(2):
        own.arrivals.add(Watch(folder=f"{own.folder}/in/"), "eve")
    with pytest.raises(TooManyJobsError, match="2 watches and schedules"):
        own.arrivals.add(Watch(folder=f"{own.folder}/in/"), "eve")
    assert own.arrivals.add(Watch(folder=f"{own.folder}/in/"), "ada")


def test_a_schedule_over_its_users_quota_skips_a_time_and_goes_on(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.arrivals.add(Schedule(cron="*/2 * * * *", job=Check(manifest="/m.csv")), "eve")
    begin_s = own.arrivals.all()[0].next_s
    notes = []
    for minutes in (0, 2, 4):
        if minutes == 4:
            own.store.cancel(own.store.page(Filter())[0].id)
        monkeypatch.setattr(module.time, "time", lambda at_s=begin_s + 60 * minutes: at_s)
        own.arrivals.tick()
        monkeypatch.undo()
        notes.append((own.arrivals.all()[0].note or "").split()[0])
    assert notes == ["submitted", "skipped:", "submitted"]


def test_a_watch_over_its_users_quota_keeps_its_slides_for_the_next_look(own: Own) -> None:
    waiting, _ = own.store.add(Check(manifest="/m.csv"), "eve")
    own.arrivals.add(Watch(folder=f"{own.folder}/in/", settle_s=0), "eve")
    (own.folder / "in" / "a.svs").write_bytes(b"1")
    own.arrivals.tick()
    assert (own.scored(), (own.arrivals.all()[0].note or "")[:6]) == ([], "waits:")
    own.store.cancel(waiting.id)
    own.arrivals.tick()
    assert own.scored() == [["a"]]
