"""The registry of stations: filled from the configuration first, then edited by persons (FEATURES GP5)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.database.v1 import stations_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.feed import Feed
from radmesh.database_server.schema import stations
from radmesh.dicom.domains import BY_OBJECT, DEFAULT, Domains
from radmesh.dicom.stations import Station, from_mapping, to_json
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, micros, time_of
from radmesh.transfer.stations import station_of

_MOST: Final = 5000


@dataclass(frozen=True, slots=True)
class Entry:
    """A station as the registry has it. `edited`: by a person; `update_time` in microseconds since 1970 UTC."""

    station: Station
    edited: bool
    version: int
    update_time: int


class StationRegistry:
    """Keeps the stations, and tells `domains` of this process who there is."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, domains: Domains) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._domains = domains

    def fill(self, configured: Sequence[Station]) -> None:
        """Take over what the configuration says of stations that no person has edited, or removed."""
        named: dict[str, Station] = {}
        for station in configured:
            key, number = station.key, 2
            while key in named:
                key, number = f"{station.key[:60]}-{number}", number + 1
            named[key] = replace(station, name=key)

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            known = {row.name: row for row in connection.execute(sa.select(stations))}
            changed = []
            for key, station in named.items():
                row = known.get(key)
                if row is None or (not row.edited and (row.removed or _station(row) != station)):
                    self._put(connection, station, edited=False)
                    changed.append(key)
            for key, row in known.items():
                if key not in named and not row.edited and not row.removed:
                    self._put(connection, _station(row), edited=False, removed=True)
                    changed.append(key)
            return None, [("station", key) for key in changed]

        self._feed.write(work)
        self.refresh()

    def refresh(self) -> None:
        """Let this process know the stations as they are now."""
        self._domains.stations.replace([entry.station for entry in self.list()])

    def version(self) -> int:
        """Return the version of the newest change; 0 = there was none."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(stations.c.version))).scalar() or 0)

    def list(self) -> list[Entry]:
        """Return all stations by name."""
        with self._database.read() as connection:
            query = sa.select(stations).where(~stations.c.removed).order_by(stations.c.name)
            return [_entry(row) for row in connection.execute(query)]

    def set(self, station: Station, expected_version: int) -> Entry:
        """Add a station, or replace the one of its name.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        if station.domain not in (DEFAULT, BY_OBJECT, *self._domains.names):
            raise invalid("domain", f"one of {', '.join((*self._domains.names, BY_OBJECT))}")
        station = replace(station, name=station.key)

        def work(connection: sa.Connection) -> tuple[Entry, Sequence[tuple[str, str]]]:
            self._database.serialise(connection)
            row = connection.execute(sa.select(stations).where(stations.c.name == station.name)).first()
            if expected_version and (row is None or row.removed or row.version != expected_version):
                now = 0 if row is None or row.removed else row.version
                raise RadmeshError(
                    "VERSION_CONFLICT",
                    "the station has changed since: read it again",
                    metadata={"version": str(now)},
                )
            if row is not None and row.edited and not row.removed and _station(row) == station:
                return _entry(row), ()  # the call is repeated where its answer was lost
            if connection.execute(sa.select(sa.func.count()).where(~stations.c.removed)).scalar_one() >= _MOST:
                raise invalid("station", f"there are {_MOST} stations already, and no more fit: remove one")
            self._put(connection, station, edited=True)
            changed = connection.execute(sa.select(stations).where(stations.c.name == station.name)).one()
            return _entry(changed), [("station", station.name)]

        entry, _ = self._feed.write(work)
        self.refresh()
        return entry  # type: ignore[return-value]

    def delete(self, name: str) -> None:
        """Remove a station.

        Raises:
            RadmeshError: STATION_NOT_FOUND.
        """

        def work(connection: sa.Connection) -> tuple[None, Sequence[tuple[str, str]]]:
            self._database.serialise(connection)
            row = connection.execute(sa.select(stations).where(stations.c.name == name, ~stations.c.removed)).first()
            if row is None:
                raise RadmeshError("STATION_NOT_FOUND", "there is no such station: see 'radmesh stations'")
            self._put(connection, _station(row), edited=True, removed=True)
            return None, [("station", name)]

        self._feed.write(work)
        self.refresh()

    def _put(self, connection: sa.Connection, station: Station, *, edited: bool, removed: bool = False) -> None:
        last = connection.execute(sa.select(sa.func.max(stations.c.version))).scalar() or 0
        values = {
            "name": station.name,
            "entry": to_json(station),
            "edited": edited,
            "removed": removed,
            "version": last + 1,
            "update_time": micros(self._clock.now()),
        }
        connection.execute(self._database.upsert(stations, ["name"], values))


def _station(row: Any) -> Station:
    return from_mapping(json.loads(row.entry))


def _entry(row: Any) -> Entry:
    return Entry(_station(row), row.edited, row.version, row.update_time)


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


def _message(entry: Entry) -> pb.Station:
    message = pb.Station(**json.loads(to_json(entry.station)), edited=entry.edited, version=entry.version)
    message.update_time.FromDatetime(time_of(entry.update_time))
    return message
