"""What the Curators made: which web cache has which pictures, and which studies want some."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import (
    Cursor,
    Queries,
    Viewer,
    curated_count,
    not_held,
    page,
    web_caches,
)
from radmesh.database_server.registry import WEB_CACHE
from radmesh.database_server.schema import admissions, curated, instances, renditions, series, stores, studies
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

# Studies that one transaction forgets the pictures of.
_DROPPED_AT_ONCE: Final = 32
_LOOKED_UP_AT_ONCE: Final = 500
# A web cache that is silent for longer is not waited for; one that comes back is registered anew.
_LOST: Final = timedelta(days=1)
# After a start every store looks silent for as long as the database was away.
_SETTLED: Final = timedelta(hours=1)


# SOP Instance UID, transfer syntax, SHA-256
Content: TypeAlias = tuple[str, str, bytes]
_CONTENT: Final = ("sop_instance_uid", "transfer_syntax_uid", "sha256")


@dataclass(frozen=True, slots=True)
class Rendition:
    """What a web cache has of a content."""

    store_id: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: bytes
    state: int
    reason: str = ""
    frame: int = 0
    number_of_frames: int = 0
    served_syntax_uid: str = ""
    photometric_interpretation: str = ""
    derived: bool = False
    bytes: int = 0

    @property
    def content(self) -> Content:
        """What it is made from."""
        return self.sop_instance_uid, self.transfer_syntax_uid, self.sha256


class Renditions:
    """Registers, finds and forgets renditions. `living_since` is that of `Queries`."""

    def __init__(
        self, database: Database, feed: Feed, clock: Clock, queries: Queries, living_since: Callable[[], int]
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._queries = queries
        self._living_since = living_since
        self._started = clock.now()

    # -- writing

    def register(self, made: Sequence[Rendition]) -> None:
        """Add renditions, or replace those of the same content; content that nobody knows is left out.

        Raises:
            RadmeshError: STORE_UNKNOWN, FIELD_INVALID, DATABASE_UNAVAILABLE.
        """
        if not made:
            return
        store_id = made[0].store_id
        if any(rendition.store_id != store_id for rendition in made):
            raise RadmeshError(
                "FIELD_INVALID", "the renditions of a request are of one web cache", metadata={"field": "renditions"}
            )
        by_content = {rendition.content: rendition for rendition in made}

        def work(c: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            kind = c.execute(sa.select(stores.c.kind).where(stores.c.store_id == store_id)).scalar()
            if kind is None:
                raise RadmeshError("STORE_UNKNOWN", "the web cache has not announced itself: send a heartbeat first")
            if kind != WEB_CACHE:
                raise RadmeshError("FIELD_INVALID", "only web caches have renditions", metadata={"field": "store_id"})
            known = self._instances(c, by_content)
            touched = {study: uid for _, study, uid in known.values()}
            self._lock(c, touched, "", store_id)
            rows = []
            for content, (instance, _, _) in known.items():
                values = {k: v for k, v in asdict(by_content[content]).items() if k not in _CONTENT}
                rows.append({"instance": instance, **values})
            fresh = self._fresh(c, store_id, rows)
            if not fresh:
                return None, []
            mine = {row["instance"] for row in fresh}
            old = sa.and_(renditions.c.store_id == store_id, renditions.c.instance.in_(mine))
            again = set(c.execute(sa.delete(renditions).where(old).returning(renditions.c.instance)).scalars())
            self._count(c, store_id, mine - again)
            c.execute(sa.insert(renditions), fresh)
            changed = {study: uid for instance, study, uid in known.values() if instance in mine}
            return None, [("rendition", uid) for uid in changed.values()]

        self._feed.write(work)

    @staticmethod
    def _instances(c: sa.Connection, wanted: Collection[Content]) -> dict[Content, tuple[int, int, str]]:
        """Return (instance, study, Study Instance UID) of each content that is known."""
        found = {}
        uids = list(dict.fromkeys(content[0] for content in wanted))
        for start in range(0, len(uids), _LOOKED_UP_AT_ONCE):
            for row in c.execute(
                sa.select(
                    *(instances.c[name] for name in _CONTENT),
                    instances.c.id,
                    instances.c.study,
                    studies.c.study_instance_uid,
                )
                .join(studies, studies.c.id == instances.c.study)
                .where(instances.c.sop_instance_uid.in_(uids[start : start + _LOOKED_UP_AT_ONCE]))
            ):
                content = (row.sop_instance_uid, row.transfer_syntax_uid, bytes(row.sha256))
                if content in wanted:
                    found[content] = (row.id, row.study, row.study_instance_uid)
        return found

    def _lock(self, c: sa.Connection, of: Collection[int], *names: str) -> None:
        """Let one transaction at a time change what web caches have of a study, so that the counts stay true."""
        insert = (sqlite if self._database.sqlite else postgresql).insert(curated)
        statement = insert.on_conflict_do_update(
            index_elements=["study", "store_id"], set_={"instance_count": curated.c.instance_count}
        )
        # One after the other, in everybody's order.
        rows = [{"study": study, "store_id": name, "instance_count": 0} for name in names for study in sorted(of)]
        if rows:
            c.execute(statement, rows)

    @staticmethod
    def _count(c: sa.Connection, store_id: str, added: Collection[int]) -> None:
        """Count instances that a web cache is about to have, and did not have before."""
        other = sa.exists().where(renditions.c.instance == instances.c.id)
        counts = c.execute(
            sa.select(
                instances.c.study,
                sa.func.count().label("mine"),
                sa.func.sum(sa.case((other, 0), else_=1)).label("first"),
            )
            .where(instances.c.id.in_(added), instances.c.current)
            .group_by(instances.c.study)
        ).all()
        for study, mine, first in counts:
            for name, more in ((store_id, mine), ("", first)):
                c.execute(
                    sa.update(curated)
                    .where(curated.c.study == study, curated.c.store_id == name)
                    .values(instance_count=curated.c.instance_count + more)
                )

    @staticmethod
    def _fresh(c: sa.Connection, store_id: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those rows that say something new."""
        before: dict[int, dict[str, Any]] = {}
        ids = [row["instance"] for row in rows]
        for start in range(0, len(ids), _LOOKED_UP_AT_ONCE):
            mine = renditions.c.instance.in_(ids[start : start + _LOOKED_UP_AT_ONCE])
            for row in c.execute(sa.select(renditions).where(renditions.c.store_id == store_id, mine)).mappings():
                before[row["instance"]] = dict(row)
        return [row for row in rows if before.get(row["instance"]) != row]

    def drop(self, store_id: str, study_instance_uid: str = "") -> int:
        """Forget what a web cache has, of one study or of all; return how many renditions that were.

        Of all: some studies at a time; whoever is cut off asks again.
        """
        dropped, last = 0, 0
        while True:
            chosen = sa.select(curated.c.study).where(curated.c.store_id == store_id, curated.c.study > last)
            if study_instance_uid:
                chosen = chosen.join(studies, studies.c.id == curated.c.study).where(
                    studies.c.study_instance_uid == study_instance_uid
                )
            gone, last = self._drop(store_id, chosen)
            dropped += gone
            if not last:
                return dropped

    def _drop(self, store_id: str, chosen: sa.Select[tuple[int]]) -> tuple[int, int]:
        """Forget some of the chosen studies; return how many renditions, and the last study (0: that was all)."""
        some = chosen.order_by(curated.c.study).limit(_DROPPED_AT_ONCE)

        def work(c: sa.Connection) -> tuple[tuple[int, int], list[tuple[str, str]]]:
            ids: Sequence[Any] = c.execute(some).scalars().all()
            if not ids:
                return (0, 0), []
            self._lock(c, ids, "")
            theirs = sa.select(instances.c.id).where(instances.c.study.in_(ids))
            gone = c.execute(
                sa.delete(renditions).where(renditions.c.store_id == store_id, renditions.c.instance.in_(theirs))
            ).rowcount
            c.execute(sa.delete(curated).where(curated.c.store_id == store_id, curated.c.study.in_(ids)))
            recount(c, ids)
            uids = c.execute(sa.select(studies.c.study_instance_uid).where(studies.c.id.in_(ids))).scalars()
            last = ids[-1] if len(ids) == _DROPPED_AT_ONCE else 0
            return (gone, last), [("rendition", uid) for uid in uids]

        answer: Any
        answer, _ = self._feed.write(work)
        return int(answer[0]), int(answer[1])

    def prune(self) -> bool:
        """Forget, some at a time, what web caches had that are silent for a day; return whether there may be more."""
        now = self._clock.now()
        if now - self._started < _SETTLED:
            return False
        lost = (stores.c.kind == WEB_CACHE, stores.c.heartbeat_time < micros(now - _LOST))
        with self._database.read() as c:
            silent = sa.select(curated.c.store_id).join(stores, stores.c.store_id == curated.c.store_id).where(*lost)
            store_id = c.execute(silent.limit(1)).scalar()
        if store_id is None:
            return False
        self._drop(store_id, sa.select(curated.c.study).where(curated.c.store_id == store_id))
        return True

    # -- reading

    def find(
        self,
        study_instance_uid: str,
        *,
        series_instance_uid: str = "",
        sop_instance_uid: str = "",
        viewer: Viewer,
        size: int,
        token: str,
    ) -> tuple[list[dict[str, Any]], str]:
        """Return a page of renditions of current instances, those of living caches first, and the next token.

        `target` is empty where the web cache is silent.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, FIELD_INVALID.
        """
        study = self._queries.study(study_instance_uid, viewer)
        cursor = Cursor(("renditions", study_instance_uid, series_instance_uid, sop_instance_uid, viewer))
        position = cursor.read(token)
        conditions = [instances.c.study == study["id"], instances.c.current]
        if series_instance_uid:
            conditions.append(series.c.series_instance_uid == series_instance_uid)
        if sop_instance_uid:
            conditions.append(instances.c.sop_instance_uid == sop_instance_uid)
        if not viewer.include_held:
            conditions.append(not_held(viewer))
        with self._database.read() as c:
            living = web_caches(c, self._living_since())
            # The order of all pages is that of the first: no cache that falls silent meanwhile makes one be left out.
            first = position[0] if position else living
            order = (
                series.c.series_instance_uid,
                instances.c.sort_number,
                instances.c.sop_instance_uid,
                sa.case((renditions.c.store_id.in_(first), 0), else_=1),
                renditions.c.store_id,
            )
            if position:
                conditions.append(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, position[1:])))
            query = (
                sa.select(
                    renditions,
                    *(instances.c[name] for name in _CONTENT),
                    instances.c.sort_number,
                    series.c.series_instance_uid,
                    stores.c.target,
                    order[3].label("silent"),
                )
                .join(instances, instances.c.id == renditions.c.instance)
                .join(series, series.c.id == instances.c.series)
                .join(admissions, admissions.c.id == instances.c.admission)
                .join(stores, stores.c.store_id == renditions.c.store_id)
                .where(*conditions)
                .order_by(*order)
                .limit(size + 1)
            )
            rows, more = page([dict(row) for row in c.execute(query).mappings()], size, "target")
        for row in rows:
            row["target"] = row["target"] if row["store_id"] in living else ""
        if not more:
            return rows, ""
        last = (rows[-1][n] for n in ("series_instance_uid", "sort_number", "sop_instance_uid", "silent", "store_id"))
        return rows, cursor.write(first, *last)

    def uncurated(self, size: int, token: str) -> tuple[list[str], str]:
        """Return a page of studies that have current instances without a rendition in a living cache, oldest first.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        cursor = Cursor("uncurated")
        position = cursor.read(token) or [-(1 << 62), 0]
        key = (studies.c.first_receive_time, studies.c.id)
        found: list[str] = []
        with self._database.read() as c:
            since = self._living_since()
            caches = web_caches(c, since)
            most = sa.select(curated_count(caches)).where(curated.c.study == studies.c.id).scalar_subquery()
            while True:
                rows = c.execute(
                    sa.select(*key, studies.c.study_instance_uid, studies.c.instance_count)
                    .where(
                        sa.tuple_(*key) > sa.tuple_(*map(sa.literal, position)),
                        studies.c.instance_count > sa.func.coalesce(most, 0),
                    )
                    .order_by(*key)
                    .limit(size + 1)
                ).all()
                counts = self._queries.curated.of(c, [row.id for row in rows], since)
                for row in rows:
                    if row.instance_count <= counts.get(row.id, 0):
                        continue
                    if len(found) == size:
                        return found, cursor.write(*position)
                    found.append(row.study_instance_uid)
                    position = [row.first_receive_time, row.id]
                if len(rows) <= size:
                    return found, ""
                position = [rows[-1].first_receive_time, rows[-1].id]


def recount(c: sa.Connection, of: Collection[int]) -> None:
    """Count anew what web caches have of the current instances of studies (row ids)."""
    theirs = sa.or_(curated.c.store_id == "", renditions.c.store_id == curated.c.store_id)
    counted = (
        sa.select(sa.func.count(sa.distinct(instances.c.id)))
        .select_from(instances.join(renditions, renditions.c.instance == instances.c.id))
        .where(instances.c.study == curated.c.study, instances.c.current, theirs)
        .scalar_subquery()
    )
    c.execute(sa.update(curated).where(curated.c.study.in_(of)).values(instance_count=counted))
