"""The SOP classes and transfer syntaxes that the edge takes (PS3.4 annex B and I, PS3.6 annex A)."""

from functools import cache
from typing import Final

# Not of a patient (PS3.4 annex GG): they belong to no study, and a store of studies has no place for them.
_NON_PATIENT: Final = frozenset(
    (
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol
        "1.2.840.10008.5.1.4.39.1",  # Color Palette
        "1.2.840.10008.5.1.4.43.1",  # Generic Implant Template
        "1.2.840.10008.5.1.4.44.1",  # Implant Assembly Template
        "1.2.840.10008.5.1.4.45.1",  # Implant Template Group
        "1.2.840.10008.5.1.4.1.1.200.1",  # CT Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.200.3",  # Protocol Approval
        "1.2.840.10008.5.1.4.1.1.200.7",  # XA Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.201.1",  # Inventory
        "1.2.840.10008.1.3.10",  # Media Storage Directory: in files only
    )
)
# Newer than pydicom's dictionary; a test holds the result against pynetdicom's.
_NEWER: Final = (
    "1.2.840.10008.5.1.4.1.1.9.100.1",  # Waveform Presentation State
    "1.2.840.10008.5.1.4.1.1.9.100.2",  # Waveform Acquisition Presentation State
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.66.8",  # Height Map Segmentation
)
_NEWER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
    "1.2.840.10008.1.2.4.111",  # JPEG XL JPEG Recompression
    "1.2.840.10008.1.2.4.112",  # JPEG XL
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression: frames are deflated, the data set is not
)
# Encodings of something else than a stored data set: MIME, XML, Papyrus, real-time video (PS3.22).
_NO_DATA_SET: Final = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.20", "1.2.840.10008.1.2.7.")


@cache
def storage_sop_classes() -> frozenset[str]:
    """Return every standard storage SOP class whose objects belong to a study, retired ones included."""
    from pydicom.uid import UID_dictionary  # noqa: PLC0415 - its dictionary is large, and needed by acceptors only

    return frozenset(
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and "Storage Commitment" not in name and uid not in _NON_PATIENT
    ).union(_NEWER)


@cache
def transfer_syntaxes() -> frozenset[str]:
    """Return every transfer syntax of a data set, retired ones included."""
    from pydicom.uid import UID_dictionary  # noqa: PLC0415 - as above

    return frozenset(
        uid
        for uid, (_, kind, *_) in UID_dictionary.items()
        if kind == "Transfer Syntax" and not uid.startswith(_NO_DATA_SET)
    ).union(_NEWER_SYNTAXES)
