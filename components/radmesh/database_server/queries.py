"""Finding: pages with cursors, wildcards, names in any script, and whose eyes are looking."""

import base64
import binascii
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.fuzzy_names import FuzzyNames, is_enough
from radmesh.database_server.prepared import Prepared, PreparedForRows, number, padded, text
from radmesh.database_server.registry import HELD, WEB_CACHE, WORST, sort_number
from radmesh.database_server.schema import (
    admissions,
    curated,
    instances,
    locations,
    patients,
    renditions,
    series,
    stores,
    studies,
)
from radmesh.dicom.matching import open_end
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

# A message has 4 MiB at most; a row without its long texts has about so much.
_PAGE_BYTES: Final = 3 << 20
_ROW_BYTES: Final = 500
# Added to the id of a row that is looked at after others.
_LATER: Final = 1 << 52
# Characters in a row that the trigram indexes can look up.
_INDEXED: Final = re.compile(r"[^*?%_]{3,}")
# Forms of a query that are kept ready, each with its statement.
_FORMS: Final = 256
FEW: Final = 2000
"""Patients or studies whose rows are looked up and sorted; of more than that, rows are read in their own order."""
NOTHING: Final[Any] = sa.literal_column("''")
"""Appended to a column that no index is to be used of."""
NameForm = tuple[tuple[bool, bool], ...]
"""Of each component group that a name asks for: are wildcards within it, and does the index of names find it."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose eyes: an ordinary viewer, a station (which sees what it sent), or one with the right `reconcile`."""

    station: str = ""
    include_held: bool = False

    def sees_held_of(self, station: str) -> bool:
        """Whether what `station` sent is seen though it is held."""
        return self.include_held or (bool(self.station) and self.station == station)


@dataclass(frozen=True, slots=True)
class StudyFilter:
    """What a study query asks for; empty = any."""

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    fuzzy_names: bool = False
    accession_number: str = ""
    study_instance_uids: tuple[str, ...] = ()
    study_date_from: str = ""
    study_date_to: str = ""
    modalities: tuple[str, ...] = ()
    study_description: str = ""
    verification: int = 0
    reading: int = 0
    acquisition: int = 0
    viewer: Viewer = field(default_factory=Viewer)


def page_size(asked: int, default: int, most: int) -> int:
    """Return how many rows a page has.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if asked < 0:
        raise RadmeshError("FIELD_INVALID", "page_size: 0 or more", metadata={"field": "page_size"})
    return min(asked or default, most)


def page(rows: list[dict[str, Any]], size: int, *texts: str) -> tuple[list[dict[str, Any]], bool]:
    """Return what of `rows` fits into a page and into a message, and whether there is more; `texts` are long fields."""
    return fitting(rows, size, lambda row: sum(len(row[name].encode()) for name in texts))


def fitting(
    rows: list[dict[str, Any]], size: int, length: Callable[[dict[str, Any]], int]
) -> tuple[list[dict[str, Any]], bool]:
    """Return the same, where `length` tells the bytes of a row's long fields."""
    room = _PAGE_BYTES
    for fitted, row in enumerate(rows[:size]):
        room -= _ROW_BYTES + length(row)
        if room < 0 and fitted:
            return rows[:fitted], True
    return rows[:size], len(rows) > size


class Cursor:
    """A page token: where to go on, bound to the query it came from."""

    def __init__(self, query: object) -> None:
        self._query = query

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(self._query).encode()).hexdigest()[:16]

    def read(self, token: str) -> list[Any] | None:
        """Return the position in a token; None for the first page.

        Raises:
            RadmeshError: FIELD_INVALID: it is none, or of another query.
        """
        if not token:
            return None
        try:
            digest, position = json.loads(base64.urlsafe_b64decode(token.encode()))
        except (binascii.Error, UnicodeError, ValueError, TypeError, RecursionError):
            digest, position = "", []
        if digest != self._digest or not isinstance(position, list):
            raise RadmeshError(
                "FIELD_INVALID",
                "the page token is of another query: begin with an empty one",
                metadata={"field": "page_token"},
            )
        return position

    def write(self, *position: Any) -> str:
        """Return a token that goes on behind `position`."""
        return base64.urlsafe_b64encode(json.dumps([self._digest, position]).encode()).decode()


