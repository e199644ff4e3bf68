"""The registry of stations: filled from the configuration first, then edited by persons (FEATURES GP5)."""

import json
from collections.abc import Sequence
from dataclasses import replace

from radmesh.api.database.v1 import stations_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.entries import Entries, Entry
from radmesh.database_server.feed import Feed
from radmesh.database_server.schema import stations
from radmesh.dicom.domains import BY_OBJECT, DEFAULT, Domains
from radmesh.dicom.stations import Station, from_mapping, to_json
from radmesh.runtime.clock import Clock
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, time_of
from radmesh.transfer.stations import station_of


class StationRegistry:
    """Keeps the stations, and tells `domains` of this process who there is."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, domains: Domains) -> None:
        self._entries = Entries[Station](database, feed, clock, stations, "station", to_json, from_mapping)
        self._domains = domains
        self.version = self._entries.version
        self.list = self._entries.list

    def fill(self, configured: Sequence[Station]) -> None:
        """Take over what the configuration says of stations that no person has edited, or removed."""
        named: dict[str, Station] = {}
        for station in configured:
            key, number = station.key, 2
            while key in named:
                key, number = f"{station.key[:60]}-{number}", number + 1
            named[key] = replace(station, name=key)
        self._entries.fill(named)
        self.refresh()

    def refresh(self) -> None:
        """Let this process know the stations as they are now."""
        self._domains.stations.replace([entry.value for entry in self.list()])

    def set(self, station: Station, expected_version: int) -> Entry[Station]:
        """Add a station, or replace the one of its name.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        if station.domain not in (DEFAULT, BY_OBJECT, *self._domains.names):
            raise invalid("domain", f"one of {', '.join((*self._domains.names, BY_OBJECT))}")
        entry = self._entries.put(station.key, replace(station, name=station.key), expected_version)
        self.refresh()
        return entry

    def delete(self, name: str) -> None:
        """Remove a station.

        Raises:
            RadmeshError: STATION_NOT_FOUND.
        """
        self._entries.remove(name)
        self.refresh()


@checked()
class StationService:
    """database.v1.StationService."""

    def __init__(self, registry: StationRegistry) -> None:
        self._registry = registry

    def ListStations(self, request: pb.ListStationsRequest, _call: Call) -> pb.ListStationsResponse:
        """List the stations, unless the caller knows them."""
        version = self._registry.version()
        if request.known_version and request.known_version == version:
            return pb.ListStationsResponse(version=version, unchanged=True)
        return pb.ListStationsResponse(version=version, stations=map(_message, self._registry.list()))

    def SetStation(self, request: pb.SetStationRequest, _call: Call) -> pb.Station:
        """Add or replace a station."""
        try:
            station = station_of(request.station)
        except ValueError as error:
            raise invalid("station", str(error)) from None
        return _message(self._registry.set(station, request.expected_version))

    def DeleteStation(self, request: pb.DeleteStationRequest, _call: Call) -> pb.DeleteStationResponse:
        """Remove a station."""
        self._registry.delete(request.name)
        return pb.DeleteStationResponse()


def _message(entry: Entry[Station]) -> pb.Station:
    message = pb.Station(**json.loads(to_json(entry.value)), edited=entry.edited, version=entry.version)
    message.update_time.FromDatetime(time_of(entry.update_time))
    return message
