"""What messages say of patients and orders, in DICOM's terms.

A message that cannot be understood raises an error whose metadata "location" names the field, so that the answer's ERR
segment can; a value of lesser weight that makes no sense is left out, and a remark says so.
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as _Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from radmesh.hl7.message import Component, Field, Message, Segment, parse_path
from radmesh.runtime.errors import RadmeshError

Action = Literal["NEW", "CHANGE", "CANCEL"]
Status = Literal["SCHEDULED", "IN_PROGRESS", "COMPLETED", "CANCELLED", ""]
Subject = Literal["ORDER", "PATIENT", "MERGE", "REPORT", "ACKNOWLEDGEMENT", ""]

# A18 and A34 are what A40 was before 2.3.1; A28 adds the person that A31 changes.
_PATIENT_TRIGGERS: Final = frozenset(("A01", "A04", "A05", "A08", "A28", "A31"))
_MERGE_TRIGGERS: Final = frozenset(("A18", "A34", "A40", "A47"))

# Where a value is looked for, first to last; what is empty passes. Patient IDs are CX, names XPN or XCN.
DEFAULT_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "accession_number": ("IPC-1", "OBR-18", "OBR-3"),
    "study_instance_uid": ("IPC-3", "ZDS-1"),
    "placer_order_number": ("OBR-2", "ORC-2"),
    "filler_order_number": ("OBR-3", "ORC-3"),
    "requested_procedure_id": ("IPC-2", "OBR-19"),
    "scheduled_procedure_step_id": ("IPC-4", "OBR-20"),
    "procedure_code": ("OBR-44", "OBR-4"),
    "procedure_code_scheme": ("OBR-44.3", "OBR-4.3"),
    "procedure_description": ("OBR-44.2", "OBR-4.2"),
    "modality": ("IPC-5", "OBR-24"),
    "station_ae_title": ("IPC-9",),
    "scheduled_time": ("TQ1-7", "ORC-7.4", "OBR-27.4", "OBR-36", "OBR-6"),
    "referring_physician_name": ("PV1-8",),
    "patient_id": ("PID-3", "PID-2"),
    "patient_name": ("PID-5",),
    "patient_birth_date": ("PID-7",),
    "patient_sex": ("PID-8",),
}

# Table 0119: what an order control code does; one that is not here changes the order.
_NEW: Final = frozenset(("NW", "SN", "RO", "PA", "CH"))
_CANCEL: Final = frozenset(("CA", "OC", "CR", "DC", "OD", "DR", "RP", "RQ", "RU"))
# "Unable to …" and data errors: the order stays as it is.
_NOTHING: Final = frozenset(("UA", "UC", "UD", "UF", "UH", "UM", "UN", "UR", "UX", "DE"))
# Table 0038 (ORC-5), then table 0123 (OBR-25) where ORC-5 is empty.
_ORDER_STATUS: Final[dict[str, Status]] = {
    "A": "IN_PROGRESS",
    "IP": "IN_PROGRESS",
    "CM": "COMPLETED",
    "CA": "CANCELLED",
    "DC": "CANCELLED",
    "RP": "CANCELLED",
    "SC": "SCHEDULED",
    "HD": "SCHEDULED",
}
_RESULT_STATUS: Final[dict[str, Status]] = {
    "O": "SCHEDULED",
    "S": "SCHEDULED",
    "I": "IN_PROGRESS",
    "A": "IN_PROGRESS",
    "P": "IN_PROGRESS",
    "R": "IN_PROGRESS",
    "F": "COMPLETED",
    "C": "COMPLETED",
    "X": "CANCELLED",
}
# Table 0074 -> Modality (0008,0060); "" where it says no more than radiology.
_MODALITIES: Final = {
    "MRI": "MR",
    "NMR": "MR",
    "NMS": "NM",
    "RUS": "US",
    "VUS": "US",
    "CUS": "US",
    "OUS": "US",
    "RAD": "",
    "RX": "",
    "XRC": "",
    "IMG": "",
}
# Table 0001 -> Patient's Sex (0010,0040).
_SEXES: Final = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O", "U": "", "": ""}

_MAX_ID = 250
_MAX_TEXT = 1024
_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where a domain's messages say what.

    `paths` replaces single entries of `DEFAULT_PATHS`; `issuer` is the domain's Issuer of Patient ID, for patients
    whose message names none.
    """

    issuer: str = ""
    paths: _Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the paths.

        Raises:
            ValueError: a name or a path is none; the message says what is.
        """
        for name, paths in self.paths.items():
            if name not in DEFAULT_PATHS:
                raise ValueError(f"mapping {name!r}: one of {', '.join(DEFAULT_PATHS)}")
            if isinstance(paths, str) or not paths:
                raise ValueError(f'mapping {name!r}: a list of paths to fields, such as ["OBR-18"]')
            for path in paths:
                segment = parse_path(path)[0]
                if name in ("patient_id", "patient_name", "patient_birth_date", "patient_sex") and segment != "PID":
                    raise ValueError(f"mapping {name!r}: a patient is read from PID, not from {segment}")

    def of(self, name: str) -> Sequence[str]:
        """Return the paths of a value, first to last."""
        return self.paths.get(name, DEFAULT_PATHS[name])


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient as a message names it.

    `issuer_of_patient_id` is the namespace of the assigning authority, else its universal ID, else the domain's.
    `patient_name` is a DICOM PN with its component groups, `patient_birth_date` YYYYMMDD, `patient_sex` M, F, O; each
    "" if the message says nothing. `cleared` names those that the sender wants deleted (HL7's null).
    """

    patient_id: str
    issuer_of_patient_id: str = ""
    issuer_universal_id: str = ""
    issuer_universal_id_type: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    cleared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """What a message says of one order (a requested procedure). Texts are "" where it says nothing.

    `status` is "" where the message does not tell: it stays what it was. `scheduled_time` is YYYYMMDDHHMMSS or shorter.
    """

    action: Action
    status: Status
    patient: Patient
    accession_number: str = ""
    placer_order_number: str = ""
    filler_order_number: str = ""
    study_instance_uid: str = ""
    requested_procedure_id: str = ""
    scheduled_procedure_step_id: str = ""
    procedure_code: str = ""
    procedure_code_scheme: str = ""
    procedure_description: str = ""
    modality: str = ""
    station_ae_title: str = ""
    scheduled_time: str = ""
    referring_physician_name: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PatientEvent:
    """New demographics of a patient."""

    trigger: str
    patient: Patient
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge:
    """`prior` is `surviving` from now on."""

    prior: Patient
    surviving: Patient


