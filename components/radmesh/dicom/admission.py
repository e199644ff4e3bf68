"""The admission key: what a verification, a ticket and a hold are bound to (CORRECTNESS: two equal keys share them)."""

import hashlib
from dataclasses import dataclass, fields

from radmesh.dicom.header import QueryableHeader


@dataclass(frozen=True, slots=True)
class AdmissionKey:
    """Station, study and demographics of an object, in Unicode, without padding; what is absent is empty."""

    station: str
    study_instance_uid: str
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    accession_number: str = ""

    def digest(self) -> bytes:
        """Return SHA-256 over the fields in order, UTF-8, each behind its length in four bytes."""
        digest = hashlib.sha256()
        for name in _FIELDS:
            value = getattr(self, name).encode()
            digest.update(len(value).to_bytes(4, "big"))
            digest.update(value)
        return digest.digest()

    @classmethod
    def of(cls, station: str, header: QueryableHeader) -> "AdmissionKey":
        """Return the key of an object that `station` sent."""
        return cls(
            station=station,
            study_instance_uid=header.text("StudyInstanceUID"),
            patient_id=header.text("PatientID"),
            issuer_of_patient_id=header.text("IssuerOfPatientID"),
            patient_name=header.text("PatientName"),
            patient_birth_date=header.text("PatientBirthDate"),
            accession_number=header.text("AccessionNumber"),
        )


_FIELDS = tuple(f.name for f in fields(AdmissionKey))
