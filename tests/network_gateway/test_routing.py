"""Which routes fire: every condition by itself, completion, and the window, over midnight too."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.dicom.routes import Route, from_mapping, to_json
from radmesh.network_gateway.routing import Subject, compare

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
QUIET = timedelta(seconds=60)


def subject(**changes: Any) -> Subject:
    values: dict[str, Any] = {
        "stations": frozenset(("CT1",)),
        "modalities": frozenset(("CT", "SR")),
        "verification": "VERIFIED",
        "verification_reason": "",
        "reading": "NEW",
        "key_objects": False,
        "steps_ended": False,
        "idle": timedelta(hours=1),
    }
    return Subject(**{**values, **changes})


@pytest.mark.parametrize(
    ("rule", "study", "reason"),
    [
        ({}, {}, ""),
        ({"enabled": False}, {}, "DISABLED"),
        ({"stations": ("CT1", "CT2")}, {}, ""),
        ({"stations": ("CT2",)}, {}, "STATION"),
        ({"modalities": ("MR", "SR")}, {}, ""),
        ({"modalities": ("MR",)}, {}, "MODALITY"),
        ({}, {"verification": "UNVERIFIED", "verification_reason": "NO_ORDER"}, "VERIFICATION"),
        ({"verification": ("UNVERIFIED",)}, {"verification": "UNVERIFIED", "verification_reason": "NO_ORDER"}, ""),
        # What nobody could be asked about waits (CORRECTNESS rule 10), whatever the rule says.
        (
            {"verification": ("UNVERIFIED",)},
            {"verification": "UNVERIFIED", "verification_reason": "RIS_UNAVAILABLE"},
            "VERIFICATION",
        ),
        (
            {"verification": ("UNVERIFIED",)},
            {"verification": "UNVERIFIED", "verification_reason": "TIMEOUT"},
            "VERIFICATION",
        ),
        ({}, {"verification": "PENDING"}, "VERIFICATION"),
        ({}, {"verification": "HELD"}, "VERIFICATION"),
        ({"reading": ("APPROVED", "ADDENDUM")}, {}, "READING"),
        ({"reading": ("APPROVED", "ADDENDUM")}, {"reading": "ADDENDUM"}, ""),
        ({"key_images": True}, {}, "KEY_IMAGES"),
        ({"key_images": True}, {"key_objects": True}, ""),
        ({"window": "11:59-12:01"}, {}, ""),
        ({"window": "22:00-12:01"}, {}, ""),
        ({"window": "22:00-06:00"}, {}, "WINDOW"),
    ],
)  # fmt: skip
def test_a_condition(rule: dict[str, Any], study: dict[str, Any], reason: str) -> None:
    assert compare(Route("r", ("WS",), **rule), subject(**study), NOW, QUIET).reason == reason


def test_a_study_leaves_when_nothing_more_comes() -> None:
    route = Route("r", ("WS",))
    verdict = compare(route, subject(idle=timedelta(seconds=20)), NOW, QUIET)
    assert (verdict.reason, verdict.wait) == ("COMPLETION", timedelta(seconds=40))
    assert not compare(route, subject(idle=QUIET), NOW, QUIET).reason
    assert not compare(route, subject(idle=timedelta(), steps_ended=True), NOW, QUIET).reason


def test_the_window_says_when_it_opens() -> None:
    verdict = compare(Route("r", ("WS",), window="22:00-06:00"), subject(), NOW, QUIET)
    assert verdict.wait == timedelta(hours=10)
    verdict = compare(Route("r", ("WS",), window="08:00-09:00"), subject(), NOW, QUIET)
    assert verdict.wait == timedelta(hours=20)


@given(st.times(), st.times(), st.datetimes(timezones=st.just(UTC)))
def test_a_window_opens_within_a_day_and_is_open_then(begins: Any, ends: Any, now: datetime) -> None:
    window = f"{begins:%H:%M}-{ends:%H:%M}"
    if f"{begins:%H:%M}" == f"{ends:%H:%M}":
        with pytest.raises(ValueError, match="begins when it ends"):
            Route("r", ("WS",), window=window)
        return
    route = Route("r", ("WS",), window=window)
    opens = route.opens_in(now)
    assert timedelta() <= opens < timedelta(days=1)
    assert route.opens_in(now + opens) == timedelta()
    if opens:
        assert route.opens_in(now + opens - timedelta(microseconds=1)) == timedelta(microseconds=1)


def test_a_route_comes_back_as_it_was_written() -> None:
    route = Route(
        "r", ("WS",), ("CT1",), ("CT",), ("UNVERIFIED",), ("NEW",), "01:00-02:00", key_images=True, enabled=False
    )
    assert from_mapping({**json.loads(to_json(route)), "later": 1}) == route
    with pytest.raises(ValueError, match="no route"):
        from_mapping({})
