"""The schema, durable commits, retries, and what the driver's errors become."""

import sqlite3
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import Parts, at_once, meeting, record
from postgres_support import Postgres

from radmesh.database_server.schema import MIGRATIONS, audit, changes, instances, stores, studies
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database


def test_a_second_start_changes_nothing(url: str) -> None:
    first = Database(url, MIGRATIONS)
    Parts(first).register(record())
    first.close()
    second = Database(url, MIGRATIONS)
    assert [row["instance_count"] for row in Parts(second).rows(studies)] == [1]
    second.close()


def test_two_starts_at_once_on_an_empty_database(postgres: Postgres) -> None:
    url = postgres.create()
    answers = at_once(lambda: Database(url, MIGRATIONS), lambda: Database(url, MIGRATIONS))
    for answer in answers:
        assert isinstance(answer, Database), answer
        assert Parts(answer).feed.revision() == 0
        answer.close()
    postgres.drop(url)


def test_commits_are_durable(database: Database) -> None:
    with database.read() as connection:
        if database.sqlite:
            values = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
            assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(RadmeshError) as error:
        database.write(
            lambda c: c.execute(sa.insert(studies).values(study_instance_uid="1.2", patient=4711, version=1))
        )
    assert error.value.reason == "INTERNAL"


def _execute(statement: Any, connection: sa.Connection) -> None:
    connection.execute(statement)


def test_the_audit_table_takes_no_change(database: Database) -> None:
    database.write(lambda c: c.execute(sa.insert(audit).values(action="SIGN_IN")))
    for statement in (sa.update(audit).values(actor="nobody"), sa.delete(audit)):
        with pytest.raises(RadmeshError):
            database.write(partial(_execute, statement))
    with database.read() as connection:
        assert connection.execute(sa.select(audit.c.actor)).scalars().all() == [""]


def test_what_work_raises_leaves_no_trace(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(sa.insert(changes).values(revision=1, kind="x"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write(work)
    with database.read() as connection:
        assert connection.execute(sa.select(changes)).all() == []


def test_a_reader_sees_one_state(database: Database) -> None:
    def add(connection: sa.Connection) -> None:
        connection.execute(sa.insert(changes).values(revision=1, kind="x"))

    count = sa.select(sa.func.count()).select_from(changes)
    with database.read() as connection:
        assert connection.execute(count).scalar() == 0
        database.write(add)
        assert connection.execute(count).scalar() == 0
    with database.read() as connection:
        assert connection.execute(count).scalar() == 1


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    inside, done = threading.Event(), threading.Event()

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.insert(changes).values(revision=1, kind="x"))
        inside.set()
        assert done.wait(60)

    writer = threading.Thread(target=database.write, args=(work,))
    writer.start()
    assert inside.wait(60)
    with database.read() as connection:
        assert connection.execute(sa.select(changes)).all() == []
    done.set()
    writer.join(60)


def test_a_deadlock_is_tried_again(database: Database) -> None:
    for store in ("a", "b"):
        Parts(database).beat(store)

    def work(order: str) -> Any:
        def run(connection: sa.Connection) -> None:
            for store in order:
                connection.execute(
                    sa.update(stores).where(stores.c.store_id == store).values(unregistered=stores.c.unregistered + 1)
                )

        return lambda: database.write(run)

    with meeting(database, "UPDATE stores", seconds=0.5):
        assert at_once(work("ab"), work("ba")) == [None, None]
    assert [row["unregistered"] for row in Parts(database).rows(stores)] == [2, 2]


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/radmesh.sqlite", MIGRATIONS)
    parts = Parts(database)
    parts.register(record(sop=0))
    pages: list[int] = []

    def limit(connection: Any, _record: Any) -> None:
        if not pages:
            pages.append(connection.execute("PRAGMA page_count").fetchone()[0])
        connection.execute(f"PRAGMA max_page_count = {pages[0]}")

    database.engine.dispose()
    sa.event.listen(database.engine, "connect", limit)
    filled = 0

    def fill() -> None:
        nonlocal filled
        for sop in range(1, 2000):
            parts.register(record(sop=sop))
            filled = sop

    with pytest.raises(RadmeshError) as error:
        fill()
    assert error.value.reason == "DATABASE_UNAVAILABLE"
    assert error.value.transient
    assert parts.study()["instance_count"] == filled + 1
    sa.event.remove(database.engine, "connect", limit)
    database.engine.dispose()
    parts.register(record(sop=filled + 1))
    assert parts.study()["instance_count"] == filled + 2
    database.close()


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(RadmeshError) as error:
        Database(f"sqlite:///{tmp_path}/none/radmesh.sqlite", MIGRATIONS)
    assert error.value.reason == "DATABASE_UNAVAILABLE"
    with pytest.raises(RadmeshError) as error:
        Database(f"postgresql+psycopg://postgres@/x?host={tmp_path}", MIGRATIONS)
    assert error.value.reason == "DATABASE_UNAVAILABLE"


def test_a_backup_of_a_database_in_use(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/radmesh.sqlite", MIGRATIONS)
    parts = Parts(database)
    parts.register(*(record(sop=sop) for sop in range(50)))
    stop = threading.Event()

    def busy() -> None:
        sop = 50
        while not stop.is_set():
            parts.register(record(sop=sop))
            sop += 1

    writer = threading.Thread(target=busy)
    writer.start()
    database.backup(tmp_path / "copy.sqlite")
    stop.set()
    writer.join(60)
    database.close()
    with sqlite3.connect(tmp_path / "copy.sqlite") as check:
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()
    copy = Database(f"sqlite:///{tmp_path}/copy.sqlite", MIGRATIONS)
    restored = Parts(copy)
    assert restored.study()["instance_count"] == len(restored.rows(instances)) >= 50
    restored.register(record(study=1, sop="after"))
    copy.close()


def test_too_many_readers_at_once_are_told_to_come_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = database.engine.pool
    monkeypatch.setattr(pool, "_timeout", 0.1)
    with ExitStack() as held:

        def hold_many() -> None:
            for _ in range(200):
                held.enter_context(database.read()).execute(sa.select(1))

        with pytest.raises(RadmeshError) as error:
            hold_many()
        assert error.value.reason == "DATABASE_UNAVAILABLE"
        assert error.value.transient
    with database.read() as connection:
        assert connection.execute(sa.select(1)).scalar() == 1
