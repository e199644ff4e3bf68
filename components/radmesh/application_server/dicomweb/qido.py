"""QIDO-RS without the network (PS3.18 10.6): what a search asks for, what matches it, how a result is written."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server import dicom_json
from radmesh.dicom.fuzzy import is_like, words_of
from radmesh.dicom.header import TAGS
from radmesh.dicom.matching import DATE, TIME, in_range, name_matches, text_matches
from radmesh.dicom.uids import is_valid_uid
from radmesh.runtime.errors import RadmeshError

STUDY, SERIES, INSTANCE = "study", "series", "instance"
LEVELS: Final = (STUDY, SERIES, INSTANCE)
MOST: Final = 1000
"""Results of one answer."""
OFFSET_MOST: Final = 100_000
OPENED_MOST: Final = 200
"""Studies that a search for series or instances of all studies looks into."""
_MOST_PARAMETERS: Final = 200
_LONGEST: Final = 1024
_MOST_UIDS: Final = 1000
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")
_LIST: Final = re.compile(r"[,\\]")
# PS3.18 8.3.4: what says that a search is done otherwise than was asked for.
_UNSUPPORTED: Final = {
    "emptyvaluematching": "Empty Value Matching has not been performed.",
    "multiplevaluematching": "Multiple Value Matching has not been performed.",
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a level: how it is called, and what it is of a study, series or instance.

    `always`: it is in every result of its level (PS3.18 tables 10.6.3-3 to -5); else where it is asked for.
    """

    keyword: str
    tag: str
    vr: str
    level: str
    value: Callable[[Any], object] = field(repr=False)
    always: bool = True


def _of(name: str) -> Callable[[Any], object]:
    def value(item: Any) -> object:
        for part in name.split("."):
            item = getattr(item, part)
        return item

    return value


def _positive(name: str) -> Callable[[Any], object]:
    # 0 = the object has no such attribute.
    read = _of(name)
    return lambda item: read(item) or None


