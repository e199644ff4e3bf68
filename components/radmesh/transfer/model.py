"""What crosses the edge of transfer.v1, as plain values."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import DecodeError

from radmesh.api.common.v1 import common_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome, Ref

CHUNK_MAX: Final = 1_048_560
"""Bytes of data in one message, and of one record in a store: 256 whole LMDB pages less the page header."""
QUERYABLE_MAX: Final = 262_144
TICKET_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """Where one stored object is: store, study, generation, sequence."""

    store_id: str
    study_hash: str
    generation: int
    sequence: int

    @property
    def ref(self) -> Ref:
        """The same within its store."""
        return Ref(self.study_hash, self.generation, self.sequence)

    @classmethod
    def of(cls, message: common_pb2.ObjectReference) -> "ObjectReference":
        """From its message."""
        return cls(message.store_id, message.study_hash, message.generation, message.sequence)

    def message(self) -> common_pb2.ObjectReference:
        """As its message."""
        return common_pb2.ObjectReference(
            store_id=self.store_id, study_hash=self.study_hash, generation=self.generation, sequence=self.sequence
        )


@dataclass(frozen=True, slots=True)
class Committed:
    """An object is durable: where, and what it was compared with what the store had."""

    object: ObjectReference
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ticket:
    """A signed admission of one admission key into one store (CORRECTNESS.md 8)."""

    payload: bytes
    signature: bytes
    issuer: str
    store_id: str
    target: str
    epoch: bytes
    admission_key: bytes
    study_instance_uid: str
    verification: int
    expire_time: datetime

    @classmethod
    def parse(cls, signed: common_pb2.SignedTicket) -> "Ticket":
        """Read a ticket; the signature is the store's affair.

        Raises:
            RadmeshError: TICKET_INVALID when it cannot be read.
        """
        if not 0 < len(signed.payload) <= TICKET_MAX or len(signed.signature) != 64:
            raise RadmeshError("TICKET_INVALID", "the ticket has an impossible size: admit again")
        try:
            ticket = common_pb2.Ticket.FromString(signed.payload)
            expire_time = ticket.expire_time.ToDatetime(UTC)
        except (DecodeError, ValueError) as error:
            raise RadmeshError("TICKET_INVALID", "the ticket cannot be read: admit again") from error
        return cls(
            payload=signed.payload,
            signature=signed.signature,
            issuer=ticket.issuer,
            store_id=ticket.store_id,
            target=ticket.target,
            epoch=ticket.epoch,
            admission_key=ticket.admission_key,
            study_instance_uid=ticket.study_instance_uid,
            verification=ticket.verification,
            expire_time=expire_time,
        )

    def message(self) -> common_pb2.SignedTicket:
        """As its message."""
        return common_pb2.SignedTicket(payload=self.payload, signature=self.signature)


def key_message(key: AdmissionKey) -> common_pb2.AdmissionKey:
    """An admission key as its message."""
    return common_pb2.AdmissionKey(
        station=key.station,
        study_instance_uid=key.study_instance_uid,
        patient_id=key.patient_id,
        issuer_of_patient_id=key.issuer_of_patient_id,
        patient_name=key.patient_name,
        patient_birth_date=key.patient_birth_date,
        accession_number=key.accession_number,
    )


def key_of(message: common_pb2.AdmissionKey) -> AdmissionKey:
    """An admission key from its message."""
    return AdmissionKey(
        station=message.station,
        study_instance_uid=message.study_instance_uid,
        patient_id=message.patient_id,
        issuer_of_patient_id=message.issuer_of_patient_id,
        patient_name=message.patient_name,
        patient_birth_date=message.patient_birth_date,
        accession_number=message.accession_number,
    )
