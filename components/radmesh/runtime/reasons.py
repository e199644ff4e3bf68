"""Every reason an error can have: one table for gRPC, DIMSE, HTTP and docs/errors.md.

Callers branch on the reason, never on the text. `dimse_status` is the status of a C-STORE that fails for the reason
(PS3.4 B.2.3: A7xx out of resources, A9xx data set does not match SOP class, Cxxx cannot understand).
"""
# ruff: noqa: E501 - a row of the table is a line

from dataclasses import dataclass

import grpc

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason, and what it becomes in each protocol.

    `remedy` tells the reader of the error what to do. `transient`: the same call may succeed later.
    """

    name: str
    code: grpc.StatusCode
    dimse_status: int
    http_status: int
    remedy: str

    @property
    def transient(self) -> bool:
        """Whether trying again later can help without changing anything."""
        return self.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED)


_OUT_OF_RESOURCES = 0xA700
_MISMATCH = 0xA900
_CANNOT_UNDERSTAND = 0xC000

# fmt: off
REASONS: dict[str, Reason] = {
    row[0]: Reason(*row)
    for row in (
        # Of every call
        ("CALLER_UNKNOWN", Code.UNAUTHENTICATED, _OUT_OF_RESOURCES, 401, "call with a certificate, token or session of this cluster"),
        ("CALLER_REFUSED", Code.PERMISSION_DENIED, _OUT_OF_RESOURCES, 403, "the protos list who may call each rpc"),
        ("FIELD_INVALID", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "correct the field that the error names"),
        ("STARTING", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "try again in a moment"),
        ("DRAINING", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "try again in a moment"),
        ("TOO_MANY_CALLS", Code.RESOURCE_EXHAUSTED, _OUT_OF_RESOURCES, 429, "try again later, or raise the limit"),
        ("MESSAGE_TOO_LARGE", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 413, "send or ask for less at once: a message has 4 MiB at most"),
        ("PEER_UNAVAILABLE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "see 'radmesh status'; the component restarts by itself"),
        ("PEER_TIMEOUT", Code.DEADLINE_EXCEEDED, _OUT_OF_RESOURCES, 504, "see 'radmesh status'; the component is overloaded or stuck"),
        ("CANCELLED", Code.CANCELLED, _OUT_OF_RESOURCES, 499, "the caller ended the call"),
        ("INTERNAL", Code.INTERNAL, _OUT_OF_RESOURCES, 500, "a defect of radmesh: report it with the incident number"),
        ("COMPONENT_UNKNOWN", Code.NOT_FOUND, _OUT_OF_RESOURCES, 500, "name the component's address under [mesh.addresses]"),
        ("METHOD_UNKNOWN", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "docs/reference/rpc.md lists what is served where"),
        ("TARGET_INVALID", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 500, "correct the address under [mesh.addresses]"),
        # Of HTTP requests
        ("PATH_UNKNOWN", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "docs/reference/http.md lists what is served"),
        ("METHOD_NOT_ALLOWED", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 405, "use a method that the header Allow names"),
        ("NOT_ACCEPTABLE", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 406, "accept one of what the error names"),
        ("REQUEST_SLOW", Code.DEADLINE_EXCEEDED, _OUT_OF_RESOURCES, 408, "send the request at once"),
        ("MEDIA_TYPE_UNSUPPORTED", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 415, "send what the error names as Content-Type"),
        ("HEADERS_TOO_LARGE", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 431, "send fewer or shorter headers: 32 KiB at most with the URL"),
        ("ORIGIN_REFUSED", Code.PERMISSION_DENIED, _OUT_OF_RESOURCES, 403, "call from a page of this server, or with a bearer token in place of the cookie"),
        # Configuration and command line
        ("CONFIG_INVALID", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 500, "correct what the error names; 'radmesh config check FILE' lists all"),
        ("CLUSTER_NOT_RUNNING", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "start it with 'radmesh up', or name another with --cluster"),
        ("CLUSTER_UNREACHABLE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "check the address, the clients' port and the authority: --cluster, --ca"),
        ("DATA_IN_USE", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "stop the other process, or choose another --data directory"),
        ("CERTIFICATE_INVALID", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 500, "set the machine's clock, or renew the certificate"),
        ("AUTHORITY_LOST", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 500, "restore the Secret from a backup, or make all anew as the error says"),
        ("SECRET_FOREIGN", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "choose another namespace, or remove the Secret"),
        ("SECRETS_REFUSED", Code.PERMISSION_DENIED, _OUT_OF_RESOURCES, 403, "let the service account read and write them: k8s/components/certificates has its Role"),
        ("PORT_IN_USE", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "choose another port, or 0 for any free one"),
        ("PASSWORD_MISSING", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 400, "give it in a file or by environment"),
        ("FILE_UNREADABLE", Code.NOT_FOUND, _CANNOT_UNDERSTAND, 404, "check the path and its permissions"),
        ("FILE_NOT_WRITTEN", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 500, "check the folder's permissions and room"),
        ("FILE_NOT_DICOM", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "this is not a DICOM file"),
        ("FOLDER_EMPTY", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "name a folder with files; hidden ones and DICOMDIR are passed over"),
        # Transfer
        ("TICKET_STALE", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 503, "admit again"),
        ("TICKET_INVALID", Code.PERMISSION_DENIED, _OUT_OF_RESOURCES, 403, "admit the object itself"),
        ("CHUNK_CORRUPT", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "send again from the acknowledged offset"),
        ("CHUNK_TOO_LARGE", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 413, "send at most 1,048,560 bytes a chunk"),
        ("DIGEST_MISMATCH", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "send the object again"),
        ("OFFSET_UNEXPECTED", Code.OUT_OF_RANGE, _OUT_OF_RESOURCES, 416, "go on at the acknowledged offset"),
        ("TRANSFER_INVALID", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 400, "send header, chunks and commit of one object in order"),
        ("TRANSFER_ABORTED", Code.CANCELLED, _OUT_OF_RESOURCES, 499, "the sender ended the transfer"),
        ("STREAM_REPLACED", Code.ABORTED, _OUT_OF_RESOURCES, 409, "a newer stream goes on with the transfer"),
        # Stores
        ("STORAGE_FULL", Code.RESOURCE_EXHAUSTED, _OUT_OF_RESOURCES, 507, "make room in the store's file system; sending again then stores once"),
        ("STORE_BUSY", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "the disk does not keep up: try again"),
        ("COMMIT_FAILED", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "send the object again; look at the store's disk"),
        ("OBJECT_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "ask the database where the object is"),
        ("OBJECT_CORRUPT", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "read another copy; look at the store's disk"),
        ("RANGE_INVALID", Code.OUT_OF_RANGE, _OUT_OF_RESOURCES, 416, "ask for a range within the object"),
        ("NOT_PERMANENT", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "wait until every object is in the permanent tier"),
        ("CACHE_COPY_LOST", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "the permanent tier serves the study; look at the cache's disk"),
        ("LAST_COPY", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "wait until another copy is registered"),
        ("STORE_UNKNOWN", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "send a heartbeat first"),
        ("REGISTRATION_LATE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "see whether the database server runs; stored objects are safe"),
        ("NO_LOCAL_READ", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "read through the door, or let archive servers serve local clients: [archive] client_bind"),
        ("TIER_FAILED", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "look at the permanent tier's file system; the cache copy stays"),
        # Admission and the DICOM edge
        ("NO_ARCHIVE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "start an archive server, or make room in one"),
        ("NO_STORE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "start an archive server, or make room in the spool"),
        ("DATA_SET_UNREADABLE", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "the data set is no valid DICOM encoding; its bytes are in the rejects store"),
        ("DATA_SET_TRUNCATED", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "the data set ends inside an element; its bytes, over 16 MiB its head alone, are in the rejects store"),
        ("BAD_VR", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "the named element has no valid VR; its bytes are in the rejects store"),
        ("DATA_SET_MISSING", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "send the data set that the command announces"),
        ("UID_MISSING", Code.INVALID_ARGUMENT, _MISMATCH, 400, "the named UID is needed; the bytes are in the rejects store"),
        ("UID_INVALID", Code.INVALID_ARGUMENT, _MISMATCH, 400, "the named UID breaks PS3.5 9.1; the bytes are in the rejects store"),
        ("UID_MISMATCH", Code.INVALID_ARGUMENT, _MISMATCH, 400, "command and data set name different UIDs; the bytes are in the rejects store"),
        ("SOP_CLASS_NOT_IN_CONTEXT", Code.INVALID_ARGUMENT, 0x0122, 400, "negotiate a presentation context for the SOP class"),
        ("IDENTIFIER_INVALID", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "send an identifier in the transfer syntax that was agreed on, of at most 1 MiB and 512 keys"),
        ("QUERY_KEY_INVALID", Code.INVALID_ARGUMENT, _MISMATCH, 400, "correct the value of the key that the error names"),
        ("QUERY_LEVEL_INVALID", Code.INVALID_ARGUMENT, _MISMATCH, 400, "send Query/Retrieve Level (0008,0052) with a level of the information model"),
        ("UNIQUE_KEY_MISSING", Code.INVALID_ARGUMENT, _MISMATCH, 400, "give one value of the unique key of each level above, or negotiate relational queries"),
        ("ROUTE_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "'radmesh routes' lists them"),
        ("STATION_UNKNOWN", Code.PERMISSION_DENIED, 0x0124, 403, "add the station to [[stations]] with the grant it needs"),
        ("STATION_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "'radmesh stations' lists them"),
        ("STATION_UNREACHABLE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "see whether the station runs, and is where 'radmesh stations' says"),
        ("STATION_REFUSED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "let the station take associations of this AE title for what it is sent"),
        ("STATION_ABORTED", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "look at the station's own log; what was not acknowledged is sent again"),
        ("STATION_SILENT", Code.DEADLINE_EXCEEDED, _OUT_OF_RESOURCES, 504, "see whether the station is overloaded or stuck"),
        ("STATION_FULL", Code.RESOURCE_EXHAUSTED, _OUT_OF_RESOURCES, 507, "make room at the station; what it did not take is sent again"),
        ("STATION_REFUSED_OBJECT", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "the error names the station's status: see its conformance statement"),
        ("TRANSCODING_FAILED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "let the station take the transfer syntax in which the object is stored"),
        ("GRANT_MISSING", Code.PERMISSION_DENIED, 0x0124, 403, "give the station the grant under [[stations]]"),
        ("TLS_REFUSED", Code.UNAUTHENTICATED, 0x0124, 401, "the error says what the peer did in place of a TLS handshake"),
        ("REJECT_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the rejects again"),
        ("REJECTS_FULL", Code.RESOURCE_EXHAUSTED, _OUT_OF_RESOURCES, 507, "look at the rejects; the oldest give way"),
        # Database
        ("STUDY_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "check the Study Instance UID"),
        ("SERIES_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "check the Series Instance UID"),
        ("INSTANCE_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "check the SOP Instance UID"),
        ("ADMISSION_UNKNOWN", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the admissions of the study again"),
        ("STATUS_ILLEGAL", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "the error names the moves that are allowed"),
        ("VERSION_CONFLICT", Code.ABORTED, _OUT_OF_RESOURCES, 409, "read again and decide again"),
        ("JOB_ENDED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "nothing of it is left to be cancelled: list the jobs again"),
        ("JOB_LOST", Code.ABORTED, _OUT_OF_RESOURCES, 409, "the lease ran out and another worker has the job: drop it"),
        ("JOB_NOT_FAILED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "only what has failed is tried again: list the jobs"),
        ("JOB_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the jobs again"),
        ("EVENT_GAP", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "tell the event that is expected; a Connectivity Manager does so by itself"),
        ("MERGE_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the merges: 'radmesh merges'"),
        ("MERGE_UNDONE", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "nothing is left to undo"),
        ("MERGE_BURIED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "undo the later merge that the error names first"),
        ("MESSAGE_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the messages: 'radmesh hl7 messages'"),
        ("MESSAGE_NOT_DEAD", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "only a message that had no effect can be replayed"),
        ("REPORT_EMPTY", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 400, "write the report's text"),
        ("STUDY_HELD", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "release the hold first: 'radmesh release STUDY_UID'"),
        ("REPORT_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the reports of the study: 'radmesh report list STUDY_UID'"),
        ("REPORT_TOO_LONG", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 413, "a report has 256 KiB of UTF-8 at most: shorten it"),
        ("RESYNC", Code.OUT_OF_RANGE, _OUT_OF_RESOURCES, 410, "read the tables, then watch from the revision that the error names"),
        ("PROCEDURE_STEP_EXISTS", Code.ALREADY_EXISTS, _OUT_OF_RESOURCES, 409, "use a SOP Instance UID of its own for each procedure step"),
        ("PROCEDURE_STEP_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "create the procedure step first (N-CREATE)"),
        ("PROCEDURE_STEP_ENDED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "nothing of it can be changed any more: begin another"),
        ("TRANSACTION_IN_USE", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "use a new Transaction UID for other objects"),
        ("TRANSACTION_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "ask for Storage Commitment again"),
        ("DATABASE_UNAVAILABLE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "look at the database's disk or server"),
        # Pictures: why the web cache has the original of an instance, or nothing of it
        ("FRAGMENTS_BROKEN", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "frames cannot be told apart: have the modality send the image again"),
        ("FRAME_TOO_LARGE", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "a frame has 2^27 samples at most; it is served as it is"),
        ("FRAME_UNDECODABLE", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "the frame is corrupt: have the modality send the image again; it is served as it is"),
        ("NO_DECODER", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "no decoder is here for the transfer syntax: frames are served as they are"),
        ("NO_PIXEL_DATA", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "the instance has no frames: a document, a presentation state, a plan"),
        ("PALETTE_UNUSABLE", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "the colour lookup tables do not fit the image: it is served as it is"),
        ("PIXELS_FLOAT", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "floating point pixels are served as they are"),
        ("PIXELS_ONE_BIT", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "pixels of one bit are served as they are"),
        ("PIXELS_OVER_16_BITS", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "pixels of more than 16 bits are served as they are"),
        ("PIXELS_UNDESCRIBED", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "the data set does not say how large its image is: have the modality corrected"),
        ("PIXELS_UNUSUAL", Code.UNIMPLEMENTED, _OUT_OF_RESOURCES, 501, "samples, bits or photometric interpretation are none that can be coded: frames are served as they are"),
        ("PIXEL_DATA_MISSING", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "an image without pixels: have the modality send it again"),
        ("PIXEL_DATA_SHORT", Code.DATA_LOSS, _OUT_OF_RESOURCES, 502, "pixels are missing at the end: have the modality send the image again"),
        ("PICTURES_PENDING", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "the Curator is at it: try again in a moment, or see 'radmesh status'"),
        ("RENDITION_DAMAGED", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "it is made again by itself: look at the web cache's disk"),
        ("RENDITION_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "it is not made yet, or was evicted: ask where it is, or try again in a moment"),
        # Verification: why a study is held or unverified
        ("AMBIGUOUS", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "several orders agree: cancel what is not meant in the RIS, or send the accession number with the images"),
        ("DOMAIN_UNKNOWN", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "give the station its domain under [[stations]], or the domain its issuer or accession_pattern under [[domains]]"),
        ("NO_ORDER", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "it heals when its order comes: send that, or correct the accession number in the RIS; 'radmesh release --override' goes without"),
        ("OVERRIDDEN", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "a person answers for it: the audit says who, and why"),
        ("OVERRIDE_REASON_MISSING", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 400, "say why in 1 to 512 characters: it goes into the history"),
        ("PATIENT_MISMATCH", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "compare the patient of the images with that of the order, and correct the wrong one: 'radmesh holds' says what contradicts"),
        ("RIS_UNAVAILABLE", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "see 'radmesh hl7 domains'; it is verified by itself when the RIS is back"),
        ("TIMEOUT", Code.DEADLINE_EXCEEDED, _OUT_OF_RESOURCES, 504, "the Connectivity Manager answered too late; it is verified again by itself"),
        # HL7
        ("HL7_NOT_A_MESSAGE", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "send HL7 version 2 in ER7 (pipes), one message in an MLLP frame"),
        ("HL7_TYPE_UNKNOWN", Code.UNIMPLEMENTED, _CANNOT_UNDERSTAND, 400, "send what docs/interop.md lists; the message is in the log and had no effect"),
        ("HL7_SEGMENT_MISSING", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "send the segment that the error names"),
        ("HL7_FIELD_MISSING", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "fill the field that the error names, or map another under [[domains]] mapping"),
        ("HL7_FIELD_INVALID", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 400, "correct the field that the error names"),
        ("HL7_MESSAGE_TOO_LARGE", Code.INVALID_ARGUMENT, _CANNOT_UNDERSTAND, 413, "send less at once, or raise the domain's limit"),
        ("HL7_ACK_TIMEOUT", Code.DEADLINE_EXCEEDED, _OUT_OF_RESOURCES, 504, "the RIS took the message and did not answer: it is sent again"),
        ("HL7_ACK_FOREIGN", Code.ABORTED, _OUT_OF_RESOURCES, 502, "the RIS answered for another message: it is sent again on a new connection"),
        ("HL7_CONNECTION_LOST", Code.UNAVAILABLE, _OUT_OF_RESOURCES, 503, "see whether the RIS listens at report_to: it is sent again"),
        ("HL7_REFUSED", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "the RIS rejected the message (AR): correct the cause there, then replay the dead letter"),
        ("HL7_ERROR", Code.ABORTED, _OUT_OF_RESOURCES, 409, "the RIS could not apply the message (AE): its log says why"),
        ("HL7_REPORT_INVALID", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "the report cannot be said in the domain's HL7 version: the error names what is wrong"),
        # Persons
        ("PASSWORD_WRONG", Code.UNAUTHENTICATED, _OUT_OF_RESOURCES, 401, "check name and password"),
        ("TOO_MANY_ATTEMPTS", Code.RESOURCE_EXHAUSTED, _OUT_OF_RESOURCES, 429, "wait a minute"),
        ("SESSION_EXPIRED", Code.UNAUTHENTICATED, _OUT_OF_RESOURCES, 401, "sign in again"),
        ("ROLE_REFUSED", Code.PERMISSION_DENIED, _OUT_OF_RESOURCES, 403, "ask an administrator for the role"),
        ("GRANT_INVALID", Code.UNAUTHENTICATED, _OUT_OF_RESOURCES, 401, "ask for a new read grant; a client of radmesh does so by itself"),
        ("USER_EXISTS", Code.ALREADY_EXISTS, _OUT_OF_RESOURCES, 409, "choose another name"),
        ("USER_NOT_FOUND", Code.NOT_FOUND, _OUT_OF_RESOURCES, 404, "list the users"),
        ("PASSWORD_WEAK", Code.INVALID_ARGUMENT, _OUT_OF_RESOURCES, 400, "use 12 to 1,024 characters"),
        ("LAST_ADMINISTRATOR", Code.FAILED_PRECONDITION, _OUT_OF_RESOURCES, 409, "make another administrator first"),
    )
}
# fmt: on

# Reasons for statuses that carry none: from a proxy between, or from gRPC itself.
BY_CODE = {
    Code.UNAVAILABLE: "PEER_UNAVAILABLE",
    Code.DEADLINE_EXCEEDED: "PEER_TIMEOUT",
    Code.CANCELLED: "CANCELLED",
    Code.UNAUTHENTICATED: "CALLER_UNKNOWN",
    Code.PERMISSION_DENIED: "CALLER_REFUSED",
    Code.INVALID_ARGUMENT: "FIELD_INVALID",
    Code.RESOURCE_EXHAUSTED: "TOO_MANY_CALLS",
}


def document() -> str:
    """Return docs/errors.md."""
    lines = [
        "# Errors",
        "",
        "Made by `make docs` from `radmesh.runtime.reasons`. Every error, in every protocol, has one of these reasons; programs",
        "branch on it, never on the text. An alarm has one too; that of a background worker that keeps failing is",
        "`<WORKER>_FAILING`, with the reason in its text.",
        "",
        "| reason | gRPC | DIMSE | HTTP | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.name} | {r.code.name} | 0x{r.dimse_status:04X} | {r.http_status} | {r.remedy} |"
        for r in REASONS.values()
    ]
    return "\n".join(lines) + "\n"
