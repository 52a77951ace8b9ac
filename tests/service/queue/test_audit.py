"""The audit log: a chain of rows to which rows can only be appended."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.queue import audit
from service.queue.audit import Actor, ChainError
from service.queue.tables import Database
from tests.postgres import postgres

ADA = Actor(owner="ada", token_id="0123456789ab", address="192.0.2.1")
NUM_PROCESSES, NUM_EACH = 4, 15


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as running:
        yield running.url


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/queue.db")
    yield opened
    opened.close()


def append(database: Database, count: int, actor: Actor = ADA) -> None:
    for number in range(count):
        with database.writing() as connection:
            audit.append(connection, actor, "job.submit", f"check-{number}", detail="übung")


def append_from_a_process(url: str, name: str) -> None:
    database = Database(url)
    append(database, NUM_EACH, Actor(owner=name))
    database.close()


def check_two_processes_make_one_chain(url: str) -> None:
    database = Database(url)
    processes = [
        multiprocessing.get_context("spawn").Process(target=append_from_a_process, args=(url, f"user{k}"))
        for k in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    chain = list(audit.rows(database))
    assert len(chain) == NUM_PROCESSES * NUM_EACH
    assert {row.actor for row in chain} == {f"user{k}" for k in range(NUM_PROCESSES)}
    assert audit.verify(chain)[0] == len(chain)
    database.close()


@pytest.mark.slow
def test_processes_that_append_at_once_make_one_chain_in_sqlite(tmp_path: Path) -> None:
    check_two_processes_make_one_chain(f"sqlite:///{tmp_path}/queue.db")


@pytest.mark.slow
def test_processes_that_append_at_once_make_one_chain_in_postgres(server: str) -> None:
    check_two_processes_make_one_chain(server)


def test_a_chain_is_verified_and_its_export_too(database: Database, tmp_path: Path) -> None:
    append(database, 5)
    count, last = audit.verify(audit.rows(database))
    assert (count, last) == (5, audit.page(database)[-1].digest)
    export = tmp_path / "audit.jsonl"
    export.write_text("".join(f"{row.to_line()}\n" for row in audit.rows(database)))
    assert audit.verify(audit.read_export(str(export))) == (5, last)
    assert audit.verify(audit.rows(database, after=2), None) == (3, last)


def test_a_change_a_gap_or_another_order_breaks_the_chain(database: Database, tmp_path: Path) -> None:
    append(database, 5)
    good = list(audit.rows(database))
    broken = {
        "changed": [*good[:2], replace(good[2], actor="bob"), *good[3:]],
        "time changed": [*good[:2], replace(good[2], at_s=good[2].at_s + 1), *good[3:]],
        "removed": [*good[:2], *good[3:]],
        "first removed": good[1:],
        "doubled": [*good[:2], good[1], *good[2:]],
        "exchanged": [good[0], good[2], good[1], *good[3:]],
    }
    for rows in broken.values():
        with pytest.raises(ChainError, match=r"audit row \d"):
            audit.verify(rows)
    # A digest of the columns joined without a separator would not notice text that moves to the next column.
    with pytest.raises(ChainError):
        audit.verify([replace(good[0], actor="ad", token_id="a0123456789ab"), *good[1:]])


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'bob'", "DELETE FROM audit"])
def test_the_database_refuses_to_change_rows(database: Database, statement: str) -> None:
    append(database, 2)
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), database.writing() as connection:
        connection.execute(sa.text(statement))
    assert audit.verify(audit.rows(database))[0] == 2


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'bob'", "DELETE FROM audit", "TRUNCATE audit"])
@pytest.mark.slow
def test_postgres_refuses_to_change_rows(server: str, statement: str) -> None:
    database = Database(server)
    append(database, 1)
    count = len(list(audit.rows(database)))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.writing() as connection:
        connection.execute(sa.text(statement))
    assert audit.verify(audit.rows(database))[0] == count
    database.close()


def test_a_row_belongs_to_its_transaction(database: Database) -> None:
    def fail_after_appending() -> None:
        with database.writing() as connection:
            audit.append(connection, ADA, "job.submit", "x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_appending()
    assert audit.page(database) == []


def test_characters_that_a_database_cannot_hold_are_replaced(database: Database) -> None:
    with database.writing() as connection:
        audit.append(connection, replace(ADA, address="a" * 500), "x\0y\n", "\ud800" * 3, detail="z" * 5000)
    (row,) = audit.page(database)
    assert (row.action, row.object, len(row.address or ""), len(row.detail or "")) == ("x?y?", "???", 64, 2000)
    assert audit.verify([row])[0] == 1
    assert json.loads(row.to_line())["action"] == "x?y?"