def like_pattern(value: str) -> str:
    """Return a LIKE pattern (escaped by a backslash) of DICOM wildcards (PS3.4 C.2.2.2.4)."""
    escaped = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _expression(group: str) -> str:
    """Return the regular expression, in what Python and PostgreSQL share, of wildcards within a component group."""
    letters = {"*": "[^=]*", "?": "[^=]"}
    return "".join(letters.get(letter) or re.escape(letter) for letter in group)


def has_wildcard(value: str) -> bool:
    """Whether a value has wildcards."""
    return "*" in value or "?" in value


def matches(column: Any, value: str) -> Any:
    """Return the condition that a column matches a value, with wildcards if it has any."""
    value = value.replace("\0", "")
    return column.like(like_pattern(value), escape="\\") if has_wildcard(value) else column == value


def name_form(name: str) -> tuple[NameForm, list[str]]:
    """Return what the condition of a name is made of, and its values: `VALUES_OF_A_GROUP` for each component group."""
    form: list[tuple[bool, bool]] = []
    values: list[str] = []
    for part in unicodedata.normalize("NFKC", name.replace("\0", "")).casefold().strip().split("="):
        group = part.rstrip("^ ")
        if not group.strip("*"):
            continue
        # "Doe^*" is who has no given name, too: carets at its end are not kept of a name.
        bare = open_end(group)
        # With what stands around a group two letters that it begins with can be looked up.
        longest = max(_INDEXED.findall(f"={bare}=" if bare == group else f"={bare}"), key=len, default="")
        quoted = longest.replace('"', '""')
        # Stars at its ends stay within a group by themselves.
        form.append((has_wildcard(group.strip("*")), bool(longest)))
        expression = f"=({_expression(group)}|{_expression(bare)})="
        values += [f"%={like_pattern(group)}=%", f"%={like_pattern(bare)}=%", expression, f'"{quoted}"']
    return tuple(form), values


VALUES_OF_A_GROUP: Final = 4


def name_condition(
    database: Database, form: NameForm, names: Sequence[str], values: Sequence[str] = (), *, indexed: bool = True
) -> Any:
    """Return the condition that any component group of a patient's name matches (PS3.4 C.2.2.2.1.1).

    `names` are those of its parameters, in the order of the values of `name_form`; `indexed`: whether the index of
    names is asked, which finds everything at once.
    """
    binds = [sa.bindparam(name, values[place] if values else "", sa.String) for place, name in enumerate(names)]
    conditions: list[Any] = []
    for at, (wild, found) in enumerate(form):
        like, bare, expression, phrase = binds[VALUES_OF_A_GROUP * at : VALUES_OF_A_GROUP * (at + 1)]
        key = patients.c.name_key
        conditions.append(sa.or_(key.like(like, escape="\\"), key.like(bare, escape="\\")))
        if wild:
            # A wildcard of LIKE reaches into the next component group.
            conditions.append(key.regexp_match(expression))
        if found and indexed and database.sqlite:
            index = sa.table("patient_names", sa.column("rowid"), sa.column("patient_names"))
            conditions.append(patients.c.id.in_(sa.select(index.c.rowid).where(index.c.patient_names.match(phrase))))
    return sa.and_(*conditions) if conditions else sa.true()


def name_matches(database: Database, name: str) -> Any:
    """Return the condition of a name, with its values."""
    form, values = name_form(name)
    return name_condition(database, form, [f"name_{place}" for place in range(len(values))], values)


def visible(viewer: Viewer) -> Any:
    """Return the condition that a viewer sees something of a study."""
    if viewer.include_held:
        return sa.true()
    # A study may have nothing but variants: images whose UIDs another study had before.
    beside = (
        sa.exists()
        .where(instances.c.study == studies.c.id, admissions.c.id == instances.c.admission)
        .where(admissions.c.verification != HELD)
    )
    seen = sa.or_(studies.c.instance_count > studies.c.held_count, sa.and_(studies.c.instance_count == 0, beside))
    sent = sa.exists().where(admissions.c.study == studies.c.id, admissions.c.station == _station(viewer))
    return sa.or_(seen, sent) if viewer.station else seen


