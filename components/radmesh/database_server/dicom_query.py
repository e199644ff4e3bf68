"""C-FIND over the tables: what matches an identifier, as rows that are encoded already (PS3.4 C.4.1).

Rows are read page by page behind the last one, never with a transaction held open for a slow station; what the
tables have no column for is matched, or taken from the first header of the series, afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.paging import Pages
from radmesh.database_server.queries import Viewer, has_modality, matches, name_matches, not_held, visible
from radmesh.database_server.schema import admissions, instances, patients, series, studies
from radmesh.dicom import matching
from radmesh.dicom.header import QueryableHeader
from radmesh.dicom.identifier import QUERY_RETRIEVE_LEVEL, Key, RowWriter, tag_text
from radmesh.dicom.uids import is_valid_uid
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

LIMIT: Final = 100_000
"""Rows of an answer unless less is asked for."""
PATIENT, STUDY, SERIES, IMAGE = "PATIENT", "STUDY", "SERIES", "IMAGE"
LEVELS: Final = (PATIENT, STUDY, SERIES, IMAGE)
# QueryModel of database.v1 -> its levels.
MODELS: Final = {1: LEVELS, 2: LEVELS[1:], 3: LEVELS[:2]}
_UIDS_MOST: Final = 4096
_LONGEST: Final = 1024
# Rows of the pages: the first ones are seen at once.
_PAGES: Final = (64, 256, 1024, 2048)
_LAST: Final = "\U0010ffff"
# Added to the id of a row that is looked at after others.
_LATER: Final = 1 << 52


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """An attribute of the model: its level, and where it is: a column, a field that is made, or the header."""

    tag: int
    vr: str
    keyword: str
    level: str
    column: Any = None
    made: str = ""
    header: bool = False


def _a(tag: int, vr: str, keyword: str, level: str, column: Any = None, made: str = "") -> Attribute:
    return Attribute(tag, vr, keyword, level, column, made, column is None and not made)


ATTRIBUTES: Final = (
    _a(0x00100010, "PN", "PatientName", PATIENT, patients.c.patient_name),
    _a(0x00100020, "LO", "PatientID", PATIENT, patients.c.patient_id),
    _a(0x00100021, "LO", "IssuerOfPatientID", PATIENT, patients.c.issuer_of_patient_id),
    _a(0x00100030, "DA", "PatientBirthDate", PATIENT, patients.c.patient_birth_date),
    _a(0x00100040, "CS", "PatientSex", PATIENT, patients.c.patient_sex),
    _a(0x00201200, "IS", "NumberOfPatientRelatedStudies", PATIENT, made="patient_studies"),
    _a(0x00201202, "IS", "NumberOfPatientRelatedSeries", PATIENT, made="patient_series"),
    _a(0x00201204, "IS", "NumberOfPatientRelatedInstances", PATIENT, made="patient_instances"),
    _a(0x00080020, "DA", "StudyDate", STUDY, studies.c.study_date),
    _a(0x00080030, "TM", "StudyTime", STUDY, studies.c.study_time),
    _a(0x00080050, "SH", "AccessionNumber", STUDY, studies.c.accession_number),
    _a(0x00080061, "CS", "ModalitiesInStudy", STUDY, made="modalities"),
    _a(0x00080062, "UI", "SOPClassesInStudy", STUDY, made="sop_classes"),
    _a(0x00080090, "PN", "ReferringPhysicianName", STUDY, studies.c.referring_physician_name),
    _a(0x00081030, "LO", "StudyDescription", STUDY, studies.c.study_description),
    _a(0x00081048, "PN", "PhysiciansOfRecord", STUDY),
    _a(0x00081060, "PN", "NameOfPhysiciansReadingStudy", STUDY),
    _a(0x00081080, "LO", "AdmittingDiagnosesDescription", STUDY),
    _a(0x00101010, "AS", "PatientAge", STUDY),
    _a(0x00101020, "DS", "PatientSize", STUDY),
    _a(0x00101030, "DS", "PatientWeight", STUDY),
    _a(0x0020000D, "UI", "StudyInstanceUID", STUDY, studies.c.study_instance_uid),
    _a(0x00200010, "SH", "StudyID", STUDY, studies.c.study_id),
    _a(0x00201206, "IS", "NumberOfStudyRelatedSeries", STUDY, made="study_series"),
    _a(0x00201208, "IS", "NumberOfStudyRelatedInstances", STUDY, made="study_instances"),
    _a(0x00080021, "DA", "SeriesDate", SERIES, series.c.series_date),
    _a(0x00080031, "TM", "SeriesTime", SERIES, series.c.series_time),
    _a(0x00080060, "CS", "Modality", SERIES, series.c.modality),
    _a(0x00080070, "LO", "Manufacturer", SERIES, series.c.manufacturer),
    _a(0x00080080, "LO", "InstitutionName", SERIES),
    _a(0x00081010, "SH", "StationName", SERIES, series.c.station_name),
    _a(0x0008103E, "LO", "SeriesDescription", SERIES, series.c.series_description),
    _a(0x00081040, "LO", "InstitutionalDepartmentName", SERIES),
    _a(0x00081050, "PN", "PerformingPhysicianName", SERIES),
    _a(0x00081070, "PN", "OperatorsName", SERIES),
    _a(0x00081090, "LO", "ManufacturerModelName", SERIES),
    _a(0x00180015, "CS", "BodyPartExamined", SERIES, series.c.body_part_examined),
    _a(0x00181000, "LO", "DeviceSerialNumber", SERIES),
    _a(0x00181030, "LO", "ProtocolName", SERIES),
    _a(0x00185100, "CS", "PatientPosition", SERIES),
    _a(0x0020000E, "UI", "SeriesInstanceUID", SERIES, series.c.series_instance_uid),
    _a(0x00200011, "IS", "SeriesNumber", SERIES, series.c.series_number),
    _a(0x00200052, "UI", "FrameOfReferenceUID", SERIES),
    _a(0x00200060, "CS", "Laterality", SERIES),
    _a(0x00201209, "IS", "NumberOfSeriesRelatedInstances", SERIES, made="series_instances"),
    _a(0x00080016, "UI", "SOPClassUID", IMAGE, instances.c.sop_class_uid),
    _a(0x00080018, "UI", "SOPInstanceUID", IMAGE, instances.c.sop_instance_uid),
    _a(0x00083002, "UI", "AvailableTransferSyntaxUID", IMAGE, instances.c.transfer_syntax_uid),
    _a(0x00200013, "IS", "InstanceNumber", IMAGE, instances.c.instance_number),
    _a(0x00280008, "IS", "NumberOfFrames", IMAGE, instances.c.number_of_frames),
    _a(0x00280010, "US", "Rows", IMAGE, instances.c.rows),
    _a(0x00280011, "US", "Columns", IMAGE, instances.c.columns),
)
"""What can be searched for and is told, level by level (docs/reference/query.md)."""
_BY_TAG: Final = {attribute.tag: attribute for attribute in ATTRIBUTES}
UNIQUE: Final = {PATIENT: 0x00100020, STUDY: 0x0020000D, SERIES: 0x0020000E, IMAGE: 0x00080018}
# An index finds what has one value of these, which are few.
_FEW: Final = (0x00100020, 0x00080050, 0x0020000D)
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
    limit: int = LIMIT


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded identifiers; `limited`: there are more than were asked for."""

    rows: Sequence[bytes]
    limited: bool = False