@dataclass(frozen=True, slots=True)
class MergeEvent:
    """Patients that are one (A40), or whose ID was changed (A47), in the order of the message."""

    trigger: str
    merges: tuple[Merge, ...]
    remarks: tuple[str, ...] = ()


def subject(message: Message) -> Subject:
    """Return what a message is about; "" if it is nothing that radmesh acts on."""
    kind = message.type
    if kind.code in ("ORM", "OMI", "OMG"):
        return "ORDER"
    if kind.code == "ORU":
        return "REPORT"
    if kind.code == "ADT":
        if kind.trigger in _MERGE_TRIGGERS:
            return "MERGE"
        return "PATIENT" if kind.trigger in _PATIENT_TRIGGERS else ""
    return "ACKNOWLEDGEMENT" if message.segment("MSA") else ""


def read_order(message: Message, mapping: Mapping | None = None) -> list[OrderEvent]:
    """Return what an ORM^O01, OMI^O23 or OMG^O19 says, one event an order; none if it changes nothing.

    Several steps of one requested procedure (same accession number and Study UID) are one order: the first that is not
    cancelled tells.

    Raises:
        RadmeshError: HL7_SEGMENT_MISSING, HL7_FIELD_MISSING, HL7_FIELD_INVALID, with "location" in the metadata.
    """
    mapping = mapping or Mapping()
    events: list[OrderEvent] = []
    seen = False
    for scope in _orders(message):
        seen = True
        if "PID" not in scope:
            raise _missing_segment("PID")
        if _code(scope, "ORC", 1) not in _NOTHING:
            events.append(_order(scope, mapping))
    if not seen:
        raise _missing_segment("PID" if message.segment("PID") is None else "ORC")
    return _distinct(_with_uids(events))


