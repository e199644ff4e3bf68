"""Keeps a component's list of stations as the Database Server's registry has it, and on disk for when it is away."""

import json
from pathlib import Path
from typing import Final

from radmesh.api.database.v1 import stations_pb2
from radmesh.dicom.stations import Station, Stations, from_mapping, to_json
from radmesh.runtime.context import Context
from radmesh.runtime.files import write_atomic

_SERVICE: Final = stations_pb2.DESCRIPTOR.services_by_name["StationService"]
# A change is in force within 5 s, also where an answer takes its time.
_SECONDS: Final = 2.0
_OF_THE_DATABASE: Final = ("edited", "version", "update_time")


class StationKeeper:
    """Asks for the stations every 2 s, and puts them into `stations`.

    Args:
        context: of the component; the list is kept in its data directory.
        stations: what the component looks stations up in; holds those of the configuration at first.
    """

    def __init__(self, context: Context, stations: Stations) -> None:
        self._stations = stations
        self._path: Path = context.data / "stations.json"
        self._log = context.log
        self._registry = context.client(_SERVICE, "database-server")
        self._version = -1
        self._worker = context.worker("stations", self._step)

    def start(self) -> None:
        """Begin with what was known last."""
        try:
            self._stations.replace([from_mapping(each) for each in json.loads(self._path.read_bytes())])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self._log.warning("list of stations not readable", path=str(self._path), error=type(error).__name__)
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        self._worker.stop(grace)

    def _step(self) -> float:
        answer = self._registry.ListStations(stations_pb2.ListStationsRequest(known_version=max(0, self._version)))
        if not answer.unchanged and answer.version != self._version:
            found = []
            for message in answer.stations:
                try:
                    found.append(station_of(message))
                except ValueError as error:  # a newer registry knows more than this component
                    self._log.warning("station not usable", station=message.name, text=str(error))
            self._stations.replace(found)
            write_atomic(self._path, f"[{','.join(map(to_json, found))}]".encode())
            self._version = answer.version
            self._log.info("stations", count=len(found), version=answer.version)
        return _SECONDS


def station_of(message: stations_pb2.Station) -> Station:
    """Return the station of a message; a text or list that is empty is the default.

    Raises:
        ValueError: a value is not allowed.
    """
    values = {field.name: value for field, value in message.ListFields() if field.name not in _OF_THE_DATABASE}
    return from_mapping(
        {"ae_title": "", "grants": ()} | {n: tuple(v) if not isinstance(v, str | int) else v for n, v in values.items()}
    )
