"""Renditions: what web caches have, what of it counts, and what is still to be made."""

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import (
    ALL,
    ANYBODY,
    HELD,
    JPEG,
    WEB_CACHE,
    Parts,
    at_once,
    meeting,
    plans,
    record,
    uid,
)

from radmesh.database_server.queries import StudyFilter
from radmesh.database_server.registry import Record
from radmesh.database_server.renditions import Rendition, recount
from radmesh.database_server.schema import changes, curated, instances, placements, renditions
from radmesh.runtime.errors import RadmeshError

CODED, PASSED, ORIGINAL, NONE = 1, 2, 3, 4
HTJ2K = "1.2.840.10008.1.2.4.202"


def made(entry: Record, store_id: str = "curator-0", **more: Any) -> Rendition:
    """A rendition of the content of a record."""
    given: dict[str, Any] = {
        "state": CODED,
        "number_of_frames": 1,
        "served_syntax_uid": HTJ2K,
        "photometric_interpretation": "MONOCHROME2",
        "bytes": 100,
        **more,
    }
    return Rendition(store_id, entry.sop_instance_uid, entry.transfer_syntax_uid, entry.sha256, **given)


def curate(parts: Parts, *entries: Record, store_id: str = "curator-0", **more: Any) -> None:
    """Let a web cache that lives register renditions."""
    parts.beat(store_id, WEB_CACHE)
    parts.renditions.register([made(entry, store_id, **more) for entry in entries])


def find(parts: Parts, study: object = 0, size: int = 2, **wanted: Any) -> list[dict[str, Any]]:
    """The renditions of a study, page by page."""
    options = {"viewer": ALL, **wanted}
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        rows, token = parts.renditions.find(uid("study", study), size=size, token=token, **options)
        assert len(rows) <= size
        found += rows
        if not token:
            return found


def uncurated(parts: Parts, size: int = 100) -> list[str]:
    """The studies that want pictures, page by page."""
    found: list[str] = []
    token = ""
    while True:
        uids, token = parts.renditions.uncurated(size, token)
        assert len(uids) <= size
        found += uids
        if not token:
            return found


def events(parts: Parts) -> list[str]:
    """The studies that the feed says have other renditions."""
    return [row["key"] for row in parts.rows(changes) if row["kind"] == "rendition"]


