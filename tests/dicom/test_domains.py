"""Which domain a study belongs to, and whose numbering a Patient ID is of."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.dicom.domains import Domains, RisDomain, pattern_problem
from radmesh.dicom.stations import Station

EAST, WEST = RisDomain("east", "EAST-ISSUER", "E[0-9]+", 0), RisDomain("west", "WEST-ISSUER", "[EW][0-9]{4}", 1)
STATIONS = (
    Station("CT1", domain="east"),
    Station("CT2", domain="west"),
    Station("CT3", ("10.0.0.0/8",), domain="west"),
    Station("ANY", domain="by-object"),
    Station("PLAIN"),
)
BOTH = Domains(STATIONS, (EAST, WEST))


@pytest.mark.parametrize(
    ("station", "address", "issuer", "accession", "domain"),
    [
        ("CT1", "1.1.1.1", "", "", "east"),
        ("CT2", "1.1.1.1", "", "E1", "west"),
        ("CT1", "1.1.1.1", "EAST-ISSUER", "", "east"),
        ("CT1", "1.1.1.1", "SOMEBODY", "W1234", "east"),
        # The issuer is another domain's: the station sends what is not its own.
        ("CT1", "1.1.1.1", "WEST-ISSUER", "", ""),
        ("CT3", "10.1.2.3", "", "", "west"),
        # Not that station: told by the object.
        ("CT3", "11.1.2.3", "", "W1234", "west"),
        ("ANY", "1.1.1.1", "WEST-ISSUER", "E1", "west"),
        ("ANY", "1.1.1.1", "SOMEBODY", "E1", "east"),
        ("ANY", "1.1.1.1", "", "E1", "east"),
        ("ANY", "1.1.1.1", "", "W1234", "west"),
        ("ANY", "1.1.1.1", "", "E1234", ""),
        ("ANY", "1.1.1.1", "", "xE1", ""),
        ("ANY", "1.1.1.1", "", "E1x", ""),
        ("ANY", "1.1.1.1", "", "", ""),
        ("ANY", "1.1.1.1", "", "E" + "1" * 64, ""),
        # There is no domain `default`, and more than one that it could be.
        ("PLAIN", "1.1.1.1", "", "W1234", "west"),
        ("PLAIN", "1.1.1.1", "", "", ""),
        ("NOBODY", "1.1.1.1", "EAST-ISSUER", "", "east"),
        ("", "", "", "", ""),
    ],
)
def test_the_domain_of_an_object(station: str, address: str, issuer: str, accession: str, domain: str) -> None:
    assert BOTH.domain_of(station, address, issuer, accession) == domain


def test_without_domains_there_is_one() -> None:
    one = Domains((), ())
    assert one.names == ("default",)
    assert one.domain_of("CT9", "127.0.0.1", "SOMEBODY", "A1") == "default"
    assert (one.issuer_of("default"), one.manager_of("default")) == ("", "connectivity-manager-0")
    assert one.station("CT9", "127.0.0.1").verification == "advisory"


def test_a_single_domain_is_the_default_whatever_its_name() -> None:
    assert Domains(STATIONS, (EAST,)).domain_of("PLAIN", "", "", "") == "east"
    assert Domains(STATIONS, (EAST, RisDomain("default"))).domain_of("PLAIN", "", "", "E1") == "default"


def test_a_domain_that_is_gone_is_unknown() -> None:
    one = Domains(STATIONS, (EAST,))
    assert one.domain_of("CT2", "", "", "") == ""
    assert (one.issuer_of("west"), one.manager_of("west")) == ("", "")
    assert (BOTH.issuer_of("west"), BOTH.manager_of("west")) == ("WEST-ISSUER", "connectivity-manager-1")


def test_from_settings_of_a_component() -> None:
    rows = (SimpleNamespace(name="east", issuer="I", accession_pattern="E.*", manager=3, hl7_port=0),)
    found = Domains.of({"stations": (Station("ANY", domain="by-object"),), "domains": rows})
    assert found.domain_of("ANY", "", "", "E7") == "east"
    assert found.manager_of("east") == "connectivity-manager-3"
    assert Domains.of({}).names == ("default",)


@pytest.mark.parametrize(
    "wrong",
    [
        (RisDomain("a"), RisDomain("a")),
        (RisDomain("a", "X"), RisDomain("b", "X")),
        (RisDomain("a", "", "("),),
        (RisDomain("a", "", "x" * 257),),
        (RisDomain("a", "", "(a+)+"),),
    ],
)
def test_what_cannot_be_is_named(wrong: tuple[RisDomain, ...]) -> None:
    with pytest.raises(ValueError, match=r"domain"):
        Domains((), wrong)


@pytest.mark.parametrize("pattern", ["", "A[0-9]{4,12}", r"(CT|MR)\d+", r"\)+", "[)]*", "[])]*x"])
def test_patterns_that_are_allowed(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize("pattern", ["(a|a)*b", "(a+){2,}", "(?:a?)+", "((a)b)*", "a" * 257, "*"])
def test_patterns_that_are_not(pattern: str) -> None:
    assert pattern_problem(pattern)


# -- identity

IDS = st.text(st.characters(exclude_characters="\x1f", exclude_categories=("Cs",)), max_size=12)
ISSUERS = IDS | st.sampled_from(["EAST-ISSUER", "WEST-ISSUER", "east", "west"])


@given(ISSUERS, ISSUERS, IDS.filter(bool), st.text(max_size=16), st.text(max_size=16))
def test_two_domains_never_join(issuer: str, other: str, patient: str, accession: str, second: str) -> None:
    """The same Patient ID, whatever issuer or accession came with it, in studies of two domains."""
    first = BOTH.domain_of("CT1", "", issuer, accession)
    last = BOTH.domain_of("CT2", "", other, second)
    one = BOTH.patient_identity(first, issuer, patient, "1.1")
    two = BOTH.patient_identity(last, other, patient, "1.2")
    if first and last:
        assert one != two


@given(st.sampled_from(["east", "west", ""]), ISSUERS, IDS, st.sampled_from(["east", "west", ""]), ISSUERS, IDS)
def test_one_identity_is_one_patient(d1: str, i1: str, p1: str, d2: str, i2: str, p2: str) -> None:
    """Two texts are equal only for the same ID in the same numbering."""
    one, two = BOTH.patient_identity(d1, i1, p1, "1.1"), BOTH.patient_identity(d2, i2, p2, "1.2")
    owners = {"EAST-ISSUER": "east", "WEST-ISSUER": "west"}

    def numbering(domain: str, issuer: str) -> tuple[str, str]:
        return (owners.get(issuer, domain), "" if issuer in owners else issuer)

    same = bool(p1) and p1 == p2 and numbering(d1, i1) == numbering(d2, i2) and numbering(d1, i1)[0] != ""
    assert (one == two) == same


def test_the_issuer_that_is_understood_and_the_one_that_is_named_are_one_patient() -> None:
    assert BOTH.patient_identity("east", "", "P1", "1.1") == BOTH.patient_identity("east", "EAST-ISSUER", "P1", "1.2")
    assert BOTH.patient_identity("", "EAST-ISSUER", "P1", "1.1") == BOTH.patient_identity("east", "", "P1", "1.2")
