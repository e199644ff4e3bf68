"""What the RIS's answer makes of an admission: pure rules (FEATURES NG1 to NG4, CORRECTNESS 10 and 11)."""

from dataclasses import dataclass
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.stations import Station

NOT_REQUIRED, PENDING, VERIFIED, UNVERIFIED, HELD = (
    common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
    common_pb2.VERIFICATION_STATE_PENDING,
    common_pb2.VERIFICATION_STATE_VERIFIED,
    common_pb2.VERIFICATION_STATE_UNVERIFIED,
    common_pb2.VERIFICATION_STATE_HELD,
)
MATCH, NO_ORDER, MISMATCH, AMBIGUOUS = "MATCH", "NO_ORDER", "PATIENT_MISMATCH", "AMBIGUOUS"
DOMAIN_UNKNOWN, OVERRIDDEN = "DOMAIN_UNKNOWN", "OVERRIDDEN"
UNAVAILABLE, TIMEOUT = "RIS_UNAVAILABLE", "TIMEOUT"
# Nobody has said anything: no new knowledge.
UNKNOWN: Final = frozenset((UNAVAILABLE, TIMEOUT))
_IDENTITY: Final = frozenset(("PatientID", "IssuerOfPatientID"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared with the orders. `address` is where the station called from, `study_date` YYYYMMDD."""

    key: AdmissionKey
    address: str = ""
    study_date: str = ""
    modality: str = ""
    patient_sex: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a Connectivity Manager said: MATCH, NO_ORDER, PATIENT_MISMATCH, AMBIGUOUS, or why it said nothing.

    `order` is the database.v1.Order of a MATCH; `candidates` are the order ids of the others; `mismatched` are the
    DICOM keywords that contradict.
    """

    outcome: str
    order: Any = None
    candidates: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an admission."""

    state: int
    reason: str = ""
    domain: str = ""
    mismatched: tuple[str, ...] = ()
    order: Any = None
    candidates: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether somebody has said something."""
        return self.reason not in UNKNOWN

    @property
    def order_id(self) -> str:
        """The order; empty = none."""
        return str(self.order.order_id) if self.order is not None else ""


@dataclass(frozen=True, slots=True)
class Standing:
    """An admission as the Database Server has it.

    `digest` is that of its key, `time` when its first object came, in seconds since 1970.
    """

    facts: Facts
    digest: bytes
    state: int
    reason: str = ""
    domain: str = ""
    mismatched: tuple[str, ...] = ()
    order_id: str = ""
    revision: int = 0
    time: float = 0.0


def decide(station: Station, domain: str, answer: Answer) -> Verdict:
    """Return the verdict. HELD is for contradiction, and by policy for the lack of an order or of the RIS."""
    if answer.outcome == MATCH:
        return Verdict(VERIFIED, domain=domain, order=answer.order)
    held = {
        NO_ORDER: station.verification == "required",
        UNAVAILABLE: station.on_ris_unavailable == "hold",
        TIMEOUT: station.on_ris_unavailable == "hold",
    }.get(answer.outcome, True)
    return Verdict(
        HELD if held else UNVERIFIED, answer.outcome, domain, answer.mismatched, candidates=answer.candidates
    )


def supersedes(verdict: Verdict, standing: Standing, patient_key: str) -> bool:
    """Whether a verdict changes an admission.

    That nobody could be asked changes only what nobody was ever asked about: least of all does it show a held study.
    What a person has answered for, only a match changes. What is verified stays so when a further order comes, or when
    the RIS forgets an old one: only the patient of its own order can contradict it, and not by a new name alone where
    the ID is compared.
    """
    if verdict.state == VERIFIED:
        return True  # the database finds out whether anything is new
    if standing.reason == OVERRIDDEN:
        return False
    if verdict.state == NOT_REQUIRED:
        return standing.state == PENDING
    if standing.state == VERIFIED:
        return (
            verdict.reason == MISMATCH
            and standing.order_id in verdict.candidates
            and (patient_key == "name" or not _IDENTITY.isdisjoint(verdict.mismatched))
        )
    if not verdict.known:
        return standing.state == PENDING or (
            standing.state in (UNVERIFIED, HELD)
            and (standing.reason == "" or (standing.reason in UNKNOWN and standing.state != verdict.state))
        )
    now = (verdict.state, verdict.reason, verdict.mismatched, verdict.domain)
    return now != (standing.state, standing.reason, standing.mismatched, standing.domain)