def has_modality(modalities: Sequence[str], viewer: Viewer) -> Any:
    """Return the condition that a study has one of the modalities, in what the viewer sees."""
    texts = (studies.c.modalities.like(f"%\\\\{like_pattern(m)}\\\\%", escape="\\") for m in modalities)
    if viewer.include_held:
        return sa.or_(*texts)
    seen = (
        sa.exists()
        .where(series.c.study == studies.c.id, sa.or_(*(matches(series.c.modality, m) for m in modalities)))
        .where(instances.c.series == series.c.id, admissions.c.id == instances.c.admission, not_held(viewer))
        # Its own series, whatever else is asked for.
        .correlate(studies)
    )
    return sa.and_(sa.or_(*texts), sa.or_(studies.c.verification != HELD, seen))


def web_caches(connection: sa.Connection, since: int) -> list[str]:
    """Return the web caches that have announced themselves since a time, by name."""
    living = sa.and_(stores.c.kind == WEB_CACHE, stores.c.heartbeat_time >= since)
    return list(connection.execute(sa.select(stores.c.store_id).where(living).order_by(stores.c.store_id)).scalars())


def curated_count(caches: Sequence[str]) -> Any:
    """Return the aggregate of rows of `curated` that says how much of a study the caches have, or the most of one.

    It is exact unless a study is in parts in several of the caches and in one that is not among them.
    """
    ours = sa.or_(curated.c.store_id.in_(caches), curated.c.store_id == "")
    elsewhere = sa.func.sum(sa.case((ours, 0), (curated.c.instance_count > 0, 1), else_=0))
    one = sa.case((curated.c.store_id.in_(caches), curated.c.instance_count), else_=0)
    return sa.case((elsewhere == 0, sa.func.max(curated.c.instance_count)), else_=sa.func.max(one))


class CuratedCounts:
    """How much the web caches that live have of studies."""

    def __init__(self, database: Database) -> None:
        living = sa.and_(stores.c.kind == WEB_CACHE, stores.c.heartbeat_time >= number("since"))
        self._select = PreparedForRows(
            database,
            lambda of: (
                sa.select(
                    curated.c.study,
                    curated.c.store_id,
                    curated.c.instance_count,
                    sa.case((living, 1), else_=0).label("living"),
                )
                .join(stores, stores.c.store_id == curated.c.store_id, isouter=True)
                .where(curated.c.study.in_(of), curated.c.instance_count > 0)
            ),
        )

    def of(self, connection: sa.Connection, studies_of: Sequence[int], since: int) -> dict[int, int]:
        """Return how many current instances of studies (row ids) any of the caches has; those with none are left out.

        `since`: the last heartbeat that counts.
        """
        every: dict[int, int] = {}
        most: dict[int, int] = {}
        living: dict[int, int] = {}
        silent: dict[int, int] = {}
        for study, store_id, count, lives in self._select.rows(connection, studies_of, since=since):
            if not store_id:
                # What all have together.
                every[study] = count
            elif lives:
                most[study] = max(most.get(study, 0), count)
                living[study] = living.get(study, 0) + 1
            else:
                silent[study] = silent.get(study, 0) + 1
        counts = {study: count if study in silent else every.get(study, count) for study, count in most.items()}
        # What several caches have parts of, while yet another is silent, is counted one by one.
        parted = [study for study, caches_of in living.items() if caches_of > 1 and study in silent]
        if parted:
            caches = web_caches(connection, since)
            either = sa.exists().where(renditions.c.instance == instances.c.id, renditions.c.store_id.in_(caches))
            for row in connection.execute(
                sa.select(instances.c.study, sa.func.count().label("counted"))
                .where(instances.c.study.in_(parted), instances.c.current, either)
                .group_by(instances.c.study)
            ):
                counts[row.study] = row.counted
        return counts


