"""Reads objects from the best of their copies."""

from typing import Any, Final

from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import Location

# Residences, best first: what is in a cache, then what is in a permanent tier, then a spool.
_BEST: Final = (2, 1, 3, 4, 0)


def copies(context: Context, instance: Any) -> list[Location]:
    """Return where an instance (database.v1.Instance) can be read now, best first.

    Raises:
        RadmeshError: PEER_UNAVAILABLE.
    """
    places = sorted(instance.locations, key=lambda place: _BEST.index(place.residence))
    locations = [
        Location(context.channels.get(place.target), ObjectReference.of(place.object))
        for place in places
        if place.target
    ]
    if not locations:
        raise RadmeshError("PEER_UNAVAILABLE", "no store that has the instance answers: try again")
    return locations
