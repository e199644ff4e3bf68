"""Which store takes a study, and the ticket that says so."""

from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.registry import Registry
from radmesh.database_server.schema import placements
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

ARCHIVE: Final = 1
# Studies placed within this time count against a store: room alone would send every new study to the same one.
_RECENT: Final = timedelta(seconds=60)


class Placement:
    """Places studies. A placement is an insert under a unique key, so that concurrent callers get the same store."""

    def __init__(self, database: Database, registry: Registry, clock: Clock) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock

    def place(self, study_instance_uid: str, avoid: str = "") -> dict[str, Any]:
        """Return the store of a study; it moves only when its store is silent, not accepting, or to be avoided.

        Raises:
            RadmeshError: NO_ARCHIVE.
        """
        usable = {
            s["store_id"]: s for s in self._registry.stores() if s["kind"] == ARCHIVE and s["alive"] and s["accepting"]
        }
        if not usable:
            raise RadmeshError("NO_ARCHIVE", "no archive is alive with room")

        def work(connection: sa.Connection) -> str:
            mine = placements.c.study_instance_uid == study_instance_uid
            current = connection.execute(sa.select(placements.c.store_id).where(mine)).scalar()
            if current in usable and (current != avoid or len(usable) == 1):
                return str(current)
            chosen = self._choose(connection, usable, avoid)
            now = micros(self._clock.now())
            if current is None:
                connection.execute(
                    self._database.insert_new(placements).values(
                        study_instance_uid=study_instance_uid, store_id=chosen, time=now
                    )
                )
            else:
                connection.execute(
                    sa.update(placements)
                    .where(mine, placements.c.store_id == current)
                    .values(store_id=chosen, time=now)
                )
            # Whoever was first has decided.
            return str(connection.execute(sa.select(placements.c.store_id).where(mine)).scalar_one())

        with self._database.read() as connection:
            current = connection.execute(
                sa.select(placements.c.store_id).where(placements.c.study_instance_uid == study_instance_uid)
            ).scalar()
        if current in usable and (current != avoid or len(usable) == 1):
            return usable[current]
        store_id = self._database.write(work)
        if store_id not in usable:
            raise RadmeshError("NO_ARCHIVE", "the study's archive was lost while it was placed: try again")
        return usable[store_id]

    def _choose(self, connection: sa.Connection, usable: dict[str, dict[str, Any]], avoid: str) -> str:
        since = micros(self._clock.now() - _RECENT)
        recent: dict[str, int] = {
            row.store_id: row.placed
            for row in connection.execute(
                sa.select(placements.c.store_id, sa.func.count().label("placed"))
                .where(placements.c.store_id.in_(usable), placements.c.time >= since)
                .group_by(placements.c.store_id)
            )
        }
        return max(
            usable,
            key=lambda s: (s != avoid, usable[s]["free_bytes"] / (1 + recent.get(s, 0)), s),
        )
