"""C-FIND over the tables: what matches an identifier, as rows that are encoded already (PS3.4 C.4.1).

Rows are read page by page behind the last one, never with a transaction held open for a slow station; what the
tables have no column for is matched, or taken from the first header of the series, afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.dicom_query_model import (
    BY_TAG,
    IMAGE,
    LEVELS,
    MODELS,
    PATIENT,
    SERIES,
    STUDY,
    UNIQUE,
    Attribute,
)
from radmesh.database_server.dicom_query_terms import Conditions, Term, Terms
from radmesh.database_server.fuzzy_names import FuzzyNames, is_enough
from radmesh.database_server.paging import Pages
from radmesh.database_server.prepared import Prepared, PreparedForRows, number, text
from radmesh.database_server.queries import FEW, NOTHING, Viewer, eyes_of, not_held, visible
from radmesh.database_server.schema import admissions, instances, patients, series, studies
from radmesh.dicom import matching
from radmesh.dicom.header import QueryableHeader
from radmesh.dicom.identifier import QUERY_RETRIEVE_LEVEL, Key, RowWriter, tag_text
from radmesh.dicom.uids import is_valid_uid
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

LIMIT: Final = 100_000
"""Rows of an answer unless less is asked for."""
_UIDS_MOST: Final = 4096
_LONGEST: Final = 1024
# Rows of the pages: the first ones are seen at once.
_PAGES: Final = (64, 256, 1024, 2048)
# Added to the id of a row that is looked at after others.
_LATER: Final = 1 << 52
# Statements that are kept.
_FORMS: Final = 512
_INSTANCE_AVAILABILITY, _RETRIEVE_AE_TITLE = 0x00080056, 0x00080054
_MODALITY, _MODALITIES, _INSTANCE_NUMBER, _PATIENT_NAME = 0x00080060, 0x00080061, 0x00200013, 0x00100010
_STUDY_DATE, _STUDY_TIME = 0x00080020, 0x00080030
_OF_STUDY: Final = frozenset(("study_series", "study_instances", "modalities"))
# Of every row, whatever was asked for: what it is known by, and what is still to be found out.
_ALWAYS: Final[Mapping[str, tuple[Any, ...]]] = {
    PATIENT: (patients.c.id, patients.c.who),
    STUDY: (studies.c.id, studies.c.study_date, studies.c.held_count, patients.c.who),
    SERIES: (series.c.id, studies.c.id, studies.c.held_count, patients.c.who),
    IMAGE: (instances.c.id, series.c.id, studies.c.id, studies.c.held_count, patients.c.who),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it came: see database.v1.FindRequest."""

    model: int
    level: str
    keys: tuple[Key, ...]
    viewer: Viewer = field(default_factory=Viewer)
    implicit: bool = False
    character_set: str = ""
    retrieve_ae_title: str = ""
    relational: bool = False
    combined_date_time: bool = False
    fuzzy: bool = False
    limit: int = LIMIT


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded identifiers; `limited`: there are more than were asked for."""

    rows: Sequence[bytes]
    limited: bool = False


def key_invalid(tag: int, why: str) -> RadmeshError:
    """Return the error of a key whose value cannot be matched."""
    return RadmeshError("QUERY_KEY_INVALID", f"{tag_text(tag)}: {why}", metadata={"tag": f"{tag:08X}"})


@dataclass(frozen=True, slots=True)
class _Form:
    """What a statement is made of, values aside: all queries that differ in values alone have one.

    Attributes:
        columns: tags of what is read for each row.
        counted: whether what studies and series have is read, too.
        viewer: whose eyes, but for the station's name.
        few: whether what matches is little, and is sorted; else rows are read in the order of the answer.
        later: whether it is of a page behind the first.
    """

    level: str
    terms: tuple[Term, ...]
    columns: tuple[int, ...]
    counted: tuple[str, ...]
    viewer: Viewer
    few: bool = False
    later: bool = False


class DicomQueries:
    """Answers C-FIND."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.fuzzy = FuzzyNames(database)
        self.statement = lru_cache(_FORMS)(self._statement)
        self.probe = lru_cache(_FORMS)(self._probe)
        self.people = lru_cache(_FORMS)(self._people)
        self.headers_of_series = PreparedForRows(
            database, lambda of: sa.select(series.c.id, series.c.header).where(series.c.id.in_(of))
        )
        self.headers_of_studies = PreparedForRows(
            database,
            lambda of: sa.select(series.c.study, series.c.header).where(
                series.c.id.in_(
                    sa.select(sa.func.min(series.c.id)).where(series.c.study.in_(of)).group_by(series.c.study)
                )
            ),
        )

    def find(self, query: Query) -> "Find":
        """Check a query, and return it ready to be run.

        Raises:
            RadmeshError: QUERY_LEVEL_INVALID, UNIQUE_KEY_MISSING, QUERY_KEY_INVALID.
        """
        return Find(self, query)

    def _probe(self, term: Term, at: int) -> Prepared:
        return Prepared(self.database, Conditions(self.database, Viewer(), probing=True).probe(term, at))

    def _people(self, columns: tuple[int, ...]) -> PreparedForRows:
        told = (*_ALWAYS[PATIENT], *_columns(columns))
        return PreparedForRows(self.database, lambda of: sa.select(*told).where(patients.c.id.in_(of)))

    def _statement(self, form: _Form) -> Prepared:
        """Return the SELECT of a page.

        An index either finds what matches, which is sorted then, or has the order of the answer: where it is to be
        the one, what the other is of is written as an expression.
        """
        make = Conditions(self.database, form.viewer)
        conditions = [condition for at, term in enumerate(form.terms) for condition in make.of(term, at)]
        source: Any = studies.join(patients, patients.c.id == studies.c.patient)
        order: tuple[Any, ...]
        if form.level == PATIENT:
            # A patient may have several rows, and is one all the same.
            rank = sa.case((sa.func.substr(patients.c.identity, 1, 4) == "ris\x1f", 0), else_=_LATER) + patients.c.id
            who = patients.c.who.concat(NOTHING) if form.few else patients.c.who
            if form.later:
                conditions.append(who > text("after_0"))
            query = sa.select(who.label("who"), sa.func.min(rank).label("rank")).select_from(source)
            query = query.where(visible(form.viewer), *conditions).group_by(who).order_by(who)
            return Prepared(self.database, query.limit(number("size")))
        if form.level == STUDY:
            conditions.append(visible(form.viewer))
            date = studies.c.study_date.concat(NOTHING) if form.few else studies.c.study_date
            order = (date.desc(), studies.c.id.desc())
            if form.later:
                conditions.append(sa.tuple_(date, studies.c.id) < sa.tuple_(text("after_0"), number("after_1")))
        else:
            source = source.join(series, series.c.study == studies.c.id)
            if form.level == SERIES:
                key = series.c.id
                if not form.viewer.include_held:
                    seen = sa.exists().where(
                        instances.c.series == series.c.id,
                        admissions.c.id == instances.c.admission,
                        not_held(form.viewer),
                    )
                    conditions.append(sa.or_(sa.and_(studies.c.held_count == 0, series.c.instance_count > 0), seen))
            else:
                key = instances.c.id
                source = source.join(instances, instances.c.series == series.c.id)
                conditions.append(instances.c.current)
                if not form.viewer.include_held:
                    source = source.join(admissions, admissions.c.id == instances.c.admission)
                    conditions.append(not_held(form.viewer))
            order = (key + sa.literal_column("0") if form.few else key,)
            if form.later:
                conditions.append(order[0] > number("after_0"))
        always = [column.label(f"_{place}") for place, column in enumerate(_ALWAYS[form.level])]
        counted = [_COUNTED[name].label(name) for name in form.counted]
        query = sa.select(*always, *_columns(form.columns), *counted).select_from(source)
        return Prepared(self.database, query.where(*conditions).order_by(*order).limit(number("size")))


