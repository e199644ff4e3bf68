"""Stations: what one may be called, and where it may come from."""

from typing import Any

import pytest

from radmesh.dicom.stations import GRANTS, PATIENT_KEYS, STUDY_KEYS, VERIFICATION, Station, match


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ae_title": ""}, "ae_title"),
        ({"ae_title": "   "}, "ae_title"),
        ({"ae_title": "A" * 17}, "ae_title"),
        ({"ae_title": "CT\\1"}, "ae_title"),
        ({"ae_title": "CTÄ"}, "ae_title"),
        ({"verification": "sometimes"}, "advisory"),
        ({"study_key": "accessions"}, "accession else date"),
        ({"patient_key": "birthday"}, "id\\+name"),
        ({"on_ris_unavailable": "drop"}, "hold"),
        ({"grants": ("store", "delete")}, "worklist"),
        ({"addresses": ("10.0.0.0/33",)}, "addresses"),
        ({"addresses": ("ct1.example",)}, "addresses"),
        ({"addresses": ("",)}, "addresses"),
    ],
)
def test_what_a_station_cannot_have_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Station(**{"ae_title": "CT1", **changes})


def test_what_a_station_can_have() -> None:
    for key in STUDY_KEYS:
        Station("CT1", study_key=key)
    for key in PATIENT_KEYS:
        Station("CT1", patient_key=key)
    for policy in VERIFICATION:
        Station("CT1", verification=policy)
    assert Station("A" * 16, grants=GRANTS).grants == GRANTS
    assert Station("CT1", grants=()).grants == ()


@pytest.mark.parametrize(
    ("addresses", "source", "may"),
    [
        ((), "192.0.2.1", True),
        ((), "no address", True),
        (("192.0.2.1",), "192.0.2.1", True),
        (("192.0.2.1",), "192.0.2.10", False),
        (("192.0.2.0/24",), "192.0.2.255", True),
        (("192.0.2.0/24",), "192.0.3.0", False),
        # A network that is written as one of its hosts.
        (("192.0.2.77/24",), "192.0.2.1", True),
        (("198.51.100.0/24", "192.0.2.1"), "192.0.2.1", True),
        # A socket for both kinds of addresses gives those of IPv4 so.
        (("192.0.2.0/24",), "::ffff:192.0.2.1", True),
        (("192.0.2.0/24",), "::ffff:192.0.3.1", False),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "2001:db9::1", False),
        (("::/0",), "192.0.2.1", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("192.0.2.1",), "", False),
        (("192.0.2.1",), "192.0.2.1, 198.51.100.1", False),
    ],
)
def test_where_a_station_may_come_from(addresses: tuple[str, ...], source: str, may: bool) -> None:
    assert Station("CT1", addresses).is_from(source) is may


def test_the_first_that_fits_is_the_one() -> None:
    rows = (Station("CT1", ("192.0.2.1",), domain="east"), Station("CT1", domain="west"), Station("CT1"))
    assert match(rows, "CT1", "192.0.2.1") is rows[0]
    assert match(rows, "CT1", "192.0.2.2") is rows[1]
    assert match(rows[:1], "CT1", "192.0.2.2") is None
    assert match((), "CT1", "192.0.2.1") is None
    # PS3.5 6.2: an AE title is case sensitive.
    assert match(rows, "ct1", "192.0.2.1") is None
    assert match(rows, "", "192.0.2.1") is None