def read_patient_event(message: Message, mapping: Mapping | None = None) -> PatientEvent | MergeEvent:
    """Return what an ADT says of patients: a MergeEvent for A40, A47, A18 and A34, else demographics.

    Raises:
        RadmeshError: HL7_SEGMENT_MISSING, HL7_FIELD_MISSING, HL7_FIELD_INVALID, with "location" in the metadata.
    """
    mapping = mapping or Mapping()
    remarks: list[str] = []
    trigger = message.type.trigger
    if trigger not in _MERGE_TRIGGERS:
        pid = message.segment("PID")
        if pid is None:
            raise _missing_segment("PID")
        return PatientEvent(trigger, _patient(pid, mapping, remarks), tuple(remarks))
    merges = []
    for number, group in enumerate(message.groups(("PID",)), 1):
        surviving = _patient(group[0], mapping, remarks)
        priors = [segment for segment in group if segment.name == "MRG"]
        if not priors:
            raise _missing_segment("MRG" if number == 1 else f"MRG({number})")
        merges += [_merge(mrg, group[0], surviving, mapping) for mrg in priors]
    if not merges:
        raise _missing_segment("PID")
    return MergeEvent(trigger, tuple(merges), tuple(remarks))


# Orders


def _orders(message: Message) -> Iterator[dict[str, Segment]]:
    """Give the segments that speak of each order: its own, and the patient, visit and ORC that it stands under."""
    above: dict[str, Segment] = {}
    for group in message.groups(("PID", "ORC", "OBR")):
        own: dict[str, Segment] = {}
        for segment in group:
            own.setdefault(segment.name, segment)
        if "PID" in own:
            above = {}
        above |= {name: own[name] for name in ("PID", "PV1", "ORC") if name in own}
        if "ORC" not in own and "OBR" not in own:
            continue
        # Each IPC is a scheduled step, with its own accession number and Study UID.
        scope = {"MSH": message.header} | above | own
        steps = [segment for segment in group if segment.name == "IPC"]
        yield from ({**scope, "IPC": step} for step in steps) if steps else (scope,)


def _order(scope: _Mapping[str, Segment], mapping: Mapping) -> OrderEvent:
    remarks: list[str] = []
    patient = _patient(scope["PID"], mapping, remarks)

    def text(name: str) -> str:
        return _text(next((v for _, c in _values(scope, mapping.of(name)) if (v := c.value.strip())), ""))

    def identifier(name: str) -> str:
        for path, component in _values(scope, mapping.of(name)):
            if value := component.value.strip():
                return _identifier(value, path)
        return ""

    control = _code(scope, "ORC", 1)
    action: Action = "CANCEL" if control in _CANCEL else "NEW" if control in _NEW else "CHANGE"
    accession, placer, filler = (
        identifier(name) for name in ("accession_number", "placer_order_number", "filler_order_number")
    )
    if not accession and not placer and not filler:
        raise RadmeshError(
            "HL7_FIELD_MISSING",
            "the order has no accession number, placer or filler number",
            metadata={"location": mapping.of("accession_number")[-1]},
        )
    uid = identifier("study_instance_uid")
    if uid and (len(uid) > 64 or not _UID.fullmatch(uid)):
        remarks.append("the Study Instance UID is none and was left out")
        uid = ""
    modality = text("modality").upper()
    scheduled = text("scheduled_time")
    return OrderEvent(
        action,
        _status(scope, action),
        patient,
        accession_number=accession,
        placer_order_number=placer,
        filler_order_number=filler,
        study_instance_uid=uid,
        requested_procedure_id=text("requested_procedure_id"),
        scheduled_procedure_step_id=text("scheduled_procedure_step_id"),
        procedure_code=text("procedure_code"),
        procedure_code_scheme=text("procedure_code_scheme"),
        procedure_description=text("procedure_description"),
        modality=_MODALITIES.get(modality, modality),
        station_ae_title=text("station_ae_title"),
        scheduled_time=_moment(scheduled, "the scheduled time", remarks),
        referring_physician_name=_referring(scope, mapping),
        remarks=tuple(remarks),
    )


def _values(scope: _Mapping[str, Segment], paths: Sequence[str]) -> Iterator[tuple[str, Component]]:
    """Give what stands at each path, in order; a subcomponent is given as a component of its own."""
    for path in paths:
        name, _, number, repetition, component, subcomponent = parse_path(path)
        if name in scope:
            found = scope[name].field(number).repetition(repetition).component(component)
            if subcomponent > 1:
                separator = found.coding.separators.subcomponent
                parts = found.text.split(separator, subcomponent) if separator else [found.text]
                found = Component(parts[subcomponent - 1] if len(parts) >= subcomponent else "", found.coding)
            yield path, found