# What studies and series have, as a row is read with it.
_COUNTED: Final[Mapping[str, Any]] = {
    "_series": studies.c.series_count,
    "_instances": studies.c.instance_count,
    "_modalities": studies.c.modalities,
    "_in_series": series.c.instance_count,
}


def _columns(tags: Sequence[int]) -> list[Any]:
    return [BY_TAG[tag].column.label(BY_TAG[tag].keyword) for tag in tags]


class Find:
    """One query: what it means for the tables, and its rows.

    Attributes:
        keys_unsupported: some of its keys are none of the model, and are left out of rows and matching.
    """

    def __init__(self, queries: DicomQueries, query: Query) -> None:
        levels = MODELS.get(query.model, ())
        if query.level not in levels:
            raise RadmeshError(
                "QUERY_LEVEL_INVALID",
                f"{tag_text(QUERY_RETRIEVE_LEVEL)}: one of {', '.join(levels)}",
                metadata={"tag": f"{QUERY_RETRIEVE_LEVEL:08X}"},
            )
        self._queries = queries
        self._database = queries.database
        self._query = query
        self._level = query.level
        self._viewer = query.viewer
        self._upper = LEVELS[: LEVELS.index(query.level) + 1]
        self.keys_unsupported = False
        keys: dict[int, Key] = {}
        for key in query.keys:
            keys.setdefault(key.tag, key)
        if not query.relational:
            self._check_unique(levels, keys)
        keys.setdefault(UNIQUE[query.level], Key(UNIQUE[query.level], BY_TAG[UNIQUE[query.level]].vr))
        self._terms = Terms()
        self._after: list[Callable[[dict[str, Any]], bool]] = []
        self._fuzzy_name = ""
        self._asked = self._read(keys)
        self._made = {a.made for a in self._asked if a.made}
        self._headers = any(a.header for a in self._asked)
        told = [a for a in self._asked if a.column is not None]
        counted: tuple[str, ...] = ()
        if self._level != PATIENT and self._made & _OF_STUDY:
            counted = ("_series", "_instances", "_modalities")
        if "series_instances" in self._made:
            counted += ("_in_series",)
        self._names = [*(a.keyword for a in told), *counted]
        self._form = _Form(self._level, (), tuple(a.tag for a in told), counted, eyes_of(self._viewer))
        # Of what has a column alone a row is written as it is read.
        self._plain = not (self._made or self._headers or self._after)
        at = len(_ALWAYS[self._level])
        self._written = [(at + place, make) for place, a in enumerate(told) if (make := _written(a)) is not None]
        self._writer = self._row_writer(keys)
        self._ready = False

    def _check_unique(self, levels: Sequence[str], keys: Mapping[int, Key]) -> None:
        """Hierarchical queries name one entity of each level above (PS3.4 C.4.1.2.1)."""
        for level in levels[: levels.index(self._level)]:
            tag = UNIQUE[level]
            value = keys[tag].value.strip(" ") if tag in keys else ""
            if not value or any(letter in value for letter in "\\*?"):
                raise RadmeshError(
                    "UNIQUE_KEY_MISSING",
                    f"{tag_text(tag)}: one value is needed at level {self._level}",
                    metadata={"tag": f"{tag:08X}"},
                )

    # -- what is asked for

    def _read(self, keys: Mapping[int, Key]) -> list[Attribute]:
        asked: list[Attribute] = []
        for tag, key in keys.items():
            attribute = BY_TAG.get(tag)
            if tag in (QUERY_RETRIEVE_LEVEL, _RETRIEVE_AE_TITLE, _INSTANCE_AVAILABILITY):
                continue
            if attribute is not None and attribute.level in self._upper:
                asked.append(attribute)
                self._match(attribute, key.value.strip(" "))
            elif tag == _MODALITY and self._level == STUDY:
                # Often asked for; what is meant is this.
                self._match(BY_TAG[_MODALITIES], key.value.strip(" "))
                self.keys_unsupported = True
            else:
                self.keys_unsupported = True
        combined = self._query.combined_date_time and STUDY in self._upper
        if combined and all(tag in keys and "-" in keys[tag].value for tag in (_STUDY_DATE, _STUDY_TIME)):
            self._combine(keys[_STUDY_DATE].value, keys[_STUDY_TIME].value)
        return sorted(asked, key=lambda attribute: attribute.tag)

    def _match(self, a: Attribute, value: str) -> None:
        """Add what a key's value means: a condition of the query, or a look at each row."""
        if not value.strip("*"):
            return
        if a.vr != "UI" and len(value) > _LONGEST:
            raise key_invalid(a.tag, f"at most {_LONGEST} characters")
        wanted = [part.strip() for part in value.split("\\") if part.strip()]
        if not wanted:
            return
        if a.vr == "UI":
            self._match_uids(a, wanted)
        elif a.vr in ("DA", "TM"):
            self._match_range(a, value)
        elif a.vr == "PN":
            self._match_name(a, value)
        elif a.made == "modalities":
            self._terms.modalities(wanted)
        elif a.vr in ("IS", "US", "DS"):
            self._match_number(a, wanted)
        elif a.column is not None:
            self._terms.texts(a, wanted)
        else:
            self._after.append(
                lambda row: any(
                    matching.text_matches(one, part.strip()) for one in wanted for part in row[a.keyword].split("\\")
                )
            )

    def _match_uids(self, a: Attribute, wanted: Sequence[str]) -> None:
        uids = [uid for part in wanted if (uid := part.strip("\0 "))]
        if len(uids) > _UIDS_MOST or not all(map(is_valid_uid, uids)):
            raise key_invalid(a.tag, f"at most {_UIDS_MOST} UIDs")
        if a.column is not None:
            self._terms.one_of(a, uids)
        else:
            self._after.append(lambda row: any(uid in row[a.keyword].split("\\") for uid in uids))

    def _match_name(self, a: Attribute, value: str) -> None:
        if a.tag == _PATIENT_NAME and self._query.fuzzy and is_enough(value):
            self._fuzzy_name = value
        elif a.tag == _PATIENT_NAME:
            self._terms.name(value)
        else:
            if a.column is not None:
                self._terms.person(a, value)
            self._after.append(
                lambda row: any(matching.name_matches(value, name) for name in row[a.keyword].split("\\"))
            )

    def _match_range(self, a: Attribute, value: str) -> None:
        ends = matching.range_of(value, a.vr)
        if ends is None:
            what = "YYYYMMDD" if a.vr == "DA" else "HHMMSS"
            raise key_invalid(a.tag, f"{what}, or a range of them with a hyphen")
        first, last = ends
        if a.vr == "DA":
            self._terms.dates(a, first, last)
        elif not (self._query.combined_date_time and a.tag == _STUDY_TIME and "-" in value):
            wanted = first if first == last and "-" not in value else f"{first}-{last}"
            self._after.append(lambda row: matching.in_range(row[a.keyword].replace(":", ""), wanted))

    def _combine(self, dates: str, times: str) -> None:
        """Match date and time as one point in time (PS3.4 C.2.2.2.5.2)."""
        first, last = matching.range_of(dates, "DA") or ("", "")
        begin, end = matching.range_of(times, "TM") or ("", "")
        if first and begin:
            self._terms.moment(first, begin, end=False)
        if last and end:
            self._terms.moment(last, end, end=True)

    def _match_number(self, a: Attribute, parts: Sequence[str]) -> None:
        try:
            wanted = [float(part) for part in parts]
        except ValueError:
            raise key_invalid(a.tag, "a number") from None
        if a.level == IMAGE and isinstance(a.column.type, sa.Integer):
            self._terms.one_of(a, [int(one) if 0 < one < 1 << 31 else -1 for one in wanted])
        else:
            self._after.append(lambda row: _number(row[a.keyword]) in wanted)

    # -- rows

    def _row_writer(self, keys: Mapping[int, Key]) -> RowWriter:
        elements: list[tuple[int, str, str | None]] = [(a.tag, a.vr, None) for a in self._asked]
        elements.append((QUERY_RETRIEVE_LEVEL, "CS", self._level))
        if self._query.retrieve_ae_title:
            elements.append((_RETRIEVE_AE_TITLE, "AE", self._query.retrieve_ae_title))
        if _INSTANCE_AVAILABILITY in keys:
            elements.append((_INSTANCE_AVAILABILITY, "CS", "ONLINE"))
        self._fields = [a.keyword for a in self._asked]
        elements.sort(key=lambda element: element[0])
        return _writer_of(tuple(elements), implicit=self._query.implicit, character_set=self._query.character_set)

    def batches(self) -> Iterator[Batch]:
        """Yield the rows; empty batches while a page takes its time, and where nothing on one matches.

        Raises:
            RadmeshError: DATABASE_UNAVAILABLE.
        """
        left = self._query.limit
        short = self._terms.few and not self._fuzzy_name
        with Pages(self._database) as pages:
            position: tuple[Any, ...] | None = None
            number_of_page = 0
            while True:
                size = _PAGES[min(number_of_page, len(_PAGES) - 1)]
                for page in pages.read(partial(self._page, position, size), short=short):
                    if page is None:
                        yield Batch(())
                        continue
                    rows, position = page
                if len(rows) > left:
                    yield Batch(rows[:left], limited=True)
                    return
                left -= len(rows)
                yield Batch(rows)
                if position is None:
                    return
                number_of_page += 1

    def _decide(self, c: sa.Connection) -> None:
        """Find out whether what matches is little, and which patients are meant by a name that is fuzzy."""
        self._ready = True
        terms = self._terms
        if self._fuzzy_name:
            terms.patients(self._queries.fuzzy.find(c, self._fuzzy_name))
        for at, indexed in terms.probes:
            if terms.few:
                break
            if indexed or not terms.has_dates():
                ids = self._queries.probe(terms.terms[at], at).rows(c, **terms.values, most=FEW + 1)
                if len(ids) <= FEW:
                    terms.found(at, [row[0] for row in ids])
        self._form = replace(self._form, terms=tuple(terms.terms), few=terms.few)

    def _page(
        self, position: tuple[Any, ...] | None, size: int, c: sa.Connection
    ) -> tuple[list[bytes], tuple[Any, ...] | None]:
        """Return a page of rows that match, and where the next one begins; None behind the last."""
        if not self._ready:
            self._decide(c)
        form = replace(self._form, later=True) if position is not None else self._form
        values = dict(self._terms.values, viewer_station=self._viewer.station, size=size)
        values.update((f"after_{place}", value) for place, value in enumerate(position or ()))
        found = self._queries.statement(form).rows(c, **values)
        following = None
        if len(found) == size:
            last = found[-1]
            following = (last[1], last[0]) if self._level == STUDY else (last[0],)
        if self._level == PATIENT and found:
            found = self._people(c, found)
        if self._plain:
            return self._straight(found), following
        return self._completed(c, found), following

    def _straight(self, found: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return rows that are all columns."""
        write, at = self._writer.write, len(_ALWAYS[self._level])
        if not self._written:
            return [write(row[at:]) for row in found]
        rows = []
        for each in found:
            row = list(each)
            for place, make in self._written:
                row[place] = make(row[place])
            rows.append(write(row[at:]))
        return rows

    def _completed(self, c: sa.Connection, found: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return rows that match in what no column says, too, with that."""
        at = len(_ALWAYS[self._level])
        rows: list[dict[str, Any]] = []
        for each in found:
            row = {**dict(zip(self._names, each[at:], strict=True)), "_": each[:at]}
            for place, make in self._written:
                row[self._names[place - at]] = make(each[place])
            rows.append(row)
        self._complete(c, rows)
        write, fields = self._writer.write, self._fields
        return [write([row[name] for name in fields]) for row in rows if all(look(row) for look in self._after)]

    def _people(self, c: sa.Connection, found: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Return patients as their RIS tells them, if that was found, by what groups them."""
        ids = [row[1] % _LATER for row in found]
        rows = {row[0]: row for row in self._queries.people(self._form.columns).rows(c, ids)}
        return [rows[one] for one in ids]

    # -- what no column says

    def _complete(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        if any(name.startswith("patient_") for name in self._made):
            self._count_patients(c, rows)
        if self._level == PATIENT:
            return
        if self._made & _OF_STUDY:
            self._count_studies(c, rows)
        if "sop_classes" in self._made:
            self._sop_classes(c, rows)
        if "series_instances" in self._made:
            self._count_series(c, rows)
        if self._headers:
            self._read_headers(c, rows)

    def _study_of(self, row: Mapping[str, Any]) -> int:
        """Return the row of studies that a row is of."""
        return int(row["_"][{STUDY: 0, SERIES: 1, IMAGE: 2}[self._level]])

    def _held_of(self, row: Mapping[str, Any]) -> int:
        return int(row["_"][-2])

    def _is_partly_seen(self, held: int, count: int) -> bool:
        # One that has nothing but variants is counted too.
        return bool(held or not count) and not self._viewer.include_held

    def _recounted(self, c: sa.Connection, ids: Sequence[int]) -> dict[int, tuple[int, int, str]]:
        """Return (series, instances, modalities) of studies without what is held from the viewer."""
        counted: dict[int, tuple[int, int, str]] = {}
        for part in _parts(ids):
            seen: dict[int, list[Any]] = {one: [0, 0, set()] for one in part}
            total = sa.func.sum(sa.case((instances.c.current, 1), else_=0))
            for row in c.execute(
                sa.select(instances.c.study, instances.c.series, series.c.modality, total)
                .join(series, series.c.id == instances.c.series)
                .join(admissions, admissions.c.id == instances.c.admission)
                .where(instances.c.study.in_(part), not_held(self._viewer))
                .group_by(instances.c.study, instances.c.series, series.c.modality)
            ):
                entry = seen[row[0]]
                entry[0] += 1
                entry[1] += int(row[3])
                entry[2].add(row[2])
            counted |= {one: (n, m, "\\".join(sorted(filter(None, names)))) for one, (n, m, names) in seen.items()}
        return counted

    def _count_studies(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        partly = {self._study_of(r) for r in rows if self._is_partly_seen(self._held_of(r), r["_instances"])}
        recounted = self._recounted(c, list(partly))
        for row in rows:
            counts = recounted.get(self._study_of(row)) or (
                row["_series"],
                row["_instances"],
                row["_modalities"].strip("\\"),
            )
            row["NumberOfStudyRelatedSeries"] = str(counts[0])
            row["NumberOfStudyRelatedInstances"] = str(counts[1])
            row["ModalitiesInStudy"] = counts[2]

    def _count_patients(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        of: dict[str, list[Any]] = {row["_"][-1]: [] for row in rows}
        for part in _parts(list(of)):
            for row in c.execute(
                sa.select(
                    patients.c.who, studies.c.id, studies.c.series_count, studies.c.instance_count, studies.c.held_count
                )
                .join(studies, studies.c.patient == patients.c.id)
                .where(patients.c.who.in_(part), visible(self._viewer))
            ):
                of[row[0]].append(row[1:])
        every = [study for theirs in of.values() for study in theirs]
        recounted = self._recounted(c, [s[0] for s in every if self._is_partly_seen(s[3], s[2])])
        for each in rows:
            counts = [recounted.get(study[0], study[1:3]) for study in of[each["_"][-1]]]
            each["NumberOfPatientRelatedStudies"] = str(len(counts))
            each["NumberOfPatientRelatedSeries"] = str(sum(count[0] for count in counts))
            each["NumberOfPatientRelatedInstances"] = str(sum(count[1] for count in counts))

    def _sop_classes(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        of: dict[int, list[str]] = {self._study_of(row): [] for row in rows}
        for part in _parts(list(of)):
            query = sa.select(instances.c.study, instances.c.sop_class_uid).distinct()
            if not self._viewer.include_held:
                query = query.join(admissions, admissions.c.id == instances.c.admission).where(not_held(self._viewer))
            for row in c.execute(query.where(instances.c.study.in_(part), instances.c.current)):
                of[row[0]].append(row[1])
        for each in rows:
            each["SOPClassesInStudy"] = "\\".join(sorted(of[self._study_of(each)]))

    def _count_series(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        at = 0 if self._level == SERIES else 1
        counts = {row["_"][at]: row["_in_series"] for row in rows}
        ids = {row["_"][at]: self._held_of(row) for row in rows}
        partly = [one for one, held in ids.items() if held and not self._viewer.include_held]
        for part in _parts(partly):
            counts |= dict.fromkeys(part, 0)
            for row in c.execute(
                sa.select(instances.c.series, sa.func.count())
                .join(admissions, admissions.c.id == instances.c.admission)
                .where(instances.c.series.in_(part), instances.c.current, not_held(self._viewer))
                .group_by(instances.c.series)
            ):
                counts[row[0]] = row[1]
        for each in rows:
            each["NumberOfSeriesRelatedInstances"] = str(counts.get(each["_"][at], 0))

    def _read_headers(self, c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Take what has no column from the header of a series' first instance; what may be held tells nothing."""
        wanted = [a for a in self._asked if a.header]
        at = {STUDY: 0, SERIES: 0, IMAGE: 1}[self._level]
        open_ = {row["_"][at] for row in rows if not self._held_of(row) or self._viewer.include_held}
        select = self._queries.headers_of_studies if self._level == STUDY else self._queries.headers_of_series
        texts = {key: _texts(bytes(raw), wanted) for key, raw in select.rows(c, list(open_))}
        nothing = {a.keyword: "" for a in wanted}
        for row in rows:
            row.update(texts.get(row["_"][at], nothing))


def _texts(raw: bytes, wanted: Sequence[Attribute]) -> dict[str, str]:
    try:
        header = QueryableHeader.parse(raw)
    except ValueError:
        header = QueryableHeader()
    return {a.keyword: header.text(a.keyword) for a in wanted}


def _parts(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@lru_cache(256)
def _writer_of(elements: tuple[tuple[int, str, str | None], ...], *, implicit: bool, character_set: str) -> RowWriter:
    return RowWriter(elements, implicit=implicit, character_set=character_set)


def _written(a: Attribute) -> Callable[[Any], Any] | None:
    """Return what makes a column's value what a row has, where they are not the same."""
    if a.vr in ("DA", "TM"):
        return _plain_time
    if isinstance(a.column.type, sa.Integer):
        return _us if a.vr == "US" else _is
    return None


def _plain_time(value: str) -> str:
    """Return a date or time as the standard has it now (PS3.5 6.2)."""
    if ":" in value:
        return value.replace(":", "")
    return value.replace(".", "") if value[4:5] == "." else value


def _us(value: int) -> bytes:
    # 0 = the object has no such attribute.
    return value.to_bytes(2, "little") if 0 < value < 1 << 16 else b""


def _is(value: int) -> str:
    return str(value) if value else ""
