"""Reports: draft, approved, addendum; approved and in the outbox are one; how a version fares at the RIS."""

from typing import Any

import pytest
import sqlalchemy as sa
from database_support import HELD, UNVERIFIED, Parts, at_once, record, uid

from radmesh.database_server.reports import (
    APPROVED,
    DELIVERED,
    DRAFT,
    NOT_CONFIGURED,
    REFUSED,
    TEXT_MOST,
    TOPIC,
    WAITING,
)
from radmesh.database_server.schema import changes, outbox, reports, studies
from radmesh.database_server.statuses import AXES
from radmesh.runtime.errors import RadmeshError

STUDY = uid("study", 0)


@pytest.fixture
def readable(parts: Parts) -> Parts:
    parts.register(record())
    return parts


def save(
    parts: Parts, text: str = "No fracture.", *, transcribed: bool = False, actor: str = "rad", expected: int = 0
) -> dict[str, Any]:
    return parts.reports.save(STUDY, text, transcribed=transcribed, actor=actor, expected_version=expected)


def approve(parts: Parts, version: int = 0, actor: str = "rad") -> dict[str, Any]:
    return parts.reports.approve(STUDY, version, actor)


def moves(parts: Parts) -> list[str]:
    rows, _ = parts.statuses.history(STUDY, 100, "")
    return [row["to_state"] for row in rows if row["axis"] == "reading"]


def reading(parts: Parts) -> str:
    return str(AXES["reading"].states[parts.study()["reading"]])


def reason_of(call: Any) -> str:
    with pytest.raises(RadmeshError) as error:
        call()
    return error.value.reason


def waiting(parts: Parts) -> list[tuple[str, str]]:
    return [(row["key"], row["payload"]) for row in parts.rows(outbox) if row["topic"] == TOPIC]


def test_a_draft_is_written_until_it_is_approved_and_then_never_again(readable: Parts) -> None:
    draft = save(readable, "No fracture.")
    assert (draft["version"], draft["state"], draft["author"], draft["study_instance_uid"]) == (1, DRAFT, "rad", STUDY)
    readable.advance(60)
    again = save(readable, "A fracture.", actor="other")
    assert (again["version"], again["text"], again["author"]) == (1, "A fracture.", "other")
    assert again["update_time"] - draft["update_time"] == 60_000_000
    assert waiting(readable) == []
    approved = approve(readable, actor="senior")
    assert (approved["state"], approved["approver"], approved["delivery"]) == (APPROVED, "senior", WAITING)
    assert approved["approve_time"]
    assert (approved["text"], approved["author"]) == ("A fracture.", "other")
    # What is written now is an addendum.
    addendum = save(readable, "Addendum.")
    assert (addendum["version"], addendum["state"]) == (2, DRAFT)
    assert readable.study()["report_version"] == 2
    rows, _ = readable.reports.list(STUDY, 0, 100, "")
    assert [(row["version"], row["state"], row["text"]) for row in rows] == [
        (2, DRAFT, "Addendum."),
        (1, APPROVED, "A fracture."),
    ]


def test_the_reading_axis_follows(readable: Parts) -> None:
    assert reading(readable) == "NEW"
    save(readable)
    assert reading(readable) == "DICTATED"
    save(readable, transcribed=True)
    assert reading(readable) == "TRANSCRIBED"
    approve(readable)
    assert reading(readable) == "APPROVED"
    save(readable)
    assert reading(readable) == "ADDENDUM"
    save(readable, transcribed=True)
    assert reading(readable) == "ADDENDUM"
    approve(readable)
    assert reading(readable) == "APPROVED"
    assert moves(readable) == ["DICTATED", "TRANSCRIBED", "APPROVED", "ADDENDUM", "APPROVED"]


@pytest.mark.parametrize(("transcribed", "after"), [(False, "DICTATED"), (True, "TRANSCRIBED")])
@pytest.mark.parametrize("before", AXES["reading"].states[1:])
def test_no_move_that_the_axis_does_not_know(readable: Parts, before: str, after: str, *, transcribed: bool) -> None:
    """Also where somebody moved it by hand."""
    number = AXES["reading"].states.index(before)
    readable.database.write(lambda c: c.execute(sa.update(studies).values(reading=number)))
    save(readable, transcribed=transcribed)
    approve(readable)
    rows, _ = readable.statuses.history(STUDY, 100, "")
    for row in rows:
        assert row["to_state"] in AXES["reading"].moves[row["from_state"]], rows
    path = [before, *(row["to_state"] for row in rows)]
    assert path[-1] == "APPROVED"
    assert [row["from_state"] for row in rows] == path[:-1]
    if before in ("APPROVED", "ADDENDUM"):
        assert "DICTATED" not in path[1:]
    elif after == "TRANSCRIBED" or before == "NEW":
        assert after in path