ATTRIBUTES: Final = (
    Attribute("StudyDate", "00080020", "DA", STUDY, _of("study_date")),
    Attribute("StudyTime", "00080030", "TM", STUDY, _of("study_time")),
    Attribute("AccessionNumber", "00080050", "SH", STUDY, _of("accession_number")),
    Attribute("ModalitiesInStudy", "00080061", "CS", STUDY, _of("modalities")),
    Attribute("ReferringPhysicianName", "00080090", "PN", STUDY, _of("referring_physician_name")),
    Attribute("StudyDescription", "00081030", "LO", STUDY, _of("study_description"), always=False),
    Attribute("PatientName", "00100010", "PN", STUDY, _of("patient_name")),
    Attribute("PatientID", "00100020", "LO", STUDY, _of("patient_id")),
    Attribute("IssuerOfPatientID", "00100021", "LO", STUDY, _of("issuer_of_patient_id"), always=False),
    Attribute("PatientBirthDate", "00100030", "DA", STUDY, _of("patient_birth_date")),
    Attribute("PatientSex", "00100040", "CS", STUDY, _of("patient_sex")),
    Attribute("StudyInstanceUID", "0020000D", "UI", STUDY, _of("study_instance_uid")),
    Attribute("StudyID", "00200010", "SH", STUDY, _of("study_id")),
    Attribute("NumberOfStudyRelatedSeries", "00201206", "IS", STUDY, _of("series_count")),
    Attribute("NumberOfStudyRelatedInstances", "00201208", "IS", STUDY, _of("instance_count")),
    Attribute("SeriesDate", "00080021", "DA", SERIES, _of("series_date"), always=False),
    Attribute("SeriesTime", "00080031", "TM", SERIES, _of("series_time"), always=False),
    Attribute("Modality", "00080060", "CS", SERIES, _of("modality")),
    Attribute("Manufacturer", "00080070", "LO", SERIES, _of("manufacturer"), always=False),
    Attribute("StationName", "00081010", "SH", SERIES, _of("station_name"), always=False),
    Attribute("SeriesDescription", "0008103E", "LO", SERIES, _of("series_description")),
    Attribute("BodyPartExamined", "00180015", "CS", SERIES, _of("body_part_examined"), always=False),
    Attribute("SeriesInstanceUID", "0020000E", "UI", SERIES, _of("series_instance_uid")),
    Attribute("SeriesNumber", "00200011", "IS", SERIES, _of("series_number")),
    Attribute("NumberOfSeriesRelatedInstances", "00201209", "IS", SERIES, _of("instance_count")),
    Attribute("SOPClassUID", "00080016", "UI", INSTANCE, _of("sop_class_uid")),
    Attribute("SOPInstanceUID", "00080018", "UI", INSTANCE, _of("identity.sop_instance_uid")),
    Attribute("AvailableTransferSyntaxUID", "00083002", "UI", INSTANCE, _of("identity.transfer_syntax_uid")),
    Attribute("ContentDate", "00080023", "DA", INSTANCE, _of("content_date"), always=False),
    Attribute("ContentTime", "00080033", "TM", INSTANCE, _of("content_time"), always=False),
    Attribute("AcquisitionNumber", "00200012", "IS", INSTANCE, _of("acquisition_number"), always=False),
    Attribute("InstanceNumber", "00200013", "IS", INSTANCE, _of("instance_number")),
    Attribute("NumberOfFrames", "00280008", "IS", INSTANCE, _positive("number_of_frames")),
    Attribute("Rows", "00280010", "US", INSTANCE, _positive("rows")),
    Attribute("Columns", "00280011", "US", INSTANCE, _positive("columns")),
    Attribute("BitsAllocated", "00280100", "US", INSTANCE, _positive("bits_allocated")),
)
"""What can be searched for, and found."""
_BY_NAME: Final = {name: a for a in ATTRIBUTES for name in (a.keyword.lower(), a.tag.lower())}
_KNOWN: Final = frozenset(name for keyword, tag in TAGS.items() for name in (keyword.lower(), f"{tag:08x}"))
# Not in all results, but told of every level's own.
_AVAILABILITY, _RETRIEVE_URL, _CHARACTER_SET = "00080056", "00081190", "00080005"
# What the database looks for by itself: keyword -> field of FindStudiesRequest.
_INDEXED: Final = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "AccessionNumber": "accession_number",
    "StudyDescription": "study_description",
}


@dataclass(frozen=True, slots=True)
class Search:
    """A search: of which level, what must match (attribute, value), what is to be told, which part of the results."""

    level: str
    matches: tuple[tuple[Attribute, str], ...] = ()
    include: frozenset[str] = frozenset()
    include_all: bool = False
    limit: int = MOST
    offset: int = 0
    fuzzy: bool = False
    warnings: tuple[str, ...] = ()

    def wants(self, attribute: Attribute) -> bool:
        """Whether results have the attribute."""
        return attribute.always or self.include_all or attribute.tag in self.include

    def of(self, level: str) -> tuple[tuple[Attribute, str], ...]:
        """Return what must match at a level."""
        return tuple((attribute, value) for attribute, value in self.matches if attribute.level == level)


