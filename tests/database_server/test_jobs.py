"""Jobs: leases, fences, pauses, and dead workers."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from database_support import Parts, at_once

from radmesh.database_server.jobs import FAILED, LEASED, QUEUED, SUCCEEDED
from radmesh.runtime.errors import RadmeshError

NONE = timedelta()
MINUTE = timedelta(minutes=1)


def enqueue(parts: Parts, key: str = "1.2.3", kind: str = "curate", **options: Any) -> dict[str, Any]:
    return parts.jobs.enqueue(
        kind, key, options.get("payload", "{}"), options.get("delay", NONE), options.get("most", 0)
    )


def lease(parts: Parts, owner: str = "worker-1", count: int = 10) -> list[dict[str, Any]]:
    return parts.jobs.lease(["curate"], owner, count, MINUTE)


def finish(parts: Parts, job: dict[str, Any], state: int, delay: timedelta = NONE) -> dict[str, Any]:
    return parts.jobs.finish(job["id"], job["fence"], state, delay, "TIER_FAILED" if state != SUCCEEDED else "", "")


def test_a_job_goes_to_one_worker(parts: Parts) -> None:
    for number in range(5):
        enqueue(parts, str(number))
    enqueue(parts, "x", "other")
    first = lease(parts, count=2)
    assert [(job["key"], job["state"], job["attempt"], job["owner"]) for job in first] == [
        ("0", LEASED, 1, "worker-1"),
        ("1", LEASED, 1, "worker-1"),
    ]
    assert [job["key"] for job in lease(parts, "worker-2")] == ["2", "3", "4"]
    assert lease(parts, "worker-3") == []
    assert finish(parts, first[0], SUCCEEDED)["state"] == SUCCEEDED


def test_workers_at_once_never_share_a_job(parts: Parts) -> None:
    for number in range(20):
        enqueue(parts, str(number))
    answers = at_once(*(lambda n=number: lease(parts, f"worker-{n}", 4) for number in range(6)))
    taken = [job["key"] for answer in answers for job in answer]
    assert len(taken) == len(set(taken))
    taken += [job["key"] for job in lease(parts, count=100)]
    assert sorted(taken, key=int) == [str(number) for number in range(20)]


def test_what_ended_long_ago_is_removed_some_at_a_time(parts: Parts) -> None:
    """As jobs of its kind end; what is alive, of another kind, or ended lately stays."""
    for number in range(50):
        enqueue(parts, str(number))
    for job in lease(parts, count=100):
        finish(parts, job, FAILED if int(job["key"]) % 2 else SUCCEEDED)
    enqueue(parts, "other", "other")
    other = parts.jobs.lease(["other"], "worker-1", 1, MINUTE)[0]
    finish(parts, other, FAILED)
    enqueue(parts, "waits")
    parts.advance(timedelta(days=13).total_seconds())
    for number in range(3):
        enqueue(parts, f"late {number}")
    lately = next(job for job in lease(parts) if job["key"] == "late 0")
    finish(parts, lately, SUCCEEDED)
    assert len(keys(parts)) == 50 + 1 + 4
    parts.advance(timedelta(days=2).total_seconds())
    for job, rest in zip([job for job in lease(parts) if job["key"] != "waits"], (10, 0), strict=True):
        assert finish(parts, job, SUCCEEDED)["state"] == SUCCEEDED
        assert len([key for key in keys(parts) if key.isdecimal()]) == rest
    assert set(keys(parts)) == {"other", "waits", "late 0", "late 1", "late 2"}


def test_a_job_whose_last_worker_was_lost_is_kept_from_then_on(parts: Parts) -> None:
    enqueue(parts, "1", most=1)
    lease(parts)
    parts.advance(timedelta(days=20).total_seconds())
    assert lease(parts) == []
    enqueue(parts, "2")
    finish(parts, lease(parts)[0], SUCCEEDED)
    assert sorted(keys(parts)) == ["1", "2"]


def keys(parts: Parts) -> list[str]:
    return [job["key"] for job in parts.jobs.list("", 0, 1000, "")[0]]


def test_one_live_job_for_a_thing(parts: Parts) -> None:
    first = enqueue(parts)
    assert enqueue(parts)["id"] == first["id"]
    job = lease(parts)[0]
    assert enqueue(parts)["id"] == first["id"]
    finish(parts, job, SUCCEEDED)
    assert enqueue(parts)["id"] != first["id"]
    answers = at_once(*(lambda: enqueue(parts, "many") for _ in range(4)))
    assert len({job["id"] for job in answers}) == 1


def test_a_dead_workers_job_is_taken_by_another(parts: Parts) -> None:
    enqueue(parts)
    old = lease(parts)[0]
    parts.advance(59)
    assert lease(parts, "worker-2") == []
    parts.advance(2)
    new = lease(parts, "worker-2")[0]
    assert (new["id"], new["fence"], new["attempt"]) == (old["id"], old["fence"] + 1, 2)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: finish(parts, old, SUCCEEDED),
        lambda: parts.jobs.renew(old["id"], old["fence"], MINUTE),
    )
    for call in calls:
        with pytest.raises(RadmeshError) as error:
            call()
        assert error.value.reason == "JOB_LOST"
    assert finish(parts, new, SUCCEEDED)["state"] == SUCCEEDED


def test_a_renewed_lease_holds(parts: Parts) -> None:
    enqueue(parts)
    job = lease(parts)[0]
    for _ in range(3):
        parts.advance(50)
        parts.jobs.renew(job["id"], job["fence"], MINUTE)
    assert lease(parts, "worker-2") == []
    # Late, but nobody else has taken it.
    parts.advance(100)
    assert finish(parts, job, SUCCEEDED)["state"] == SUCCEEDED


def test_finishing_twice_is_finishing_once(parts: Parts) -> None:
    """FinishJob is repeated by gRPC when an answer is lost."""
    for state in (SUCCEEDED, FAILED, QUEUED):
        enqueue(parts, str(state))
        job = next(job for job in lease(parts) if job["key"] == str(state))
        done = finish(parts, job, state, MINUTE)
        assert finish(parts, job, state, MINUTE) == done
        other = FAILED if state == SUCCEEDED else SUCCEEDED
        with pytest.raises(RadmeshError) as error:
            finish(parts, job, other)
        assert error.value.reason == "JOB_LOST"


def test_given_back_it_comes_again_after_its_pause(parts: Parts) -> None:
    enqueue(parts, most=3)
    for attempt in (1, 2):
        job = lease(parts)[0]
        assert job["attempt"] == attempt
        assert finish(parts, job, QUEUED, MINUTE)["state"] == QUEUED
        parts.advance(59)
        assert lease(parts) == []
        parts.advance(1)
    job = lease(parts)[0]
    done = finish(parts, job, QUEUED, MINUTE)
    assert (done["state"], done["reason"]) == (FAILED, "TIER_FAILED")
    parts.advance(3600)
    assert lease(parts) == []


def test_a_job_that_kills_its_workers_ends(parts: Parts) -> None:
    enqueue(parts, most=2)
    for _ in range(2):
        assert len(lease(parts)) == 1
        parts.advance(61)
    assert lease(parts) == []
    rows, _ = parts.jobs.list("curate", FAILED, 10, "")
    assert [(row["reason"], row["attempt"]) for row in rows] == [("JOB_LOST", 2)]


def test_a_delay_before_the_first_try(parts: Parts) -> None:
    enqueue(parts, delay=MINUTE)
    assert lease(parts) == []
    parts.advance(60)
    assert len(lease(parts)) == 1


def test_jobs_are_listed_newest_first(parts: Parts) -> None:
    for number in range(5):
        enqueue(parts, str(number))
    finish(parts, lease(parts, count=1)[0], SUCCEEDED)
    rows, token = parts.jobs.list("", 0, 3, "")
    rest, end = parts.jobs.list("", 0, 3, token)
    assert [row["key"] for row in rows + rest] == ["4", "3", "2", "1", "0"]
    assert end == ""
    assert [row["key"] for row in parts.jobs.list("curate", SUCCEEDED, 10, "")[0]] == ["0"]
    assert parts.jobs.list("none", 0, 10, "") == ([], "")


def test_bad_jobs_are_refused(parts: Parts) -> None:
    for options in (
        {"kind": ""},
        {"key": ""},
        {"key": "x" * 257},
        {"kind": "a\0b"},
        {"payload": "é" * 40_000},
        {"payload": "a\0b"},
        {"most": -1},
    ):
        with pytest.raises(RadmeshError) as error:
            enqueue(parts, **options)
        assert error.value.reason == "FIELD_INVALID", options
    with pytest.raises(RadmeshError) as error:
        parts.jobs.renew(4711, 1, MINUTE)
    assert error.value.reason == "JOB_NOT_FOUND"
    enqueue(parts)
    with pytest.raises(RadmeshError) as error:
        finish(parts, lease(parts)[0], LEASED)
    assert error.value.reason == "FIELD_INVALID"


def test_no_more_is_leased_or_listed_than_an_answer_holds(parts: Parts) -> None:
    for number in range(100):
        enqueue(parts, str(number), payload="x" * 65_536)
    taken: list[str] = []
    while jobs := lease(parts, count=100):
        assert sum(len(job["payload"]) for job in jobs) < 4 << 20
        taken += [job["key"] for job in jobs]
    assert taken == [str(number) for number in range(100)]
    listed = []
    token = ""
    while True:
        page, token = parts.jobs.list("", 0, 100, token)
        assert sum(len(job["payload"]) for job in page) < 4 << 20
        listed += [job["key"] for job in page]
        if not token:
            break
    assert listed == taken[::-1]