def exact(parts: Parts, caches: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (current instances, those that any of the caches has) of each study, counted one by one."""
    rows = parts.rows(instances)
    has = {row["instance"] for row in parts.rows(renditions) if row["store_id"] in caches}
    uids = {row["id"]: row["study_instance_uid"] for row in parts.queries.studies(StudyFilter(viewer=ALL), 1000, "")[0]}
    return {
        name: (
            sum(row["current"] for row in rows if row["study"] == key),
            sum(row["current"] and row["id"] in has for row in rows if row["study"] == key),
        )
        for key, name in uids.items()
    }


# -- registering


def test_what_is_registered_is_found_and_counted(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(3)]
    parts.register(*entries)
    assert uncurated(parts) == [uid("study", 0)]
    assert parts.study()["curated_count"] == 0
    curate(parts, *entries[:2])
    assert (parts.study()["curated_count"], uncurated(parts)) == (2, [uid("study", 0)])
    curate(parts, entries[2], state=ORIGINAL, reason="BITS_STORED", frame=1, derived=True)
    assert (parts.study()["curated_count"], uncurated(parts)) == (3, [])
    rows = find(parts)
    assert [row["sop_instance_uid"] for row in rows] == [entry.sop_instance_uid for entry in entries]
    expected = {
        "store_id": "curator-0",
        "target": "unix:/curator-0",
        "state": ORIGINAL,
        "reason": "BITS_STORED",
        "frame": 1,
        "number_of_frames": 1,
        "served_syntax_uid": HTJ2K,
        "photometric_interpretation": "MONOCHROME2",
        "derived": True,
        "bytes": 100,
        "series_instance_uid": entries[2].series_instance_uid,
        "transfer_syntax_uid": entries[2].transfer_syntax_uid,
        "sha256": entries[2].sha256,
    }
    assert {key: rows[2][key] for key in expected} == expected
    assert find(parts, sop_instance_uid=entries[1].sop_instance_uid) == rows[1:2]
    assert find(parts, series_instance_uid=entries[1].series_instance_uid) == rows
    assert find(parts, series_instance_uid="1.2.3") == []


def test_the_same_twice_changes_nothing_and_tells_nobody(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(3)]
    parts.register(*entries)
    curate(parts, *entries)
    before = [parts.rows(table) for table in (renditions, curated, changes)]
    curate(parts, *entries)
    parts.renditions.register([made(entries[0])] * 3)
    assert [parts.rows(table) for table in (renditions, curated, changes)] == before
    assert events(parts) == [uid("study", 0)]
    parts.renditions.register([])
    # What is made again replaces what was there, and somebody may want to look at it.
    curate(parts, entries[1], state=NONE, reason="PIXEL_DATA_SHORT", frame=7)
    assert [(row["state"], row["frame"]) for row in find(parts)] == [(CODED, 0), (NONE, 7), (CODED, 0)]
    assert parts.study()["curated_count"] == 3
    assert events(parts) == [uid("study", 0)] * 2


def test_content_that_nobody_knows_is_left_out(parts: Parts) -> None:
    parts.register(record(sop=0))
    curate(parts, record(sop=0, content="another"), record(sop=1))
    curate(parts, record(sop=0, changes={"transfer_syntax_uid": JPEG}))
    assert [parts.rows(renditions), parts.rows(curated), events(parts)] == [[], [], []]


def test_only_a_web_cache_that_is_known_registers_and_it_registers_its_own(parts: Parts) -> None:
    entry = record(sop=0)
    parts.register(entry)

    def refused(*batch: Rendition) -> str:
        with pytest.raises(RadmeshError) as error:
            parts.renditions.register(batch)
        return error.value.reason

    assert refused(made(entry)) == "STORE_UNKNOWN"
    assert refused(made(entry, "archive-0")) == "FIELD_INVALID"
    parts.beat("curator-0", WEB_CACHE)
    parts.beat("curator-1", WEB_CACHE)
    assert refused(made(entry), made(entry, "curator-1")) == "FIELD_INVALID"
    assert parts.rows(renditions) == []


def test_a_web_cache_takes_no_studies_and_holds_no_objects(parts: Parts) -> None:
    parts.beat("curator-0", WEB_CACHE)
    with pytest.raises(RadmeshError) as error:
        parts.placement.place(uid("study", 0))
    assert error.value.reason == "NO_ARCHIVE"
    parts.beat("archive-0", free=1)
    assert parts.placement.place(uid("study", 0))["store_id"] == "archive-0"
    assert [row["store_id"] for row in parts.rows(placements)] == ["archive-0"]
    with pytest.raises(RadmeshError) as error:
        parts.registry.register([record(sop=0, store_id="curator-0")])
    assert error.value.reason == "FIELD_INVALID"
    assert parts.rows(instances) == []


# -- other content under the same UID


def test_a_variant_needs_no_pictures(parts: Parts) -> None:
    first, variant = record(sop=0), record(sop=0, content="other", sequence=2)
    parts.register(first, variant)
    curate(parts, variant)
    # It is known, and harmless: it answers for no current instance.
    assert (parts.study()["curated_count"], find(parts), uncurated(parts)) == (0, [], [uid("study", 0)])
    curate(parts, first)
    assert (parts.study()["curated_count"], len(find(parts)), uncurated(parts)) == (1, 1, [])


def test_another_content_that_becomes_current_is_uncurated(parts: Parts) -> None:
    first, variant = record(sop=0), record(sop=0, content="other", sequence=2)
    parts.register(first, variant)
    curate(parts, first)
    assert uncurated(parts) == []
    with parts.database.engine.begin() as c:
        c.execute(sa.update(instances).values(current=sa.not_(instances.c.current)))
        recount(c, [row["study"] for row in parts.rows(curated)])
    assert (parts.study()["curated_count"], find(parts), uncurated(parts)) == (0, [], [uid("study", 0)])
    curate(parts, variant)
    assert [row["sha256"] for row in find(parts)] == [variant.sha256]
    assert (parts.study()["curated_count"], uncurated(parts)) == (1, [])


def test_a_database_that_was_built_again_takes_the_content_it_has(parts: Parts) -> None:
    """Of a study whose variant was told first this time, the pictures of the other content do not count."""
    first, variant = record(sop=0), record(sop=0, content="other", sequence=2)
    parts.register(variant, first)
    curate(parts, first)
    assert (parts.study()["curated_count"], uncurated(parts)) == (0, [uid("study", 0)])


def test_a_study_of_which_nothing_is_current_wants_nothing(parts: Parts) -> None:
    parts.register(record(study=0, sop=1))
    parts.register(record(study=1, sop=1, content="other"))
    assert uncurated(parts) == [uid("study", 0)]


def test_an_instance_that_is_gone_takes_its_renditions_along(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(2)]
    parts.register(*entries)
    curate(parts, *entries)
    study = parts.study()["id"]
    with parts.database.engine.begin() as c:
        for table in ("locations", "instances"):
            column = "instance" if table == "locations" else "id"
            gone = sa.select(instances.c.id).where(instances.c.sop_instance_uid == uid("sop", 1))
            c.execute(sa.text(f"DELETE FROM {table} WHERE {column} = {c.execute(gone).scalar_one()}"))
        recount(c, [study])
    assert [row["sop_instance_uid"] for row in find(parts)] == [uid("sop", 0)]
    assert [row["instance_count"] for row in parts.rows(curated)] == [1, 1]


def test_a_copy_that_leaves_the_spool_leaves_the_pictures(parts: Parts) -> None:
    spooled, stored = record(sop=0, store_id="spool-0"), record(sop=0)
    parts.register(spooled)
    curate(parts, spooled)
    parts.register(stored)
    place = {name: getattr(spooled, name) for name in ("store_id", "study_hash", "generation", "sequence")}
    parts.registry.update([{**place, "residence": 0, "defect": "", "removed": True}])
    assert (parts.study()["curated_count"], len(find(parts)), uncurated(parts)) == (1, 1, [])


# -- who lives


def test_a_web_cache_that_is_silent_does_not_count(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(2)]
    parts.register(*entries)
    curate(parts, *entries)
    parts.advance(3)
    assert (parts.study()["curated_count"], uncurated(parts)) == (2, [])
    parts.advance(0.1)
    assert (parts.study()["curated_count"], uncurated(parts)) == (0, [uid("study", 0)])
    assert [row["target"] for row in find(parts)] == ["", ""]
    # Another makes them meanwhile: its own are found first.
    curate(parts, *entries, store_id="curator-1")
    assert (parts.study()["curated_count"], uncurated(parts)) == (2, [])
    assert [(row["store_id"], row["target"]) for row in find(parts, size=1)] == [
        ("curator-1", "unix:/curator-1"),
        ("curator-0", ""),
    ] * 2
    parts.beat("curator-0", WEB_CACHE)
    assert parts.study()["curated_count"] == 2
    assert [row["store_id"] for row in find(parts)] == ["curator-0", "curator-1"] * 2


def test_a_store_of_another_kind_never_counts(parts: Parts) -> None:
    entry = record(sop=0)
    parts.register(entry)
    curate(parts, entry)
    parts.beat("curator-0")
    assert (parts.study()["curated_count"], uncurated(parts)) == (0, [uid("study", 0)])


def test_what_several_web_caches_have_parts_of_is_counted_once(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(5)]
    parts.register(*entries)
    curate(parts, *entries[:3])
    curate(parts, *entries[2:4], store_id="curator-1")
    assert (parts.study()["curated_count"], uncurated(parts)) == (4, [uid("study", 0)])
    curate(parts, *entries[3:], store_id="curator-1")
    assert (parts.study()["curated_count"], uncurated(parts)) == (5, [])
    parts.advance(2)
    parts.beat("curator-1", WEB_CACHE)
    parts.advance(2)
    assert (parts.study()["curated_count"], uncurated(parts)) == (3, [uid("study", 0)])


def test_parts_in_several_caches_while_another_is_silent_are_counted_one_by_one(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(6)]
    parts.register(*entries)
    curate(parts, *entries[:3], store_id="curator-2")
    parts.advance(4)
    curate(parts, *entries[1:4])
    curate(parts, *entries[3:5], store_id="curator-1")
    assert (parts.study()["curated_count"], uncurated(parts)) == (4, [uid("study", 0)])
    curate(parts, entries[0], entries[5], store_id="curator-1")
    assert (parts.study()["curated_count"], uncurated(parts)) == (6, [])
    assert [row["instance_count"] for row in parts.rows(curated)] == [6, 3, 4, 3]


# -- who sees what


def test_held_studies_are_curated_and_found_only_where_they_are_asked_for(parts: Parts) -> None:
    entry = record(sop=0)
    parts.register(entry)
    parts.decide(entry, HELD, "NO_ORDER")
    assert uncurated(parts) == [uid("study", 0)]
    curate(parts, entry)
    assert uncurated(parts) == []
    assert len(find(parts)) == 1
    with pytest.raises(RadmeshError) as error:
        find(parts, viewer=ANYBODY)
    assert error.value.reason == "STUDY_NOT_FOUND"


def test_held_instances_of_a_study_are_neither_found_nor_counted(parts: Parts) -> None:
    free, held = record(sop=0), [record(sop=sop, PatientID="other") for sop in (1, 2)]
    parts.register(free, *held)
    parts.decide(held[0], HELD, "PATIENT_MISMATCH")
    curate(parts, *held)
    assert (parts.study(viewer=ALL)["curated_count"], len(find(parts))) == (2, 2)
    assert (parts.study(viewer=ANYBODY)["curated_count"], find(parts, viewer=ANYBODY)) == (0, [])
    curate(parts, free)
    seen = parts.study(viewer=ANYBODY)
    assert (seen["instance_count"], seen["curated_count"]) == (1, 1)
    assert [row["sop_instance_uid"] for row in find(parts, viewer=ANYBODY)] == [free.sop_instance_uid]
    parts.advance(4)
    assert parts.study(viewer=ANYBODY)["curated_count"] == 0


def test_a_study_that_is_not_there(parts: Parts) -> None:
    with pytest.raises(RadmeshError) as error:
        find(parts)
    assert error.value.reason == "STUDY_NOT_FOUND"


# -- forgetting


def test_what_is_dropped_is_forgotten(parts: Parts) -> None:
    entries = [record(study=study, sop=(study, sop)) for study in range(3) for sop in range(2)]
    parts.register(*entries)
    curate(parts, *entries)
    curate(parts, *entries, store_id="curator-1")
    told = len(events(parts))
    assert parts.renditions.drop("curator-0", uid("study", 1)) == 2
    assert parts.renditions.drop("curator-0", uid("study", 1)) == 0
    assert parts.renditions.drop("curator-0", "1.2.3") == parts.renditions.drop("nobody") == 0
    assert events(parts)[told:] == [uid("study", 1)]
    assert {row["store_id"] for row in find(parts, 1)} == {"curator-1"}
    assert parts.study(1)["curated_count"] == 2
    assert parts.renditions.drop("curator-1") == 6
    assert (parts.study(1)["curated_count"], uncurated(parts)) == (0, [uid("study", 1)])
    assert sorted(events(parts)[told + 1 :]) == sorted(uid("study", study) for study in range(3))
    curate(parts, *entries[2:4])
    assert uncurated(parts) == []


def test_all_is_dropped_however_much_it_is(parts: Parts) -> None:
    entries = [record(study=study, sop=(study, 0)) for study in range(70)]
    parts.register(*entries)
    curate(parts, *entries)
    curate(parts, entries[0], store_id="curator-1")
    assert parts.renditions.drop("curator-0") == 70
    assert [row["store_id"] for row in parts.rows(renditions)] == ["curator-1"]
    assert len(uncurated(parts)) == 69


def test_what_a_web_cache_had_that_is_silent_for_a_day_is_forgotten(parts: Parts) -> None:
    entries = [record(study=study, sop=(study, 0)) for study in range(40)]
    parts.register(*entries)
    curate(parts, *entries)
    curate(parts, *entries, store_id="curator-1")
    parts.advance(23 * 3600)
    parts.beat("curator-1", WEB_CACHE)
    assert not parts.renditions.prune()
    parts.advance(3601)
    # A database that has just come back hears nobody at first.
    again = Parts(parts.database, parts.clock)
    assert not again.renditions.prune()
    assert len(parts.rows(renditions)) == 80
    assert [parts.renditions.prune() for _ in range(3)] == [True, True, False]
    assert {row["store_id"] for row in parts.rows(renditions)} == {"curator-1"}
    assert {row["store_id"] for row in parts.rows(curated)} == {"", "curator-1"}
    assert [store["store_id"] for store in parts.registry.stores()] == ["archive-0", "curator-0", "curator-1"]
    # One that comes back after all is like any other.
    curate(parts, *entries)
    assert len(parts.rows(renditions)) == 80
    assert uncurated(parts) == []


# -- at the same time


def test_two_that_register_the_same_study_at_once_are_both_counted(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(20)]
    parts.register(*entries)
    parts.beat("curator-0", WEB_CACHE)
    parts.beat("curator-1", WEB_CACHE)
    halves = [("curator-0", entries[:10]), ("curator-0", entries[10:]), ("curator-1", entries[5:15])]
    with meeting(parts.database, "INSERT INTO renditions", parties=2):
        answers = at_once(
            *(
                lambda store=store, some=some: parts.renditions.register([made(entry, store) for entry in some])
                for store, some in halves
            )
        )
    assert answers == [None] * 3
    assert [(row["store_id"], row["instance_count"]) for row in parts.rows(curated)] == [
        ("", 20),
        ("curator-0", 20),
        ("curator-1", 10),
    ]
    assert (parts.study()["curated_count"], len(find(parts, size=7))) == (20, 30)


def test_registering_and_dropping_at_once_leaves_true_counts(parts: Parts) -> None:
    entries = [record(study=study, sop=(study, sop)) for study in range(3) for sop in range(4)]
    parts.register(*entries)
    caches = ("curator-0", "curator-1", "curator-2")
    for cache in caches:
        parts.beat(cache, WEB_CACHE)

    def one_by_one() -> None:
        for entry in entries:
            parts.renditions.register([made(entry)])

    def all_at_once() -> None:
        for number in range(6):
            parts.renditions.register([made(entry, caches[number % 3]) for entry in reversed(entries[number:])])

    def drop() -> None:
        for number in range(12):
            parts.renditions.drop(caches[number % 2], uid("study", number % 3) if number % 4 else "")

    assert at_once(one_by_one, all_at_once, drop) == [None] * 3
    # Whoever is silent then, what is shown is what there is.
    for living in (caches, caches[:2], caches[1:], caches[1:2]):
        parts.advance(4)
        for cache in living:
            parts.beat(cache, WEB_CACHE)
        counted = exact(parts, living)
        shown = {name: parts.queries.study(name, ALL)["curated_count"] for name in counted}
        assert shown == {name: has for name, (_, has) in counted.items()}
        assert set(uncurated(parts)) == {name for name, (every, has) in counted.items() if has < every}


def test_images_that_come_while_a_study_is_registered_are_uncurated(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(10)]
    parts.register(*entries[:5])
    parts.beat("curator-0", WEB_CACHE)
    with meeting(parts.database, "INSERT INTO renditions", parties=1):
        answers = at_once(
            lambda: parts.renditions.register([made(entry) for entry in entries]),
            lambda: parts.register(*entries[5:]),
        )
    assert answers[0] is None
    (total, has), *_ = exact(parts, ["curator-0"]).values()
    assert total == 10
    assert (parts.study()["curated_count"], uncurated(parts)) == (has, [uid("study", 0)] if has < total else [])


# -- pages


def test_uncurated_studies_come_oldest_first_page_by_page(parts: Parts) -> None:
    entries = [
        record(study=study, sop=(study, sop), changes={"receive_time": 1_000 - study // 2})
        for study in range(24)
        for sop in range(2)
    ]
    parts.register(*entries)
    for study in range(0, 24, 3):
        curate(parts, *entries[2 * study : 2 * study + 2])
    for study in range(1, 24, 3):
        # In parts: these are made too, and counted one by one.
        curate(parts, entries[2 * study])
        curate(parts, entries[2 * study + 1], store_id="curator-1")
    order = sorted(range(2, 24, 3), key=lambda study: (1_000 - study // 2, study))
    for size in (1, 2, 3, 8, 100):
        assert uncurated(parts, size) == [uid("study", study) for study in order]
    with pytest.raises(RadmeshError) as error:
        parts.renditions.uncurated(10, "bm90aGluZw==")
    assert error.value.reason == "FIELD_INVALID"


def test_renditions_come_by_series_and_number_whatever_falls_silent_meanwhile(parts: Parts) -> None:
    entries = [record(sop=sop, series=sop % 2) for sop in range(12)]
    parts.register(*entries)
    curate(parts, *entries)
    curate(parts, *entries, store_id="curator-1")
    series = sorted({entry.series_instance_uid for entry in entries})
    expected = [
        (one, entry.sop_instance_uid, store)
        for one in series
        for entry in entries
        if entry.series_instance_uid == one
        for store in ("curator-0", "curator-1")
    ]
    keys = ("series_instance_uid", "sop_instance_uid", "store_id")
    for size in (1, 5, 24, 100):
        assert [tuple(row[key] for key in keys) for row in find(parts, size=size)] == expected
    rows, token = parts.renditions.find(uid("study", 0), viewer=ALL, size=5, token="")
    parts.advance(2)
    parts.beat("curator-1", WEB_CACHE)
    parts.advance(2)
    more, token = parts.renditions.find(uid("study", 0), viewer=ALL, size=100, token=token)
    assert token == ""
    assert [tuple(row[key] for key in keys) for row in rows + more] == expected
    assert {row["target"] for row in more if row["store_id"] == "curator-0"} == {""}
    _, token = parts.renditions.find(uid("study", 0), viewer=ALL, size=5, token="")
    with pytest.raises(RadmeshError) as error:
        parts.renditions.find(uid("study", 0), viewer=ANYBODY, size=5, token=token)
    assert error.value.reason == "FIELD_INVALID"


# -- large


def test_lists_and_sweeps_use_the_counts_and_never_look_through_all_instances(parts: Parts) -> None:
    entries = [record(study=study, sop=(study, 0)) for study in range(200)]
    for start in range(0, 200, 50):
        parts.register(*entries[start : start + 50])
    curate(parts, *entries)
    with parts.database.engine.begin() as c:
        c.exec_driver_sql("ANALYZE")
    for call in (
        lambda: parts.renditions.uncurated(100, ""),
        lambda: parts.queries.studies(StudyFilter(viewer=ALL), 100, ""),
    ):
        for plan in plans(parts.database, call):
            assert "renditions" not in plan
            assert "instances" not in plan
