"""The admission key: what a verification, a ticket and a hold are bound to (CORRECTNESS: two equal keys share them)."""

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache

from radmesh.dicom.header import QueryableHeader, tags


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
        return _digest(self)

    @classmethod
    def of(cls, station: str, header: QueryableHeader) -> "AdmissionKey":
        """Return the key of an object that `station` sent; without NULs, which the database does not keep."""
        return cls(
            station,
            *(
                header.text(keyword).replace("\0", "")
                for keyword in (
                    "StudyInstanceUID",
                    "PatientID",
                    "IssuerOfPatientID",
                    "PatientName",
                    "PatientBirthDate",
                    "AccessionNumber",
                )
            ),
        )

    @classmethod
    def of_header(cls, station: str, header: bytes) -> "AdmissionKey":
        """Return the same of a queryable header's bytes; what the objects of a study have in common is read once.

        Raises:
            ValueError: it is none.
        """
        return _of(station, _TAGS.of(header))


_FIELDS = tuple(f.name for f in fields(AdmissionKey))
_TAGS = tags(
    "StudyInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "AccessionNumber",
    "SpecificCharacterSet",
)


@lru_cache(512)
def _of(station: str, header: bytes) -> AdmissionKey:
    return AdmissionKey.of(station, QueryableHeader.parse(header))


@lru_cache(512)
def _digest(key: AdmissionKey) -> bytes:
    digest = hashlib.sha256()
    for name in _FIELDS:
        value = getattr(key, name).encode()
        digest.update(len(value).to_bytes(4, "big"))
        digest.update(value)
    return digest.digest()
