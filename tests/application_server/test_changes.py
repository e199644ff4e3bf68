"""Who is told which studies changed: over a real feed of a real Database Server, that restarts, too."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from component_mesh import Components, Item, item
from database_support import HELD, uid
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server import changes as module
from radmesh.application_server.changes import StudyChanges, Watcher
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import key_message


class Site:
    """Database, archive, and what follows the feed."""

    def __init__(self, folder: Path) -> None:
        self.mesh = Components(folder)
        self.mesh.database()
        self.mesh.archive(client_bind="")
        context = self.mesh.context("application-server")
        self.queries = self.mesh.client("application-server", database_pb2, "QueryService", "database-server")
        self.studies = self.mesh.client("network-gateway", database_pb2, "StudyService", "database-server")
        self.changes = StudyChanges(context, self.queries)
        self.changes.start()
        wait_for(lambda: self.changes._revision != module._NOW)

    def store(self, *items: Item) -> None:
        self.mesh.send(*items)

    def hold(self, held: Item) -> None:
        request = database_pb2.SetVerificationRequest(
            admission_key=key_message(held.key),
            verification=HELD,
            reason="PATIENT_MISMATCH",  # type: ignore[arg-type]
        )
        self.studies.SetVerification(request)

    def close(self) -> None:
        self.changes.stop(2.0)
        self.mesh.close()


@pytest.fixture
def site() -> Iterator[Site]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    made = Site(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def told(watcher: Watcher, *studies: object) -> bool:
    """Wait until the watcher was told of all of these; others may be among them."""
    missing = {uid("study", study) for study in studies}
    wait_for(lambda: not missing.difference_update(watcher.take(0.1)) and not missing)
    return True


def stored(site: Site, it: Item) -> bool:
    try:
        site.store(it)
    except RadmeshError as error:
        assert error.transient
        return False  # the database, or the archive's word to it, is on its way
    return True


def test_everybody_is_told_of_what_can_be_seen(site: Site) -> None:
    with site.changes.watcher(reconcile=False) as eyes, site.changes.watcher(reconcile=True) as hands:
        assert site.changes.watching == 2
        site.store(item("a", 1), item("b", 1))
        assert told(eyes, "a", "b")
        assert told(hands, "a", "b")
    assert site.changes.watching == 0


def test_what_is_held_is_for_those_who_reconcile(site: Site) -> None:
    first, second = item("a", 1), item("b", 1)
    with site.changes.watcher(reconcile=False) as eyes, site.changes.watcher(reconcile=True) as hands:
        # Held before it was ever seen: who does not reconcile hears nothing of it.
        site.hold(first)
        site.store(first)
        assert told(hands, "a")
        site.store(second)
        seen: set[str] = set()
        wait_for(lambda: seen.update(eyes.take(0.1)) or uid("study", "b") in seen)
        assert uid("study", "a") not in seen
        # It was seen, and has gone: that is told, once.
        site.hold(second)
        assert told(eyes, "b")
        site.store(item("b", 2))
        assert told(hands, "b")
        site.store(item("c", 1))
        seen.clear()
        wait_for(lambda: seen.update(eyes.take(0.1)) or uid("study", "c") in seen)
        assert uid("study", "b") not in seen
        # A right that was gained counts from now on.
        eyes.reconcile = True
        site.store(item("b", 3))
        assert told(eyes, "b")


def test_a_database_that_restarts_is_followed_on(site: Site) -> None:
    with site.changes.watcher(reconcile=False) as eyes:
        site.store(item("a", 1))
        assert told(eyes, "a")
        site.mesh.kill("database-server")
        site.mesh.database()
        wait_for(lambda: stored(site, item("b", 1)))
        assert told(eyes, "b")


def test_a_feed_that_cannot_go_on_says_look_again(site: Site) -> None:
    with site.changes.watcher(reconcile=False) as eyes:

        def from_where_nothing_is() -> bool:
            # What is just coming in says again where the feed is: then it is cut once more.
            site.changes._revision = 1 << 40
            if site.changes._call is not None:
                site.changes._call.cancel()
            eyes.take(1.0)
            return False

        with pytest.raises(RadmeshError, match="RESYNC"):
            wait_for(from_where_nothing_is)
        with pytest.raises(RadmeshError, match="RESYNC"):
            eyes.take(0)
    with site.changes.watcher(reconcile=False) as eyes:
        site.store(item("a", 1))
        assert told(eyes, "a")


def test_who_is_too_slow_has_to_look_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_MAX", 2)
    with site.changes.watcher(reconcile=False) as slow:
        slow.tell({"1.1": True, "1.2": True})
        assert slow.take(0) == ["1.1", "1.2"]
        slow.tell({"1.1": True, "1.2": True, "1.3": False})
        with pytest.raises(RadmeshError, match="RESYNC"):
            slow.take(0)


def test_more_changes_than_can_be_remembered_are_lost_with_a_word(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_MAX", 2)
    with site.changes.watcher(reconcile=False) as eyes:
        for number in range(3):
            site.changes._note(f"1.{number}")
        with pytest.raises(RadmeshError, match="RESYNC"):
            eyes.take(5)


def test_what_was_seen_is_remembered_within_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEEN_MAX", 1)
    with site.changes.watcher(reconcile=False) as eyes:
        site.store(item("a", 1))
        assert told(eyes, "a")
        site.store(item("b", 1))
        assert told(eyes, "b")
        assert list(site.changes._seen) == [uid("study", "b")]


def test_the_end_wakes_who_waits(site: Site) -> None:
    failures: list[str] = []

    def wait() -> Any:
        with site.changes.watcher(reconcile=False) as watcher:
            try:
                watcher.take(60)
            except RadmeshError as error:
                failures.append(error.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: site.changes.watching == 1)
    site.changes.stop(2.0)
    thread.join(60)
    assert failures == ["RESYNC"]