def parse(level: str, query: bytes) -> Search:
    """Read the query of a search (PS3.18 8.3.4, 10.6.1).

    Raises:
        RadmeshError: FIELD_INVALID: an attribute that is known and cannot be searched by, a value that is none of its
            VR, or too much of everything. Names of nothing that DICOM knows are passed over.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError:
        raise _invalid("query", f"at most {_MOST_PARAMETERS} parameters, percent-encoded UTF-8") from None
    matches: dict[Attribute, str] = {}
    include: set[str] = set()
    warnings: list[str] = []
    limit, offset, include_all, fuzzy = MOST, 0, False, False
    for name, value in pairs:
        key = name.strip().lower()
        if key == "limit":
            limit = _count("limit", value)
        elif key == "offset":
            offset = _count("offset", value)
        elif key == "includefield":
            names = [part.strip().lower() for part in value.split(",")]
            include_all = include_all or "all" in names
            include |= {_BY_NAME[part].tag for part in names if part in _BY_NAME}
        elif key == "fuzzymatching":
            fuzzy = value.strip().lower() == "true"
        elif key in _UNSUPPORTED:
            if value.strip().lower() == "true":
                warnings.append(f"The {key} parameter is not supported. {_UNSUPPORTED[key]}")
        elif (attribute := _attribute(level, key)) is not None:
            if attribute in matches and value != matches[attribute]:
                raise _invalid(attribute.keyword, "given twice")
            matches[attribute] = _checked(attribute, value)
            include.add(attribute.tag)
        elif key.partition(".")[0] in _KNOWN:
            raise _invalid(
                name[:64], f"results of this level cannot be searched by it; they can by {_searchable(level)}"
            )
    if offset > OFFSET_MOST:
        raise _invalid("offset", f"at most {OFFSET_MOST}: narrow the search")
    return Search(
        level,
        tuple((attribute, value) for attribute, value in matches.items() if value.strip("*")),
        frozenset(include),
        include_all,
        min(limit, MOST),
        offset,
        fuzzy,
        tuple(dict.fromkeys(warnings)),
    )


def _invalid(name: str, rule: str) -> RadmeshError:
    return RadmeshError("FIELD_INVALID", f"{name}: {rule}", metadata={"field": name})


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise _invalid(name, "a whole number from 0")
    return int(value)


def _attribute(level: str, name: str) -> Attribute | None:
    if level == STUDY and name in ("modality", "00080060"):
        # Often asked for; what is meant is this.
        name = "modalitiesinstudy"
    found = _BY_NAME.get(name)
    if found is None or LEVELS.index(found.level) > LEVELS.index(level):
        return None
    return found


def _searchable(level: str) -> str:
    most = LEVELS.index(level)
    return ", ".join(a.keyword for a in ATTRIBUTES if LEVELS.index(a.level) <= most)


def _checked(attribute: Attribute, value: str) -> str:
    """Return a value as it is compared.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    value = value.strip(" ")
    if "\0" in value or (attribute.vr != "UI" and len(value) > _LONGEST):
        raise _invalid(attribute.keyword, f"at most {_LONGEST} characters, none of them NUL")
    if not value.strip("*"):
        return ""
    if attribute.vr == "UI":
        uids = [part.strip() for part in _LIST.split(value) if part.strip()]
        if len(uids) > _MOST_UIDS or not all(map(is_valid_uid, uids)):
            raise _invalid(attribute.keyword, f"at most {_MOST_UIDS} UIDs, separated by commas")
        return "\\".join(uids)
    if attribute.vr == "DA" and not (DATE.fullmatch(value) and value != "-"):
        raise _invalid(attribute.keyword, "a date such as 20260131, or a range such as 20260101-20260131")
    if attribute.vr == "TM":
        value = value.replace(":", "")
        if not TIME.fullmatch(value) or value == "-":
            raise _invalid(attribute.keyword, "a time such as 134500, or a range such as 08-1230")
    return value


# -- matching (PS3.4 C.2.2.2) ------------------------------------------------------------------------------------------


def matches(attribute: Attribute, wanted: str, item: Any, *, fuzzy: bool = False) -> bool:
    """Whether an attribute of a study, series or instance matches; `fuzzy`: the patient's name nearly."""
    value = attribute.value(item)
    if attribute.keyword == "ModalitiesInStudy":
        return any(text_matches(part, one) for part in _LIST.split(wanted) for one in _strings(value))
    text = "" if value is None else str(value)
    if attribute.vr == "UI":
        return text in wanted.split("\\")
    if attribute.vr in ("DA", "TM"):
        return in_range(
            text.replace(":", "").replace(".", "") if attribute.vr == "DA" else text.replace(":", ""), wanted
        )
    if attribute.vr in ("IS", "US"):
        return _number(text) == _number(wanted)
    if attribute.vr == "PN":
        nearly = fuzzy and attribute.keyword == "PatientName"
        return is_like(words_of(wanted), text) if nearly else name_matches(wanted, text)
    return text_matches(wanted, text)