def _status(scope: _Mapping[str, Segment], action: Action) -> Status:
    if action == "CANCEL":
        return "CANCELLED"
    if said := _code(scope, "ORC", 5):
        return _ORDER_STATUS.get(said, "")
    return _RESULT_STATUS.get(_code(scope, "OBR", 25), "SCHEDULED" if action == "NEW" else "")


def _code(scope: _Mapping[str, Segment], name: str, number: int) -> str:
    return scope[name].field(number).value.strip().upper() if name in scope else ""


def _with_uids(events: Sequence[OrderEvent]) -> list[OrderEvent]:
    """Give the Study UID of one step to the others of its accession number: a ZDS stands once, after the last."""
    uids = {e.accession_number: e.study_instance_uid for e in events if e.study_instance_uid and e.accession_number}
    return [
        e if e.study_instance_uid else replace(e, study_instance_uid=uids.get(e.accession_number, "")) for e in events
    ]


def _distinct(events: Sequence[OrderEvent]) -> list[OrderEvent]:
    chosen: dict[tuple[str, str], OrderEvent] = {}
    for event in events:
        number = event.accession_number or event.filler_order_number or event.placer_order_number
        key = (number, event.study_instance_uid)
        if key not in chosen or (chosen[key].action == "CANCEL" and event.action != "CANCEL"):
            chosen[key] = event
    return list(chosen.values())


def _referring(scope: _Mapping[str, Segment], mapping: Mapping) -> str:
    for path in mapping.of("referring_physician_name"):
        name, _, number, *_ = parse_path(path)
        if name in scope and (said := _names(scope[name].field(number), first=2)):
            return said
    return ""


# Patients


def _patient(pid: Segment, mapping: Mapping, remarks: list[str]) -> Patient:
    found, path = _chosen_id(pid, mapping.of("patient_id"), mapping.issuer)
    identity = _identity(found, path, mapping.issuer)
    cleared = []
    fields: dict[str, Field] = {}
    for name in ("patient_name", "patient_birth_date", "patient_sex"):
        fields[name] = _first_field(pid, mapping.of(name))
        if fields[name].is_null:
            cleared.append(name)
    birth = _moment(fields["patient_birth_date"].value.strip(), "the birth date", remarks)[:8]
    if 0 < len(birth) < 8:
        remarks.append("the birth date is incomplete and was left out")
        birth = ""
    sex = fields["patient_sex"].value.strip().upper()
    if sex not in _SEXES:
        remarks.append("the sex is no code of table 0001 and was left out")
    return replace(
        identity,
        patient_name=_names(fields["patient_name"]),
        patient_birth_date=birth,
        patient_sex=_SEXES.get(sex, ""),
        cleared=tuple(cleared),
    )


def _merge(mrg: Segment, pid: Segment, surviving: Patient, mapping: Mapping) -> Merge:
    """Return what a MRG and its PID say: of several IDs, those that have one issuer belong together."""
    paths = ("MRG-1", "MRG-4")
    found, path = _chosen_id(mrg, paths, surviving.issuer_of_patient_id)
    prior = _identity(found, path, surviving.issuer_of_patient_id)
    if prior.issuer_of_patient_id != surviving.issuer_of_patient_id:
        kept = {i.issuer_of_patient_id: i for i in reversed(_identities(pid, mapping.of("patient_id"), mapping.issuer))}
        for other in _identities(mrg, paths, mapping.issuer):
            if same := kept.get(other.issuer_of_patient_id):
                prior = other
                surviving = replace(
                    surviving,
                    patient_id=same.patient_id,
                    issuer_of_patient_id=same.issuer_of_patient_id,
                    issuer_universal_id=same.issuer_universal_id,
                    issuer_universal_id_type=same.issuer_universal_id_type,
                )
                break
    if (prior.patient_id, prior.issuer_of_patient_id) == (surviving.patient_id, surviving.issuer_of_patient_id):
        text = "MRG and PID name the same patient: nothing can be merged"
        raise RadmeshError("HL7_FIELD_INVALID", text, metadata={"location": path})
    return Merge(replace(prior, patient_name=_names(mrg.field(7))), surviving)


def _identities(segment: Segment, paths: Sequence[str], issuer: str) -> list[Patient]:
    """Return every ID of the first field that has one."""
    for path in paths:
        name, _, number, *_ = parse_path(path)
        valued = [r for r in segment.field(number).repetitions if r.value.strip()] if name == segment.name else []
        if valued:
            return [_identity(r, path, issuer) for r in valued]
    return []


