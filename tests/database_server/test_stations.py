"""The registry of stations: what persons edit goes before the configuration, and everybody hears of it."""

from itertools import islice
from typing import Any

import pytest
from database_support import Parts

from radmesh.api.database.v1 import stations_pb2 as pb
from radmesh.database_server.stations import StationRegistry, StationService
from radmesh.dicom.domains import Domains
from radmesh.dicom.stations import Station
from radmesh.runtime.errors import RadmeshError

CALL: Any = None


@pytest.fixture
def domains() -> Domains:
    return Domains((), ())


@pytest.fixture
def registry(parts: Parts, domains: Domains) -> StationRegistry:
    return StationRegistry(parts.database, parts.feed, parts.clock, domains)


def names(registry: StationRegistry) -> list[str]:
    return [entry.value.name for entry in registry.list()]


def test_the_configuration_is_the_first_filling(registry: StationRegistry, domains: Domains) -> None:
    registry.fill([Station("CT1", domain="default"), Station("CT1", ("10.0.0.1",)), Station("WS", host="ws", port=104)])
    assert names(registry) == ["CT1", "CT1-2", "WS"]
    assert domains.stations.match("CT1", "10.0.0.1") == Station("CT1", ("10.0.0.1",), name="CT1-2")
    assert domains.stations.lookup("WS") is not None
    before = registry.version()
    registry.fill([Station("CT1", domain="default"), Station("CT1", ("10.0.0.1",)), Station("WS", host="ws", port=104)])
    assert registry.version() == before
    registry.fill([Station("CT1", grants=("query",))])
    assert [(e.value.name, e.value.grants, e.edited) for e in registry.list()] == [("CT1", ("query",), False)]
    assert domains.stations.lookup("WS") is None
    assert registry.version() > before


def test_what_a_person_set_or_removed_stays_so(registry: StationRegistry, domains: Domains, parts: Parts) -> None:
    registry.fill([Station("CT1"), Station("CT2")])
    revision = parts.feed.revision()
    entry = registry.set(Station("CT1", grants=("store", "commit")), 0)
    assert entry.edited
    assert registry.set(Station("CT1", grants=("store", "commit")), 0) == entry  # as after an answer that was lost
    registry.delete("CT2")
    told = [(change.kind, change.key) for change in islice(parts.feed.watch(revision, (), lambda: True), 2)]
    assert told == [("station", "CT1"), ("station", "CT2")]
    registry.fill([Station("CT1"), Station("CT2")])
    assert [(e.value.name, e.value.grants) for e in registry.list()] == [("CT1", ("store", "commit"))]
    assert domains.stations.match("CT2", "10.0.0.1") is None
    registry.set(Station("CT2"), 0)
    assert names(registry) == ["CT1", "CT2"]


def test_who_saw_another_version_changes_nothing(registry: StationRegistry) -> None:
    first = registry.set(Station("CT1"), 0)
    second = registry.set(Station("CT1", grants=()), first.version)
    for station, version in ((Station("CT1"), first.version), (Station("CT9"), 1)):
        with pytest.raises(RadmeshError) as caught:
            registry.set(station, version)
        assert caught.value.reason == "VERSION_CONFLICT"
    assert registry.list() == [second]


def test_what_cannot_be_is_named(registry: StationRegistry) -> None:
    service = StationService(registry)
    for fields, said in (
        ({"ae_title": ""}, "ae_title"),
        ({"ae_title": "CT1", "domain": "nowhere"}, "default"),
        ({"ae_title": "CT1", "grants": ["all"]}, "worklist"),
        ({"ae_title": "CT1", "host": "x"}, "port"),
        ({"ae_title": "CT1", "host": "x y", "port": 1}, "host name"),
        ({"ae_title": "CT1", "certificate": "AB"}, "64"),
        ({"ae_title": "CT1", "character_set": "ISO 2022 IR 87"}, "ISO_IR 192"),
        ({"ae_title": "CT1", "name": "a/b"}, "slash"),
        ({"ae_title": "CT1", "addresses": ["10.0.0.0/8"] * 257}, "256"),
    ):
        with pytest.raises(RadmeshError, match=said) as caught:
            service.SetStation(pb.SetStationRequest(station=pb.Station(**fields)), CALL)
        assert caught.value.reason == "FIELD_INVALID"
    with pytest.raises(RadmeshError) as missing:
        service.DeleteStation(pb.DeleteStationRequest(name="CT1"), CALL)
    assert missing.value.reason == "STATION_NOT_FOUND"


def test_a_message_comes_back_as_it_was_set(registry: StationRegistry, parts: Parts) -> None:
    service = StationService(registry)
    assert service.ListStations(pb.ListStationsRequest(), CALL) == pb.ListStationsResponse()
    station = pb.Station(
        name="reading room 3",
        ae_title="WS3",
        addresses=["10.1.0.0/16"],
        grants=["query", "retrieve"],
        host="ws3.example.org",
        port=11112,
        tls=True,
        certificate="ab" * 32,
        character_set="ISO_IR 100",
        transfer_syntaxes=["1.2.840.10008.1.2.1"],
        commit_report="new",
    )
    made = service.SetStation(pb.SetStationRequest(station=station), CALL)
    assert (made.edited, made.version, made.verification) == (True, 1, "advisory")
    assert made.update_time.ToDatetime().replace(tzinfo=parts.clock.now().tzinfo) == parts.clock.now()
    answer = service.ListStations(pb.ListStationsRequest(), CALL)
    assert answer.stations[0] == made
    again = service.SetStation(pb.SetStationRequest(station=made, expected_version=1), CALL)
    assert again == made
    assert service.ListStations(pb.ListStationsRequest(known_version=1), CALL) == pb.ListStationsResponse(
        version=1, unchanged=True
    )
