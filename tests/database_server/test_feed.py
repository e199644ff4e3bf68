"""The change feed: revisions become visible in order, nothing is missed, what is too old says so."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import Parts, at_once, record, uid

from radmesh.database_server.feed import Change, Feed
from radmesh.database_server.schema import MIGRATIONS, changes
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database


def take(feed: Feed, after: int, count: int, kinds: tuple[str, ...] = ()) -> list[Change]:
    """The next `count` changes."""
    active = [True]
    found: list[Change] = []
    for change in feed.watch(after, kinds, lambda: active[0]):
        found.append(change)
        if len(found) == count:
            break
    return found


def publish(feed: Feed, *keys: str, kind: str = "study") -> int:
    return feed.write(lambda _c: (None, [(kind, key) for key in keys]))[1]


def test_changes_come_in_order_and_of_the_kinds_asked_for(parts: Parts) -> None:
    publish(parts.feed, "a", "b")
    publish(parts.feed, "c", kind="job")
    publish(parts.feed, "d")
    assert [(c.revision, c.kind, c.key) for c in take(parts.feed, 0, 4)] == [
        (1, "study", "a"),
        (2, "study", "b"),
        (3, "job", "c"),
        (4, "study", "d"),
    ]
    assert [c.key for c in take(parts.feed, 2, 2)] == ["c", "d"]
    assert [c.key for c in take(parts.feed, 0, 1, ("job",))] == ["c"]
    assert parts.feed.revision() == 4


def test_everything_that_changes_is_told(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    parts.statuses.move(entry.study_instance_uid, "reading", 2, reason="", expected_version=0, actor="x")
    parts.hold(entry.study_instance_uid, entry.admission_key, 5, "NO_ORDER", "x")
    parts.statuses.correct(entry.study_instance_uid, {"PatientName": "X"}, source="u", expected_version=0, actor="x")
    parts.registry.update(
        [
            {
                "store_id": "archive-0",
                "study_hash": entry.study_hash,
                "generation": 1,
                "sequence": 1,
                "residence": 2,
                "defect": "",
                "removed": False,
            }
        ]
    )
    job = parts.jobs.enqueue("curate", "1.2", "", timedelta(), 0)
    parts.accounts.create("doe", "", 2, "a long password")
    study = uid("study", 0)
    assert [(c.kind, c.key) for c in take(parts.feed, 0, 8)] == [
        ("store", "archive-0"),
        ("instances", study),
        ("study", study),
        ("hold", study),
        ("correction", study),
        ("residence", study),
        ("job", str(job["id"])),
        ("user", "doe"),
    ]


def test_what_fails_takes_no_revision(parts: Parts) -> None:
    def work(_connection: sa.Connection) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parts.feed.write(work)
    assert publish(parts.feed, "a") == 1


def test_the_earlier_of_two_writers_commits_last(parts: Parts) -> None:
    """CORRECTNESS rule 17: whoever has seen a revision has seen every smaller one."""
    took, go = threading.Event(), threading.Event()
    seen: list[int] = []

    def slow(connection: sa.Connection) -> int:
        revision = parts.feed.publish(connection, [("study", "slow")])
        took.set()
        assert go.wait(60)
        return revision

    slow_one = threading.Thread(target=lambda: seen.append(parts.database.write(slow)))
    slow_one.start()
    assert took.wait(60)
    fast_one = threading.Thread(target=lambda: seen.append(publish(parts.feed, "fast")))
    fast_one.start()
    # The second cannot become visible before the first: it waits for the row of the feed (SQLite: for the writer).
    fast_one.join(0.3)
    assert fast_one.is_alive()
    assert parts.feed.revision() == 0
    go.set()
    slow_one.join(60)
    fast_one.join(60)
    assert seen == [1, 2]
    assert [c.key for c in take(parts.feed, 0, 2)] == ["slow", "fast"]


def test_a_watcher_misses_nothing_of_many_writers(parts: Parts) -> None:
    """Revisions are seen without a gap while writers commit side by side, each after a different time."""
    found: list[Change] = []
    watcher = threading.Thread(target=lambda: found.extend(take(parts.feed, 0, 100)))
    watcher.start()
    never = threading.Event()

    def work(number: int, turn: int, connection: sa.Connection) -> Any:
        connection.execute(sa.select(changes.c.revision).limit(1)).all()
        never.wait(0.001 * ((number + turn) % 4))
        return None, [("study", f"{number}.{turn}")]

    def writer(number: int) -> Any:
        def run() -> None:
            for turn in range(20):
                parts.feed.write(partial(work, number, turn))

        return run

    assert at_once(*(writer(number) for number in range(5))) == [None] * 5
    watcher.join(60)
    assert [c.revision for c in found] == list(range(1, 101))
    assert len({c.key for c in found}) == 100


def test_another_process_is_seen_by_polling(url: str) -> None:
    here, there = Database(url, MIGRATIONS), Database(url, MIGRATIONS)
    watching, writing = Parts(here), Parts(there)
    found: list[Change] = []
    watcher = threading.Thread(target=lambda: found.extend(take(watching.feed, 0, 1)))
    watcher.start()
    publish(writing.feed, "a")
    watcher.join(60)
    assert [c.key for c in found] == ["a"]
    here.close()
    there.close()


def test_what_is_older_than_kept_has_to_be_read_anew(database: Database) -> None:
    feed = Feed(database, ManualClock(), 1500)
    for _ in range(25):
        publish(feed, *("x" * 100))
    with database.read() as connection:
        kept = connection.execute(sa.select(sa.func.count()).select_from(changes)).scalar_one()
    assert 1500 <= kept <= 2500
    oldest = 2500 - kept
    with pytest.raises(RadmeshError) as error:
        take(feed, oldest - 1, 1)
    assert (error.value.reason, error.value.metadata["revision"]) == ("RESYNC", "2500")
    assert take(feed, oldest, 1)[0].revision == oldest + 1
    # 0 = from the oldest kept.
    assert take(feed, 0, 1)[0].revision == oldest + 1


def test_a_revision_of_another_database_has_to_be_read_anew(parts: Parts) -> None:
    """After a restore the revisions that watchers have seen are ahead."""
    publish(parts.feed, "a")
    with pytest.raises(RadmeshError) as error:
        take(parts.feed, 2, 1)
    assert error.value.reason == "RESYNC"


def test_watches_end_with_the_feed_and_with_the_caller(parts: Parts) -> None:
    def drain(active: Any) -> threading.Thread:
        def run() -> None:
            stream: Iterator[Change] = parts.feed.watch(0, (), active)
            assert list(stream) == []

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    gone = threading.Event()
    by_caller = drain(lambda: not gone.is_set())
    by_feed = drain(lambda: True)
    gone.set()
    by_caller.join(60)
    assert not by_caller.is_alive()
    parts.feed.stop()
    by_feed.join(60)
    assert not by_feed.is_alive()
