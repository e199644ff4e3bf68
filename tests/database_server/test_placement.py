"""Which store takes a study: one answer for all who ask at once, kept while that store lives."""

from collections import Counter

import pytest
from database_support import SPOOL, Parts, at_once, uid

from radmesh.database_server.schema import placements
from radmesh.runtime.errors import RadmeshError


def place(parts: Parts, study: object = 0, avoid: str = "") -> str:
    return str(parts.placement.place(uid("study", study), avoid)["store_id"])


def test_no_archive_is_said(parts: Parts) -> None:
    parts.beat("spool-0", SPOOL)
    parts.beat("archive-0", accepting=False)
    with pytest.raises(RadmeshError) as error:
        place(parts)
    assert error.value.reason == "NO_ARCHIVE"
    parts.beat("archive-0")
    assert place(parts) == "archive-0"
    parts.advance(3.1)
    with pytest.raises(RadmeshError) as error:
        place(parts)
    assert error.value.reason == "NO_ARCHIVE"
    assert error.value.transient


def test_a_study_stays_where_it_is(parts: Parts) -> None:
    parts.beat("archive-0", free=10**9)
    first = place(parts)
    parts.beat("archive-1", free=10**12)
    assert {place(parts) for _ in range(5)} == {first}
    assert len(parts.rows(placements)) == 1


def test_it_moves_when_its_store_is_silent_or_takes_nothing(parts: Parts) -> None:
    parts.beat("archive-0", free=10**12)
    assert place(parts) == "archive-0"
    parts.advance(3.1)
    parts.beat("archive-1", free=10**9)
    assert place(parts) == "archive-1"
    parts.beat("archive-0", free=10**12)
    assert place(parts) == "archive-1"
    parts.beat("archive-1", accepting=False)
    assert place(parts) == "archive-0"


def test_a_store_that_was_seen_failing_is_chosen_last(parts: Parts) -> None:
    parts.beat("archive-0", free=10**12)
    parts.beat("archive-1", free=10**9)
    assert place(parts, 1, avoid="archive-0") == "archive-1"
    assert place(parts, 2) == "archive-0"
    assert place(parts, 2, avoid="archive-0") == "archive-1"
    parts.beat("archive-1", accepting=False)
    assert place(parts, 3, avoid="archive-0") == "archive-0"


def test_room_decides_and_many_studies_are_spread(parts: Parts) -> None:
    parts.beat("archive-0", free=3 * 10**12)
    parts.beat("archive-1", free=10**12)
    counted = Counter(place(parts, number) for number in range(40))
    assert counted["archive-0"] > counted["archive-1"] > 5
    parts.beat("archive-1", free=9 * 10**12)
    parts.advance(61)
    for store, free in (("archive-0", 3 * 10**12), ("archive-1", 9 * 10**12)):
        parts.beat(store, free=free)
    assert place(parts, "new") == "archive-1"


def test_those_who_ask_at_once_get_the_same(parts: Parts) -> None:
    for number in range(4):
        parts.beat(f"archive-{number}")
    for study in range(5):
        answers = at_once(*(lambda s=study: place(parts, s) for _ in range(8)))
        assert len(set(answers)) == 1, answers
    # The same while it moves.
    parts.advance(3.1)
    for number in range(2, 4):
        parts.beat(f"archive-{number}")
    for study in range(5):
        answers = at_once(*(lambda s=study: place(parts, s) for _ in range(8)))
        assert len(set(answers)) == 1, answers
        assert answers[0] in ("archive-2", "archive-3")
