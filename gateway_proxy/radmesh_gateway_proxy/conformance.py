"""The DICOM conformance statement (PS3.2), made from the tables that associations are negotiated and answered by."""

from collections.abc import Iterable, Sequence

from pydicom.uid import UID_dictionary

from radmesh.dicom.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION_SOP_CLASS,
)
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.delivery import WARNINGS
from radmesh_gateway_proxy.dimse import Status
from radmesh_gateway_proxy.negotiation import MOST_OPERATIONS, STORAGE_EXTENDED_NEGOTIATION
from radmesh_gateway_proxy.objects import FALLBACKS
from radmesh_gateway_proxy.pdus import APPLICATION_CONTEXT_NAME
from radmesh_gateway_proxy.services import asking, availability, commitment, procedure_step, step_retrieval
from radmesh_gateway_proxy.services.registry import services
from radmesh_gateway_proxy.sop_classes import storage_sop_classes, transfer_syntaxes

# Newer than the dictionary (radmesh_gateway_proxy.sop_classes).
_NAMES = {
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
# Of a retrieve; those of the other services are in their own pages.
_RETRIEVE_STATUSES = (
    (Status.SUCCESS, "all sub-operations were done, also when there were none"),
    (Status.PENDING, "sub-operations go on; sent five times a second at most, with their numbers"),
    (Status.CANCELLED, "a C-CANCEL came, and sub-operations remain"),
    (Status.SUB_OPERATIONS_FAILED, "some failed, or ended with a warning; Failed SOP Instance UID List is given"),
    (Status.CANNOT_PERFORM_SUB_OPERATIONS, "none could be done; Failed SOP Instance UID List is given"),
    (Status.MOVE_DESTINATION_UNKNOWN, "no station of that AE title has a host and a port"),
    (Status.DATA_SET_MISMATCH, "the identifier breaks the rules of unique keys (PS3.4 C.4.2.2.1)"),
    (Status.CANNOT_UNDERSTAND, "the identifier cannot be read"),
    (Status.NOT_AUTHORIZED, "the station has no grant for it"),
    (Status.OUT_OF_RESOURCES, "something within the cluster does not answer: try again"),
)


def document() -> str:
    """Return docs/reference/conformance.md."""
    section = Section()
    lines = [
        "# DICOM conformance statement",
        "",
        "Made by `make docs` from the tables that associations are negotiated and requests are answered by; a test",
        "compares the two. Limits and time-outs are settings of [dicom]: docs/reference/config.md.",
        "",
        "## Associations",
        "",
        *_table(
            ("what", "value"),
            (
                ("Application Context Name", APPLICATION_CONTEXT_NAME),
                ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
                ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
                ("AE title", f"{section.ae_title}, by configuration"),
                ("Maximum PDU taken", f"{section.max_pdu} bytes, by configuration"),
                ("Associations at once", f"{section.max_associations}, by configuration"),
                (
                    "Asynchronous operations",
                    f"window {MOST_OPERATIONS}, 1; responses come in the requests' order",
                ),
                (
                    "SCP/SCU role selection",
                    "the SCP role of storage classes is accepted, for C-GET; of Storage Commitment, for reports",
                ),
                (
                    "Extended negotiation of storage classes",
                    f"{' '.join(f'{byte:02X}' for byte in STORAGE_EXTENDED_NEGOTIATION)}: level 2, nothing is coerced",
                ),
                ("Transport", "TCP/IP, IPv4 and IPv6; TLS 1.2 and later on a port of its own"),
            ),
        ),
        "",
        "Of several transfer syntaxes in a presentation context the first that is known here is accepted.",
        "",
        "## Services, as SCP",
        "",
        "`grant` is what a station needs for it.",
        "",
        *_table(
            ("service", "operation", "SOP class", "UID", "transfer syntaxes", "grant"),
            [
                ("Verification", "C-ECHO", "Verification SOP Class", VERIFICATION_SOP_CLASS, "as storage", ""),
                ("Storage", "C-STORE", "see below", "", "see below", "store"),
                *(
                    (s.name, s.command.name.replace("_", "-"), name, uid, _syntaxes(s.transfer_syntaxes), s.grant)
                    for s in services()
                    for uid, name in s.sop_classes.items()
                ),
            ],
        ),
        "",
        "## Services, as SCU",
        "",
        "- Storage (C-STORE), of a C-MOVE, `radmesh send` and routes: each SOP class is proposed with every transfer",
        "  syntax that its objects are stored in, or with those that the station prefers, one a presentation context,",
        f"  and with {_syntaxes(FALLBACKS)}. Objects go as stored where that is",
        "  accepted; else they are re-encoded, compressed pixel data decoded. One association carries what fits 128",
        "  presentation contexts. The Move Originator is named.",
        f"- {', '.join(f'0x{status:04X}' for status in sorted(WARNINGS))} of a C-STORE count as warnings, others but",
        "  0x0000 as failures.",
        "- Storage Commitment (N-EVENT-REPORT): on a new association, or the one that was asked on.",
        "- Storage Commitment (N-ACTION), of what stations with the option `commit` were sent, 10,000 instances a",
        "  transaction. The report is taken on an association that the station opens, with the role of the SCP; it is",
        "  asked again each hour until it reports. What it does not store is sent once more.",
        f"- Instance Availability Notification (N-CREATE, {availability.SOP_CLASS}), to stations with the option",
        "  `availability`: of a study that is complete, with all of it that is not held, and again when more has come.",
        "- Modality Performed Procedure Step (N-CREATE, N-SET), to stations with the option `mpps`: what modalities",
        "  say, in order, until it is taken; what is refused ends the step there.",
        "",
        "What leaves carries corrected demographics (docs/reference/overlay.md), with what was there before in",
        "Original Attributes Sequence (0400,0561). Every other byte is that which came, unless the character set",
        "cannot carry a corrected value: then the object leaves as ISO_IR 192, its text transcoded.",
        "",
        "## Statuses of C-MOVE and C-GET",
        "",
        *_table(("status", "when"), ((f"0x{status:04X}", text) for status, text in _RETRIEVE_STATUSES)),
        "",
        "## Statuses of Storage Commitment (N-ACTION)",
        "",
        "A report follows when every object is known to be stored, or every archive and spool has told that it has",
        "registered all it has: objects that nobody has fail with 0x0112, those of another SOP class with 0x0119. It",
        "is sent again, at most every 10 min, until the station answers it with 0x0000; also after a restart.",
        "",
        *_table(("status", "when"), ((f"0x{status:04X}", text) for status, text in commitment.STATUSES)),
        "",
        "## Statuses of Storage Commitment (N-EVENT-REPORT)",
        "",
        *_table(("status", "when"), ((f"0x{status:04X}", text) for status, text in asking.STATUSES)),
        "",
        "## Statuses of Performed Procedure Step (N-CREATE, N-SET)",
        "",
        *_table(("status", "when"), ((f"0x{status:04X}", text) for status, text in procedure_step.STATUSES)),
        "",
        "## Statuses of Performed Procedure Step Retrieve (N-GET)",
        "",
        *_table(("status", "when"), ((f"0x{status:04X}", text) for status, text in step_retrieval.STATUSES)),
        "",
        "Statuses of C-STORE: docs/errors.md; keys, matching and statuses of C-FIND: docs/reference/query.md.",
        "",
        "## Storage SOP classes",
        "",
        "Private ones are added by `private_sop_classes`.",
        "",
        *_table(("SOP class", "UID"), sorted((_name(uid), uid) for uid in storage_sop_classes())),
        "",
        "## Transfer syntaxes of stored objects",
        "",
        *_table(("transfer syntax", "UID"), sorted((_name(uid), uid) for uid in transfer_syntaxes())),
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _name(uid: str) -> str:
    return _NAMES.get(uid) or UID_dictionary[uid][0]


def _syntaxes(uids: Iterable[str]) -> str:
    short = {EXPLICIT_VR_LITTLE_ENDIAN: "Explicit", IMPLICIT_VR_LITTLE_ENDIAN: "Implicit"}
    return f"{' and '.join(short.get(uid, uid) for uid in uids)} VR Little Endian"
