"""Does a study have an order, and is its patient the order's? Pure functions (FEATURES NG1, NG2, NG4)."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

CANDIDATES_MOST: Final = 10


class Outcome(Enum):
    """VerifyOutcome of connectivity.v1."""

    MATCH = 1
    NO_ORDER = 2
    PATIENT_MISMATCH = 3
    AMBIGUOUS = 4


@dataclass(frozen=True, slots=True)
class Person:
    """A patient: as an object names it, or as the RIS knows it now."""

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""


@dataclass(frozen=True, slots=True)
class OrderKeys:
    """What of an order is compared. `handle` is the caller's own."""

    handle: int
    patient: Person
    accession_number: str = ""
    study_instance_uid: str = ""
    scheduled_date: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True)
class StudyKeys:
    """What a study is looked for by. Dates are YYYYMMDD; empty = the study does not say."""

    patient: Person
    study_instance_uid: str = ""
    accession_number: str = ""
    study_date: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """Of the station: `study_key` and `patient_key` as in [[stations]]."""

    study_key: str = "accession else date+modality"
    patient_key: str = "id"
    accession_identifies_patient: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """`orders`: the one that matched, or candidates; `mismatched`: DICOM keywords that contradict."""

    outcome: Outcome
    orders: tuple[OrderKeys, ...] = ()
    mismatched: tuple[str, ...] = ()


Find = Callable[[], Sequence[OrderKeys]]


def match(study: StudyKeys, policy: Policy, *, by_uid: Find, by_accession: Find, by_patient_and_date: Find) -> Result:
    """Compare a study with the orders of its domain.

    An order that carries the study's UID goes first, then the study key of the policy; the patient has to agree
    whatever was found (CORRECTNESS rule 11). The three functions give orders that are not cancelled: with the Study
    UID, with the accession number, and those of the study's date whose patient may be the study's.

    "accession else date" never joins two different accession numbers: the study's own order may still come.
    """
    keyed: list[OrderKeys] = []
    if study.study_instance_uid:
        keyed = list(by_uid())
    parts = policy.study_key.split(" else ")
    for part in parts:
        if keyed:
            break
        if part == "accession":
            keyed = list(by_accession()) if study.accession_number else []
        elif study.study_date:
            # A date is no key of its own: only orders of this patient are meant.
            same = [order for order in by_patient_and_date() if order.scheduled_date == study.study_date]
            if part == "date+modality":
                same = [order for order in same if order.modality in ("", study.modality)]
            if len(parts) > 1 and study.accession_number:
                same = [order for order in same if order.accession_number in ("", study.accession_number)]
            keyed = [order for order in same if not differences(study.patient, order.patient, policy)]
    if not keyed:
        return Result(Outcome.NO_ORDER)
    trusted = study.accession_number if policy.accession_identifies_patient else ""
    agreeing = [
        order
        for order in keyed
        if (trusted and order.accession_number == trusted) or not differences(study.patient, order.patient, policy)
    ]
    if not agreeing:
        mismatched = differences(study.patient, keyed[0].patient, policy)
        return Result(Outcome.PATIENT_MISMATCH, tuple(keyed[:CANDIDATES_MOST]), mismatched)
    chosen = _narrow(study, agreeing)
    if len(chosen) > 1:
        return Result(Outcome.AMBIGUOUS, tuple(chosen[:CANDIDATES_MOST]))
    return Result(Outcome.MATCH, (chosen[0],))


def _narrow(study: StudyKeys, orders: list[OrderKeys]) -> list[OrderKeys]:
    """Of several orders keep those that fit better: the same UID, then modality, then date."""
    for ours, field in (
        (study.study_instance_uid, "study_instance_uid"),
        (study.modality, "modality"),
        (study.study_date, "scheduled_date"),
    ):
        orders = [order for order in orders if ours and getattr(order, field) == ours] or orders
    return orders


def differences(study: Person, order: Person, policy: Policy) -> tuple[str, ...]:
    """Return the DICOM keywords of what contradicts under the policy; none if the patients agree."""
    found = []
    if "id" in policy.patient_key.split("+"):
        if not study.patient_id or study.patient_id != order.patient_id:
            found.append("PatientID")
        elif "" not in (issuers := (study.issuer_of_patient_id, order.issuer_of_patient_id)) and len(set(issuers)) == 2:
            found.append("IssuerOfPatientID")
    if "name" in policy.patient_key.split("+") and not same_name(study.patient_name, order.patient_name):
        found.append("PatientName")
    return tuple(found)


def same_name(one: str, other: str) -> bool:
    """Whether two person names agree in a component group that both have; case, width and padding do not count."""
    ours, theirs = _groups(one), _groups(other)
    common = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b]
    return bool(common) and any(a == b for a, b in common)


def _groups(name: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return ["^".join(part.strip() for part in group.rstrip("^ ").split("^")) for group in folded.split("=")]