def _first_field(segment: Segment, paths: Sequence[str]) -> Field:
    fields = [segment.field(number) for name, _, number, *_ in map(parse_path, paths) if name == segment.name]
    return next((f for f in fields if f.text), fields[0])


def _chosen_id(segment: Segment, paths: Sequence[str], issuer: str) -> tuple[Field, str]:
    """Return the repetition with the Patient ID: the domain's issuer's, else one of type MR or PI, else the first.

    Raises:
        RadmeshError: HL7_FIELD_MISSING.
    """
    for path in paths:
        name, _, number, *_ = parse_path(path)
        if name != segment.name:
            continue
        valued = [r for r in segment.field(number).repetitions if r.value.strip()]
        for fits in (
            lambda r: issuer and issuer in r.component(4).subcomponents[:2],
            lambda r: r.component(5).value.strip().upper() in ("MR", "PI"),
            lambda _: True,
        ):
            if found := next(filter(fits, valued), None):
                return found, path
    location = next((p for p in paths if p.startswith(segment.name)), paths[0])
    raise RadmeshError("HL7_FIELD_MISSING", f"{location} has no patient ID", metadata={"location": location})


def _identity(cx: Field, path: str, issuer: str) -> Patient:
    authority = [_identifier(part.strip(), f"{path}.4") for part in cx.component(4).subcomponents]
    namespace, universal, kind = (*authority, "", "", "")[:3]
    return Patient(
        _identifier(cx.value.strip(), path),
        namespace or universal or issuer,
        issuer_universal_id=universal,
        issuer_universal_id_type=kind,
    )


def _names(field_: Field, first: int = 1) -> str:
    """Return an XPN, or an XCN whose name begins at component `first`, as DICOM PN (PS3.5 6.2.1.1).

    The repetition of the first name type makes the groups: alphabetic, ideographic and phonetic by its representation
    (XPN-8); an alias or maiden name is taken only where there is no other.
    """
    groups: dict[str, str] = {}
    shift = first - 1
    kinds_at, representation_at = (10, 15) if shift else (7, 8)
    ranked = sorted(
        field_.repetitions, key=lambda r: r.component(kinds_at).value.strip().upper() in ("A", "M", "N", "P", "S", "B")
    )
    for repetition in ranked:
        parts = [_name_part(repetition.component(n + shift).value) for n in range(1, 7)]
        family, given, middle, suffix, prefix, degree = parts
        components = (family, given, middle, prefix, f"{suffix} {degree}".strip())
        if name := "^".join(components).rstrip("^"):
            groups.setdefault(repetition.component(representation_at).value.strip().upper() or "A", name)
    return "=".join(groups.get(k, "") for k in "AIP").rstrip("=")[:_MAX_TEXT]


def _name_part(text: str) -> str:
    """Take out what separates in a PN, and in a value of several."""
    return " ".join(re.sub(r"[\^=\\\x00-\x1f\x7f-\x9f]", " ", text).split())


# Values


def _identifier(value: str, path: str) -> str:
    """Return an identifier as it is, for a changed one would be another's.

    Raises:
        RadmeshError: HL7_FIELD_INVALID: too long, or with control characters.
    """
    if len(value) > _MAX_ID or _CONTROL.search(value):
        text = f"{path} is no identifier: at most {_MAX_ID} characters, none of them a control character"
        raise RadmeshError("HL7_FIELD_INVALID", text, metadata={"location": path})
    return value


def _text(value: str) -> str:
    return _CONTROL.sub(" ", value).strip()[:_MAX_TEXT]


def _moment(value: str, what: str, remarks: list[str]) -> str:
    """Return a TS as YYYYMMDDHHMMSS or as much of it as is there; "" and a remark if it is none."""
    if not value:
        return ""
    digits = re.match(r"\d{4}(?:\d{2}){0,5}", re.sub(r"(?<=\d)[-:T](?=\d)", "", value) if "-" in value[:8] else value)
    said = digits[0] if digits else ""
    try:
        datetime.strptime(f"{said}{'00000101000000'[len(said) :]}", "%Y%m%d%H%M%S")  # noqa: DTZ007 - only whether it is one
    except ValueError:
        remarks.append(f"{what} is none and was left out")
        return ""
    return said


def _missing_segment(name: str) -> RadmeshError:
    return RadmeshError("HL7_SEGMENT_MISSING", f"the message has no {name} segment", metadata={"location": name})