def key_invalid(tag: int, why: str) -> RadmeshError:
    """Return the error of a key whose value cannot be matched."""
    return RadmeshError("QUERY_KEY_INVALID", f"{tag_text(tag)}: {why}", metadata={"tag": f"{tag:08X}"})


class DicomQueries:
    """Answers C-FIND."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, query: Query) -> "Find":
        """Check a query, and return it ready to be run.

        Raises:
            RadmeshError: QUERY_LEVEL_INVALID, UNIQUE_KEY_MISSING, QUERY_KEY_INVALID.
        """
        return Find(self._database, query)


class Find:
    """One query: what it means for the tables, and its rows.

    Attributes:
        keys_unsupported: some of its keys are none of the model, and are left out of rows and matching.
    """

    def __init__(self, database: Database, query: Query) -> None:
        levels = MODELS.get(query.model, ())
        if query.level not in levels:
            raise RadmeshError(
                "QUERY_LEVEL_INVALID",
                f"{tag_text(QUERY_RETRIEVE_LEVEL)}: one of {', '.join(levels)}",
                metadata={"tag": f"{QUERY_RETRIEVE_LEVEL:08X}"},
            )
        self._database = database
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
        keys.setdefault(UNIQUE[query.level], Key(UNIQUE[query.level], _BY_TAG[UNIQUE[query.level]].vr))
        self._conditions: list[Any] = []
        self._after: list[Callable[[dict[str, Any]], bool]] = []
        self._short = any(tag in keys and _is_one(keys[tag].value) for tag in _FEW)
        self._asked = self._read(keys)
        self._made = {a.made for a in self._asked if a.made}
        self._headers = any(a.header for a in self._asked)
        self._columns = [a.column.label(a.keyword) for a in self._asked if a.column is not None]
        self._names = [a.keyword for a in self._asked if a.column is not None]
        if self._made & _OF_STUDY and self._level != PATIENT:
            self._columns += [studies.c.series_count, studies.c.instance_count, studies.c.modalities]
            self._names += ["_series", "_instances", "_modalities"]
        self._writer = self._row_writer(keys)

    def _check_unique(self, levels: Sequence[str], keys: Mapping[int, Key]) -> None:
        """Hierarchical queries name one entity of each level above (PS3.4 C.4.1.2.1)."""
        for level in levels[: levels.index(self._level)]:
            tag = UNIQUE[level]
            value = keys[tag].value if tag in keys else ""
            if not value or "\\" in value or (level == PATIENT and ("*" in value or "?" in value)):
                raise RadmeshError(
                    "UNIQUE_KEY_MISSING",
                    f"{tag_text(tag)}: one value is needed at level {self._level}",
                    metadata={"tag": f"{tag:08X}"},
                )

    # -- what is asked for

    def _read(self, keys: Mapping[int, Key]) -> list[Attribute]:
        asked: list[Attribute] = []
        for tag, key in keys.items():
            attribute = _BY_TAG.get(tag)
            if tag in (QUERY_RETRIEVE_LEVEL, _RETRIEVE_AE_TITLE, _INSTANCE_AVAILABILITY):
                continue
            if attribute is not None and attribute.level in self._upper:
                asked.append(attribute)
                self._match(attribute, key.value.strip(" "))
            elif tag == _MODALITY and self._level == STUDY:
                # Often asked for; what is meant is this.
                self._match(_BY_TAG[_MODALITIES], key.value.strip(" "))
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
        if a.vr == "UI":
            uids = [uid for part in value.split("\\") if (uid := part.strip("\0 "))]
            if len(uids) > _UIDS_MOST or not all(map(is_valid_uid, uids)):
                raise key_invalid(a.tag, f"at most {_UIDS_MOST} UIDs")
            if a.column is not None:
                self._conditions.append(a.column == uids[0] if len(uids) == 1 else a.column.in_(uids))
            else:
                self._after.append(lambda row: any(uid in row[a.keyword].split("\\") for uid in uids))
        elif a.vr in ("DA", "TM"):
            self._match_range(a, value)
        elif a.tag == _PATIENT_NAME:
            self._conditions.append(name_matches(self._database, value))
        elif a.made == "modalities":
            wanted = [part.strip() for part in value.split("\\") if part.strip()]
            self._conditions.append(has_modality(wanted, self._viewer))
        elif a.vr == "PN":
            self._after.append(
                lambda row: any(matching.name_matches(value, name) for name in row[a.keyword].split("\\"))
            )
        elif a.vr in ("IS", "US", "DS"):
            self._match_number(a, value)
        elif a.column is not None:
            wanted = [part.strip() for part in value.split("\\") if part.strip()]
            self._conditions.append(sa.or_(*(matches(a.column, one) for one in wanted)))
        else:
            self._after.append(
                lambda row: any(matching.text_matches(value, text) for text in row[a.keyword].split("\\"))
            )

    def _match_range(self, a: Attribute, value: str) -> None:
        ends = matching.range_of(value, a.vr)
        if ends is None:
            what = "YYYYMMDD" if a.vr == "DA" else "HHMMSS"
            raise key_invalid(a.tag, f"{what}, or a range of them with a hyphen")
        first, last = ends
        if a.vr == "DA":
            self._conditions += _dates(a.column, first, last)
        elif not (self._query.combined_date_time and a.tag == _STUDY_TIME and "-" in value):
            wanted = first if first == last and "-" not in value else f"{first}-{last}"
            self._after.append(lambda row: matching.in_range(row[a.keyword].replace(":", ""), wanted))

    def _combine(self, dates: str, times: str) -> None:
        """Match date and time as one point in time (PS3.4 C.2.2.2.5.2)."""
        ends = zip(matching.range_of(dates, "DA") or ("", ""), matching.range_of(times, "TM") or ("", ""), strict=True)
        date, time = studies.c.study_date, studies.c.study_time
        (first, begin), (last, end) = ends
        if first and begin:
            self._conditions.append(sa.or_(date > first, time >= begin))
        if last and end:
            self._conditions.append(sa.or_(date < last, time <= end + _LAST))

    def _match_number(self, a: Attribute, value: str) -> None:
        try:
            wanted = [float(part) for part in value.split("\\") if part.strip()]
        except ValueError:
            raise key_invalid(a.tag, "a number") from None
        if a.tag == _INSTANCE_NUMBER:
            self._conditions.append(instances.c.sort_number.in_([int(one) for one in wanted if abs(one) < 1 << 31]))
        elif a.level == IMAGE:
            self._conditions.append(a.column.in_([int(one) for one in wanted if 0 <= one < 1 << 31]))
        else:
            self._after.append(lambda row: _number(row[a.keyword]) in wanted)

    # -- rows

    def _row_writer(self, keys: Mapping[int, Key]) -> RowWriter:
        elements: list[tuple[int, str, str]] = [(a.tag, a.vr, a.keyword) for a in self._asked]
        elements.append((QUERY_RETRIEVE_LEVEL, "CS", "level"))
        if self._query.retrieve_ae_title:
            elements.append((_RETRIEVE_AE_TITLE, "AE", "aet"))
        if _INSTANCE_AVAILABILITY in keys:
            elements.append((_INSTANCE_AVAILABILITY, "CS", "availability"))
        elements.sort()
        self._fields = [name for _, _, name in elements]
        self._fixed = {"level": self._level, "aet": self._query.retrieve_ae_title, "availability": "ONLINE"}
        return RowWriter(
            [(tag, vr) for tag, vr, _ in elements],
            implicit=self._query.implicit,
            character_set=self._query.character_set,
        )

    def batches(self) -> Iterator[Batch]:
        """Yield the rows; empty batches while a page takes its time.

        Raises:
            RadmeshError: DATABASE_UNAVAILABLE.
        """
        left = self._query.limit
        with Pages(self._database) as pages:
            position: tuple[Any, ...] | None = None
            number = 0
            while True:
                size = _PAGES[min(number, len(_PAGES) - 1)]
                for page in pages.read(partial(self._page, position, size), short=self._short):
                    if page is None:
                        yield Batch(())
                        continue
                    rows, position = page
                if len(rows) > left:
                    yield Batch([self._write(row) for row in rows[:left]], limited=True)
                    return
                left -= len(rows)
                if rows:
                    yield Batch([self._write(row) for row in rows])
                if position is None:
                    return
                number += 1

    def _write(self, row: Mapping[str, Any]) -> bytes:
        return self._writer.write([row[name] for name in self._fields])

    def _page(
        self, position: tuple[Any, ...] | None, size: int, c: sa.Connection
    ) -> tuple[list[dict[str, Any]], tuple[Any, ...] | None]:
        """Return a page of rows that match, and where the next one begins; None behind the last."""
        found: Sequence[Any] = c.execute(self._statement(position, size)).all()
        if self._level == PATIENT:
            found = self._people(c, found)
        always = len(_ALWAYS[self._level])
        rows = [
            {**self._fixed, **dict(zip(self._names, row[always:], strict=True)), "_": row[:always]} for row in found
        ]
        for a in self._asked:
            if a.level == IMAGE and a.vr in ("US", "IS") and a.tag != _INSTANCE_NUMBER:
                _written_number(rows, a)
            elif a.vr in ("DA", "TM") and a.column is not None:
                _plain_times(rows, a.keyword)
        self._complete(c, rows)
        following = None
        if len(found) == size:
            last = found[-1]
            following = {STUDY: (last[1], last[0]), PATIENT: (last[1],)}.get(self._level, (last[0],))
        if self._after:
            rows = [row for row in rows if all(look(row) for look in self._after)]
        return rows, following

    def _statement(self, position: tuple[Any, ...] | None, size: int) -> Any:
        conditions = list(self._conditions)
        source: Any = studies.join(patients, patients.c.id == studies.c.patient)
        order: tuple[Any, ...]
        if self._level == PATIENT:
            # A patient may have several rows, and is one all the same.
            rank = sa.case((sa.func.substr(patients.c.identity, 1, 4) == "ris\x1f", 0), else_=_LATER) + patients.c.id
            query = sa.select(patients.c.who, sa.func.min(rank)).select_from(source)
            query = query.where(visible(self._viewer), *conditions).group_by(patients.c.who).order_by(patients.c.who)
            return (query.where(patients.c.who > position[0]) if position else query).limit(size)
        if self._level == STUDY:
            conditions.append(visible(self._viewer))
            order = (studies.c.study_date.desc(), studies.c.id.desc())
            if position:
                conditions.append(sa.tuple_(studies.c.study_date, studies.c.id) < sa.tuple_(*map(sa.literal, position)))
        else:
            source = source.join(series, series.c.study == studies.c.id)
            if self._level == SERIES:
                seen = sa.exists().where(
                    instances.c.series == series.c.id,
                    admissions.c.id == instances.c.admission,
                    not_held(self._viewer),
                )
                if not self._viewer.include_held:
                    conditions.append(sa.or_(sa.and_(studies.c.held_count == 0, series.c.instance_count > 0), seen))
                order = (series.c.id,)
            else:
                source = source.join(instances, instances.c.series == series.c.id)
                conditions.append(instances.c.current)
                if not self._viewer.include_held:
                    source = source.join(admissions, admissions.c.id == instances.c.admission)
                    conditions.append(not_held(self._viewer))
                order = (instances.c.id,)
            if position:
                conditions.append(order[0] > position[0])
        always = [column.label(f"_{number}") for number, column in enumerate(_ALWAYS[self._level])]
        return sa.select(*always, *self._columns).select_from(source).where(*conditions).order_by(*order).limit(size)

    def _people(self, c: sa.Connection, found: Sequence[Any]) -> list[Any]:
        """Return patients as their RIS tells them, if that was found, by what groups them."""
        ids = [row[1] % _LATER for row in found]
        rows: dict[int, Any] = {}
        for part in _parts(ids):
            query = sa.select(*_ALWAYS[PATIENT], *self._columns).where(patients.c.id.in_(part))
            rows |= {row[0]: row for row in c.execute(query)}
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
        counts: dict[int, int] = {}
        partly: list[int] = []
        ids = {row["_"][at]: self._held_of(row) for row in rows}
        for part in _parts(list(ids)):
            for row in c.execute(sa.select(series.c.id, series.c.instance_count).where(series.c.id.in_(part))):
                counts[row[0]] = row[1]
                if ids[row[0]] and not self._viewer.include_held:
                    partly.append(row[0])
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
        texts: dict[int, dict[str, str]] = {}
        for part in _parts(list(open_)):
            query = sa.select(series.c.id, series.c.header).where(series.c.id.in_(part))
            if self._level == STUDY:
                first = sa.select(sa.func.min(series.c.id)).where(series.c.study.in_(part)).group_by(series.c.study)
                query = sa.select(series.c.study, series.c.header).where(series.c.id.in_(first))
            for key, raw in c.execute(query):
                texts[key] = _texts(bytes(raw), wanted)
        nothing = {a.keyword: "" for a in wanted}
        for row in rows:
            row.update(texts.get(row["_"][at], nothing))


def _dates(column: Any, first: str, last: str) -> list[Any]:
    """Return the conditions of a range of dates; what ACR-NEMA wrote with full stops is matched too."""
    if first == last:
        return [column.in_((first, _dotted(first)))]
    # A dotted date sorts before all others of its year.
    conditions = [column != ""]
    if first:
        exact = sa.or_(column >= first, sa.and_(column.like("____.%"), column >= _dotted(first)))
        conditions = [column >= f"{first[:4]}.", exact]
    if last:
        conditions += [column <= last, sa.or_(column.not_like("____.%"), column <= _dotted(last))]
    return conditions


def _dotted(date: str) -> str:
    return f"{date[:4]}.{date[4:6]}.{date[6:]}"


def _texts(raw: bytes, wanted: Sequence[Attribute]) -> dict[str, str]:
    try:
        header = QueryableHeader.parse(raw)
    except ValueError:
        header = QueryableHeader()
    return {a.keyword: header.text(a.keyword) for a in wanted}


def _is_one(value: str) -> bool:
    return bool(value) and not any(letter in value for letter in "*?\\")


def _parts(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain_times(rows: Sequence[dict[str, Any]], keyword: str) -> None:
    """Write dates and times as the standard has them now (PS3.5 6.2)."""
    for row in rows:
        value = row[keyword]
        if ":" in value or value[4:5] == ".":
            row[keyword] = value.replace(":", "") if ":" in value else value.replace(".", "")


def _written_number(rows: Sequence[dict[str, Any]], a: Attribute) -> None:
    """Write numbers as the attribute has them; 0 = the object has no such attribute."""
    for row in rows:
        value = row[a.keyword]
        if a.vr == "US":
            row[a.keyword] = value.to_bytes(2, "little") if 0 < value < 1 << 16 else b""
        else:
            row[a.keyword] = str(value) if value else ""