def _strings(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, Iterable) and not isinstance(value, str) else [str(value)]


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def request_of(search: Search) -> tuple[database_pb2.FindStudiesRequest, tuple[tuple[Attribute, str], ...]]:
    """Return what the database is asked for, and what must be looked at afterwards."""
    request = database_pb2.FindStudiesRequest(fuzzy_names=search.fuzzy)
    rest: list[tuple[Attribute, str]] = []
    for attribute, value in search.of(STUDY):
        if attribute.keyword in _INDEXED:
            setattr(request, _INDEXED[attribute.keyword], value)
        elif attribute.keyword == "StudyInstanceUID":
            request.study_instance_uids.extend(value.split("\\"))
        elif attribute.keyword == "StudyDate":
            first, dash, last = value.partition("-")
            request.study_date_from, request.study_date_to = first, last if dash else first
        elif attribute.keyword == "ModalitiesInStudy":
            request.modalities.extend(part for part in _LIST.split(value) if part)
        else:
            rest.append((attribute, value))
    return request, tuple(rest)


# -- results -----------------------------------------------------------------------------------------------------------


class Results:
    """Writes results as DICOM JSON; what several have in common is made once.

    Args:
        search: what is asked for.
        base: URL of the service, for Retrieve URL (0008,1190).
    """

    def __init__(self, search: Search, base: str) -> None:
        self._search = search
        self._base = base
        self._wanted = {level: [a for a in ATTRIBUTES if a.level == level and search.wants(a)] for level in LEVELS}
        self._before: dict[str, tuple[Any, dict[str, Any]]] = {}

    def write(self, study: Any, series: Any = None, instance: Any = None) -> dict[str, Any]:
        """Return database.v1.Study, Series and Instance, as deep as the search goes."""
        made: dict[str, Any] = {_CHARACTER_SET: dicom_json.attribute("CS", "ISO_IR 192")}
        made |= self._part(STUDY, study)
        url = f"{self._base}/studies/{study.study_instance_uid}"
        if series is not None:
            made |= self._part(SERIES, series)
            url += f"/series/{series.series_instance_uid}"
        if instance is not None:
            made |= self._attributes(INSTANCE, instance)
            url += f"/instances/{instance.identity.sop_instance_uid}"
        made[_RETRIEVE_URL] = dicom_json.attribute("UR", url)
        if self._search.level != SERIES:
            found = availability(instance) if instance is not None else "ONLINE"
            made[_AVAILABILITY] = dicom_json.attribute("CS", found)
        return dict(sorted(made.items()))

    def _part(self, level: str, item: Any) -> dict[str, Any]:
        before = self._before.get(level)
        if before is None or before[0] is not item:
            before = self._before[level] = (item, self._attributes(level, item))
        return before[1]

    def _attributes(self, level: str, item: Any) -> dict[str, Any]:
        made = {}
        for described in self._wanted[level]:
            value = described.value(item)
            # What is empty is told of the level that was searched, if it belongs to every result.
            if value is None or (value == "" and not (described.always and level == self._search.level)):
                continue
            values = _strings(value) if described.keyword == "ModalitiesInStudy" else [value]
            made[described.tag] = dicom_json.attribute(described.vr, *values)
        return made


def availability(instance: Any) -> str:
    """Return Instance Availability (0008,0056) of a database.v1.Instance (PS3.3 C.4.23.1.1)."""
    # What is in the permanent tier only is read from there as it is.
    return "ONLINE" if any(place.target for place in instance.locations) else "UNAVAILABLE"


def warning(base: str, text: str) -> str:
    """Return the value of a Warning header (PS3.18 8.3.4)."""
    return f"299 {base}: {text}"


def base_url(scheme: str, host: str) -> str:
    """Return the URL of the service; without scheme and host where the Host header is none."""
    good = re.fullmatch(r"[A-Za-z0-9.\-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", host)
    return f"{scheme}://{host}/dicom-web" if good else "/dicom-web"