def test_approved_and_in_the_outbox_are_one(readable: Parts) -> None:
    save(readable)
    approve(readable)
    assert waiting(readable) == [(STUDY, "1")]
    save(readable)
    approve(readable)
    # Of a study one after the other: the outbox keeps the order of a key.
    assert waiting(readable) == [(STUDY, "1"), (STUDY, "2")]

    # A crash before the commit leaves neither.
    save(readable)
    before = readable.rows(reports), readable.rows(studies), readable.rows(outbox)

    class Crash(BaseException):
        pass

    def crash(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().startswith("INSERT INTO outbox"):
            raise Crash

    sa.event.listen(readable.database.engine, "before_cursor_execute", crash)
    with pytest.raises(Crash):
        approve(readable)
    sa.event.remove(readable.database.engine, "before_cursor_execute", crash)
    assert (readable.rows(reports), readable.rows(studies), readable.rows(outbox)) == before


def test_the_same_approval_again_changes_nothing(readable: Parts) -> None:
    save(readable)
    first = approve(readable, actor="rad")
    before = readable.rows(reports), readable.rows(studies), readable.rows(outbox), readable.feed.revision()
    for version in (0, 1):
        assert approve(readable, version, actor="other") == first
    assert (
        readable.rows(reports),
        readable.rows(studies),
        readable.rows(outbox),
        readable.feed.revision(),
    ) == before
    # Nor while an addendum is being written, for who names the version.
    save(readable)
    assert approve(readable, 1)["version"] == 1
    assert [row["state"] for row in readable.rows(reports)] == [APPROVED, DRAFT]
    assert approve(readable, 2)["version"] == 2


def test_two_who_approve_at_once(readable: Parts) -> None:
    save(readable)
    answers = at_once(lambda: approve(readable, actor="a"), lambda: approve(readable, actor="b"))
    assert answers[0] == answers[1]
    assert waiting(readable) == [(STUDY, "1")]
    assert moves(readable) == ["DICTATED", "APPROVED"]


def test_two_who_write_at_once(readable: Parts) -> None:
    answers = at_once(*[lambda n=n: save(readable, f"text {n}") for n in range(4)])
    assert {answer["version"] for answer in answers} == {1}
    assert len(readable.rows(reports)) == 1
    assert moves(readable) == ["DICTATED"]


def test_who_saw_another_draft_reads_again(readable: Parts) -> None:
    save(readable, expected=1)
    approve(readable)
    # It was approved meanwhile: what would be written is an addendum, and nobody meant that.
    assert reason_of(lambda: save(readable, expected=1)) == "VERSION_CONFLICT"
    assert save(readable, expected=2)["version"] == 2
    assert reason_of(lambda: save(readable, expected=7)) == "VERSION_CONFLICT"
    assert len(readable.rows(reports)) == 2


def test_what_cannot_be_written_or_approved(parts: Parts) -> None:
    assert reason_of(lambda: save(parts)) == "STUDY_NOT_FOUND"
    assert reason_of(lambda: approve(parts)) == "STUDY_NOT_FOUND"
    assert reason_of(lambda: parts.reports.list(STUDY, 0, 10, "")) == "STUDY_NOT_FOUND"
    parts.register(record())
    for text in ("", " \n\t", "\0"):
        assert reason_of(lambda text=text: save(parts, text)) == "REPORT_EMPTY"
    assert reason_of(lambda: save(parts, "x" * (TEXT_MOST + 1))) == "REPORT_TOO_LONG"
    assert reason_of(lambda: save(parts, "漢" * (TEXT_MOST // 3 + 1))) == "REPORT_TOO_LONG"
    for version in (0, 1):
        assert reason_of(lambda version=version: approve(parts, version)) == "REPORT_NOT_FOUND"
    assert parts.rows(reports) == []
    assert (moves(parts), parts.study()["report_version"]) == ([], 0)
    longest = "漢" * (TEXT_MOST // 3)
    assert save(parts, longest)["text"] == longest
    assert reason_of(lambda: approve(parts, 2)) == "REPORT_NOT_FOUND"
    assert reason_of(lambda: approve(parts, -1)) in ("REPORT_NOT_FOUND", "VERSION_CONFLICT", "FIELD_INVALID")
    assert parts.rows(reports)[0]["state"] == DRAFT


def test_lines_end_as_they_should(readable: Parts) -> None:
    assert save(readable, "one\r\ntwo\rthree\n")["text"] == "one\ntwo\nthree\n"


def test_only_what_is_held_as_a_whole_cannot_be_reported(readable: Parts) -> None:
    first, late = record(sop=0), record(sop=1, PatientName="Roe^Richard")
    readable.decide(first, UNVERIFIED, "RIS_UNAVAILABLE")
    readable.register(late)
    readable.decide(late, HELD, "PATIENT_MISMATCH")
    # A late object is held alone: the rest can be read and reported.
    save(readable)
    readable.decide(first, HELD, "NO_ORDER")
    before = readable.rows(reports), readable.rows(studies)
    assert reason_of(lambda: save(readable)) == "STUDY_HELD"
    assert reason_of(lambda: approve(readable)) == "STUDY_HELD"
    assert (readable.rows(reports), readable.rows(studies)) == before
    readable.decide(first, UNVERIFIED, "OVERRIDDEN")
    assert approve(readable)["state"] == APPROVED


def test_a_study_of_held_variants_alone_is_held(parts: Parts) -> None:
    # Images whose UIDs another study had before are current nowhere.
    parts.register(record(study=1, sop=0))
    parts.register(record(study=0, sop=0, content=1))
    assert parts.study()["instance_count"] == 0
    save(parts)
    parts.decide(record(study=0, sop=0), HELD, "NO_ORDER")
    assert reason_of(lambda: approve(parts)) == "STUDY_HELD"


def test_how_a_version_fares(readable: Parts) -> None:
    save(readable)
    approve(readable)

    def deliver(state: int, reason: str = "", control_id: str = "") -> tuple[int, str, str, bool]:
        before = readable.feed.revision()
        readable.reports.deliver(STUDY, 1, state, reason, control_id)
        (row,) = readable.rows(reports)
        return row["delivery"], row["delivery_reason"], row["control_id"], readable.feed.revision() > before

    assert deliver(WAITING, "HL7_CONNECTION_LOST", "R1") == (WAITING, "HL7_CONNECTION_LOST", "R1", True)
    assert deliver(WAITING, "HL7_CONNECTION_LOST", "R1") == (WAITING, "HL7_CONNECTION_LOST", "R1", False)
    assert deliver(REFUSED, "HL7_REFUSED") == (REFUSED, "HL7_REFUSED", "R1", True)
    assert deliver(DELIVERED, "", "R1") == (DELIVERED, "", "R1", True)
    assert reason_of(lambda: readable.reports.deliver(STUDY, 2, DELIVERED, "", "")) == "REPORT_NOT_FOUND"
    assert reason_of(lambda: readable.reports.deliver("1.2", 1, DELIVERED, "", "")) == "REPORT_NOT_FOUND"
    assert ("report", STUDY) in [(row["kind"], row["key"]) for row in readable.rows(changes)]


def test_reports_are_listed_newest_first(parts: Parts) -> None:
    for number in range(5):
        parts.register(record(study=number, sop=number))
        study = uid("study", number)
        parts.reports.save(study, f"text {number}", transcribed=False, actor="rad", expected_version=0)
        parts.reports.approve(study, 0, "rad")
        parts.reports.deliver(study, 1, REFUSED if number % 2 else DELIVERED, "", "")
    parts.reports.save(uid("study", 1), "addendum", transcribed=False, actor="rad", expected_version=0)

    def listed(study: str = "", delivery: int = 0, size: int = 2) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        token = ""
        while True:
            rows, token = parts.reports.list(study, delivery, size, token)
            found += [(row["study_instance_uid"], row["version"]) for row in rows]
            if not token:
                return found

    newest = [(uid("study", number), 1) for number in (4, 3, 2, 1, 0)]
    assert listed() == [(uid("study", 1), 2), *newest]
    assert listed(delivery=REFUSED) == [newest[1], newest[3]]
    assert listed(delivery=NOT_CONFIGURED) == []
    assert listed(uid("study", 1)) == [(uid("study", 1), 2), (uid("study", 1), 1)]
    assert listed(uid("study", 1), REFUSED) == [(uid("study", 1), 1)]
    _, token = parts.reports.list("", 0, 1, "")
    assert reason_of(lambda: parts.reports.list("", REFUSED, 1, token)) == "FIELD_INVALID"


def test_a_page_fits_into_a_message(parts: Parts) -> None:
    for number in range(20):
        parts.register(record(study=number, sop=number))
        parts.reports.save(
            uid("study", number), chr(65 + number) * TEXT_MOST, transcribed=False, actor="rad", expected_version=0
        )
    found: list[str] = []
    token = ""
    while True:
        rows, token = parts.reports.list("", 0, 1000, token)
        assert sum(len(row["text"].encode()) for row in rows) < 4 << 20
        found += [row["text"][0] for row in rows]
        if not token:
            break
    assert found == [chr(65 + number) for number in reversed(range(20))]