class Queries:
    """Reads studies, series, instances and patients.

    `living_since` returns the time of the last heartbeat (microseconds) that still counts.
    """

    def __init__(self, database: Database, living_since: Callable[[], int]) -> None:
        self._database = database
        self._living_since = living_since
        self.curated = CuratedCounts(database)
        self._fuzzy = FuzzyNames(database)
        self._studies = lru_cache(_FORMS)(self._prepare_studies)
        self._probe = lru_cache(_FORMS)(self._prepare_probe)
        self._instances = lru_cache(_FORMS)(self._prepare_instances)
        self._sent = PreparedForRows(
            database,
            lambda of: sa.select(
                admissions.c.study, admissions.c.station, admissions.c.verification, admissions.c.reason
            ).where(admissions.c.study.in_(of)),
        )
        self._series = Prepared(database, sa.select(series).where(series.c.study == number("study")))
        self._places = PreparedForRows(
            database,
            lambda of: (
                sa.select(locations, stores.c.target, stores.c.put_target, stores.c.heartbeat_time)
                .join(stores, stores.c.store_id == locations.c.store_id, isouter=True)
                .where(locations.c.instance.in_(of))
                .order_by(locations.c.id)
            ),
        )

    def _is_verified(self, verification: int, viewer: Viewer) -> Any:
        if viewer.include_held:
            return studies.c.verification == verification
        # A study that has something held is HELD itself; who does not see that sees the worst of the rest.
        seen = (
            sa.select(admissions.c.verification)
            .where(admissions.c.study == studies.c.id, not_held(viewer))
            .order_by(sa.case({state: rank for rank, state in enumerate(WORST)}, value=admissions.c.verification))
            .limit(1)
            .scalar_subquery()
        )
        as_it_is = studies.c.verification == verification if verification != HELD else sa.false()
        return sa.and_(
            studies.c.verification.in_((verification, HELD)),
            sa.or_(as_it_is, sa.and_(studies.c.verification == HELD, seen == verification)),
        )

    # -- studies

    def studies(self, wanted: StudyFilter, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of studies, newest first, and the next token."""
        cursor = Cursor(wanted)
        position = cursor.read(token)
        form, values = _form(wanted)
        fuzzy = wanted.patient_name if wanted.fuzzy_names and is_enough(wanted.patient_name) else ""
        named, names = name_form("" if fuzzy else wanted.patient_name)
        values |= {f"name_{place}": value for place, value in enumerate(names)}
        if position:
            values["date_before"], values["id_before"] = position
        with self._database.read() as connection:
            people = padded(
                self._fuzzy.find(connection, fuzzy) or [0] if fuzzy else self._few(connection, form, named, values)
            )
            values |= {f"person_{place}": person for place, person in enumerate(people)}
            select = self._studies(form, named, len(people), later=position is not None)
            found = select.mappings(connection, **values, size=size + 1)
            rows, more = page(found, size, *_STUDY_TEXTS)
            self._complete(connection, rows, wanted.viewer)
        return rows, cursor.write(rows[-1]["study_date"], rows[-1]["id"]) if more else ""

    def _few(
        self, connection: sa.Connection, form: StudyFilter, named: NameForm, values: Mapping[str, Any]
    ) -> list[int]:
        """Return the patients (rows) whom wildcards find, [0] for none; an empty list where they are many, or any.

        What is little is looked up and sorted; else studies are walked through by their dates.
        """
        wild = form.patient_id == "*"
        cheap = wild or any(indexed for _, indexed in named)
        if not (wild or named) or (not cheap and (form.study_date_from or form.study_date_to)):
            return []
        found = self._probe(named, wild=wild).rows(connection, **values, most=FEW + 1)
        return [row[0] for row in found] or [0] if len(found) <= FEW else []

    def _prepare_probe(self, named: NameForm, *, wild: bool) -> Prepared:
        conditions = [patients.c.patient_id.like(text("patient_id"), escape="\\")] if wild else []
        names = [f"name_{place}" for place in range(VALUES_OF_A_GROUP * len(named))]
        conditions.append(name_condition(self._database, named, names))
        return Prepared(self._database, sa.select(patients.c.id).where(*conditions).limit(number("most")))

    def _prepare_studies(self, form: StudyFilter, named: NameForm, people: int, *, later: bool) -> Prepared:
        """Return the statement of all queries of a form; `later`: of pages behind the first.

        `people`: how many patients are meant, if not 0; what they have is sorted, and no index read in its order.
        """
        date = studies.c.study_date.concat(NOTHING) if people else studies.c.study_date
        conditions = [visible(form.viewer)]
        for name, column in _TEXTS.items():
            if value := getattr(form, name):
                place = text(name)
                # Its index was asked before.
                searched = column.concat(NOTHING) if name == "patient_id" else column
                conditions.append(searched.like(place, escape="\\") if has_wildcard(value) else column == place)
        if named:
            names = [f"name_{place}" for place in range(VALUES_OF_A_GROUP * len(named))]
            conditions.append(name_condition(self._database, named, names, indexed=False))
        if people:
            conditions.append(patients.c.id.in_([number(f"person_{place}") for place in range(people)]))
        if form.study_instance_uids:
            conditions.append(studies.c.study_instance_uid.in_([text(name) for name in form.study_instance_uids]))
        if form.study_date_from:
            conditions.append(studies.c.study_date >= text("study_date_from"))
        if form.study_date_to:
            conditions.append(studies.c.study_date <= text("study_date_to"))
            if not form.study_date_from:
                conditions.append(studies.c.study_date != "")
        if form.modalities:
            conditions.append(has_modality(form.modalities, form.viewer))
        if form.verification:
            conditions.append(self._is_verified(form.verification, form.viewer))
        for axis, state in ((studies.c.reading, form.reading), (studies.c.acquisition, form.acquisition)):
            if state:
                conditions.append(axis == state)
        if later:
            before = sa.tuple_(text("date_before"), number("id_before"))
            conditions.append(sa.tuple_(date, studies.c.id) < before)
        query = (
            sa.select(studies, *_PATIENT)
            .join(patients, patients.c.id == studies.c.patient)
            .where(*conditions)
            .order_by(date.desc(), studies.c.id.desc())
            .limit(number("size"))
        )
        return Prepared(self._database, query)

    def _complete(self, connection: sa.Connection, rows: Sequence[dict[str, Any]], viewer: Viewer) -> None:
        """Add stations and what is curated, and leave out what held instances must not show."""
        ids = [row["id"] for row in rows]
        if not ids:
            return
        since = self._living_since()
        counts = self.curated.of(connection, ids, since)
        sent: dict[int, list[Any]] = {}
        for study, *admission in self._sent.rows(connection, ids):
            sent.setdefault(study, []).append(admission)
        for row in rows:
            every = sent.get(row["id"], [])
            seen = [one for one in every if one[1] != HELD or viewer.sees_held_of(one[0])]
            row["stations"] = sorted({station for station, _, _ in seen})
            row["modalities"] = sorted(m for m in row["modalities"].split("\\") if m)
            row["partly_held"] = len(seen) < len(every)
            row["curated_count"] = counts.get(row["id"], 0)
            if row["partly_held"]:
                self._without_held(connection, row, viewer, web_caches(connection, since))
                worst = min(seen, key=lambda one: WORST.index(one[1]) if one[1] in WORST else len(WORST))
                _, row["verification"], row["verification_reason"] = worst

    def _without_held(
        self, connection: sa.Connection, study: dict[str, Any], viewer: Viewer, caches: Sequence[str]
    ) -> None:
        def total(condition: Any, value: Any = 1) -> Any:
            return sa.func.coalesce(sa.func.sum(sa.case((condition, value), else_=0)), 0)

        current = instances.c.current
        made = sa.exists().where(renditions.c.instance == instances.c.id, renditions.c.store_id.in_(caches))
        seen = (instances.c.study == study["id"], admissions.c.id == instances.c.admission, not_held(viewer))
        counted = (
            connection.execute(
                sa.select(
                    total(current).label("instance_count"),
                    sa.func.count(sa.distinct(instances.c.series)).label("series_count"),
                    total(current, instances.c.length).label("bytes"),
                    total(~current).label("variant_count"),
                    total(sa.and_(current, made)).label("curated_count"),
                    total(sa.and_(current, instances.c.defect != "")).label("defective_count"),
                    sa.func.min(instances.c.receive_time).label("first_receive_time"),
                    sa.func.max(instances.c.receive_time).label("last_receive_time"),
                ).where(*seen)
            )
            .mappings()
            .one()
        )
        study.update({name: int(value or 0) for name, value in counted.items()})
        study["modalities"] = sorted(
            modality
            for modality in connection.execute(
                sa.select(series.c.modality).distinct().where(instances.c.series == series.c.id, *seen)
            ).scalars()
            if modality
        )

    def study(self, study_instance_uid: str, viewer: Viewer) -> dict[str, Any]:
        """Return a study.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        found, _ = self.studies(StudyFilter(study_instance_uids=(study_instance_uid,), viewer=viewer), 1, "")
        if not found:
            raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
        return found[0]

    def series(self, study: Mapping[str, Any], viewer: Viewer) -> list[dict[str, Any]]:
        """Return the series of a study, by number."""
        with self._database.read() as connection:
            rows = self._series.mappings(connection, study=study["id"])
            if study["partly_held"]:
                counts: dict[int, int] = {
                    row.series: row.counted
                    for row in connection.execute(
                        sa.select(
                            instances.c.series, sa.func.sum(sa.case((instances.c.current, 1), else_=0)).label("counted")
                        )
                        .join(admissions, admissions.c.id == instances.c.admission)
                        .where(instances.c.study == study["id"], not_held(viewer))
                        .group_by(instances.c.series)
                    )
                }
                rows = [{**row, "instance_count": counts[row["id"]]} for row in rows if row["id"] in counts]
        return sorted(rows, key=lambda row: (sort_number(row["series_number"]), row["series_instance_uid"]))

    # -- instances

    def instances(
        self,
        study_instance_uid: str,
        *,
        series_instance_uid: str,
        sop_instance_uid: str,
        viewer: Viewer,
        variants: bool,
        size: int,
        token: str,
    ) -> tuple[list[dict[str, Any]], str]:
        """Return a page of instances with their locations, and the next token.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        study = self.study(study_instance_uid, viewer)
        cursor = Cursor((study_instance_uid, series_instance_uid, sop_instance_uid, viewer, variants))
        position = cursor.read(token)
        select = self._instances(
            one_series=bool(series_instance_uid),
            one=bool(sop_instance_uid),
            viewer=eyes_of(viewer),
            variants=variants,
            later=position is not None,
        )
        values = dict(zip(_INSTANCE_ORDER, position, strict=False)) if position else {}
        with self._database.read() as connection:
            found = select.mappings(
                connection,
                study=study["id"],
                series_instance_uid=series_instance_uid,
                sop_instance_uid=sop_instance_uid,
                viewer_station=viewer.station,
                size=size + 1,
                **values,
            )
            rows, more = page(found, size, "remarks")
            places: dict[int, list[dict[str, Any]]] = {}
            for place in self._places.mappings(connection, [row["id"] for row in rows]):
                places.setdefault(place["instance"], []).append(place)
        for row in rows:
            row["locations"] = places.get(row["id"], [])
        if not more:
            return rows, ""
        last = rows[-1]
        return rows, cursor.write(
            last["series_instance_uid"], last["sort_number"], last["sop_instance_uid"], last["beside"], last["id"]
        )

    def _prepare_instances(
        self, *, one_series: bool, one: bool, viewer: Viewer, variants: bool, later: bool
    ) -> Prepared:
        conditions = [instances.c.study == number("study")]
        if not variants:
            conditions.append(instances.c.current)
        if one_series:
            conditions.append(series.c.series_instance_uid == text("series_instance_uid"))
        if one:
            conditions.append(instances.c.sop_instance_uid == text("sop_instance_uid"))
        if not viewer.include_held:
            conditions.append(not_held(viewer))
        order = (
            series.c.series_instance_uid,
            instances.c.sort_number,
            instances.c.sop_instance_uid,
            sa.case((instances.c.current, 0), else_=1),
            instances.c.id,
        )
        if later:
            places = (text(_INSTANCE_ORDER[0]), number(_INSTANCE_ORDER[1]), text(_INSTANCE_ORDER[2]))
            conditions.append(sa.tuple_(*order) > sa.tuple_(*places, *map(number, _INSTANCE_ORDER[3:])))
        query = (
            sa.select(
                instances,
                series.c.series_instance_uid,
                admissions.c.verification.label("verification"),
                order[3].label("beside"),
            )
            .join(series, series.c.id == instances.c.series)
            .join(admissions, admissions.c.id == instances.c.admission)
            .where(*conditions)
            .order_by(*order)
            .limit(number("size"))
        )
        return Prepared(self._database, query)

    # -- patients

    def patients(
        self, patient_id: str, issuer: str, name: str, viewer: Viewer, size: int, token: str
    ) -> tuple[list[dict[str, Any]], str]:
        """Return a page of patients with how many of their studies the viewer sees, and the next token.

        A patient may have rows as received, as its RIS tells it, and as people corrected it: it is one all the same,
        and looks as its RIS says, if that was asked.
        """
        cursor = Cursor((patient_id, issuer, name, viewer))
        position = cursor.read(token)
        conditions = [visible(viewer)]
        if patient_id.strip("*"):
            conditions.append(matches(patients.c.patient_id, patient_id))
        if issuer.strip("*"):
            conditions.append(matches(patients.c.issuer_of_patient_id, issuer))
        if name:
            conditions.append(name_matches(self._database, name))
        if position:
            conditions.append(patients.c.who > position[0])
        rank = sa.case((sa.func.substr(patients.c.identity, 1, 4) == "ris\x1f", 0), else_=_LATER) + patients.c.id
        query = (
            sa.select(patients.c.who, sa.func.min(rank).label("rank"), sa.func.count(studies.c.id).label("studies"))
            .join(studies, studies.c.patient == patients.c.id)
            .where(*conditions)
            .group_by(patients.c.who)
            .order_by(patients.c.who)
            .limit(size + 1)
        )
        with self._database.read() as connection:
            people = {row.rank % _LATER: row.studies for row in connection.execute(query)}
            keys = list(people)
            found: dict[int, Any] = {}
            for start in range(0, len(keys), 500):
                chosen = sa.select(patients).where(patients.c.id.in_(keys[start : start + 500]))
                found |= {row["id"]: row for row in connection.execute(chosen).mappings()}
        every = [{**found[key], "study_count": count} for key, count in people.items()]
        rows, more = page(every, size, "patient_id", "issuer_of_patient_id", "patient_name")
        return rows, cursor.write(rows[-1]["who"]) if more else ""


def not_held(viewer: Viewer) -> Any:
    """Return the condition that an admission is not held from a viewer."""
    free = admissions.c.verification != HELD
    return sa.or_(free, admissions.c.station == _station(viewer)) if viewer.station else free


def _station(viewer: Viewer) -> Any:
    # By name: a statement that is kept serves every station.
    return sa.bindparam("viewer_station", viewer.station, sa.String)


def eyes_of(viewer: Viewer) -> Viewer:
    """Return what a statement must know of a viewer: not which station it is."""
    return Viewer("*" if viewer.station else "", viewer.include_held)


def _form(wanted: StudyFilter) -> tuple[StudyFilter, dict[str, Any]]:
    """Return the form of a query, which all have that differ in values only, and the values.

    Modalities and states are part of the form: conditions are made of them.
    """
    values: dict[str, Any] = {"viewer_station": wanted.viewer.station}
    form: dict[str, Any] = {}
    for name in _TEXTS:
        value = getattr(wanted, name).replace("\0", "")
        wild = has_wildcard(value)
        form[name] = ("*" if wild else "=") if value.strip("*") else ""
        values[name] = like_pattern(value) if wild else value
    uids = wanted.study_instance_uids
    # As many places as the next power of two.
    places = tuple(f"uid_{place}" for place in range(1 << (len(uids) - 1).bit_length() if uids else 0))
    values |= {name: uids[min(place, len(uids) - 1)] for place, name in enumerate(places)}
    for name in ("study_date_from", "study_date_to"):
        values[name] = getattr(wanted, name)
        form[name] = "=" if values[name] else ""
    eyes = eyes_of(wanted.viewer)
    return replace(wanted, **form, patient_name="", study_instance_uids=places, viewer=eyes), values


# What an equal or wildcard match is of: field of StudyFilter -> column.
_TEXTS: Final[Mapping[str, Any]] = {
    "patient_id": patients.c.patient_id,
    "issuer_of_patient_id": patients.c.issuer_of_patient_id,
    "accession_number": studies.c.accession_number,
    "study_description": studies.c.study_description,
}
# Where a page of instances ends.
_INSTANCE_ORDER: Final = ("series_before", "number_before", "sop_before", "beside_before", "id_before")
_PATIENT: Final = (
    patients.c.patient_id,
    patients.c.issuer_of_patient_id,
    patients.c.patient_name,
    patients.c.patient_birth_date,
    patients.c.patient_sex,
)
_STUDY_TEXTS: Final = (
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "accession_number",
    "study_time",
    "study_id",
    "study_description",
    "referring_physician_name",
)
# What may be corrected: DICOM keyword -> field of a study.
OVERLAID: Final = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "AccessionNumber": "accession_number",
    "StudyDescription": "study_description",
    "ReferringPhysicianName": "referring_physician_name",
}
