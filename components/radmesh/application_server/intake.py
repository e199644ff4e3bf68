"""Objects that a person stores: the same path as a modality's, from the header scan to the durable commit."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom import header as queryable_header
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import SCAN_LIMIT, QueryableHeader
from radmesh.dicom.uids import is_valid_uid, transfer_syntax
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import ObjectHeader
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.sender import Sender

_WAIT_SECONDS: Final = 5.0
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an object."""

    outcome: str
    study_instance_uid: str
    sop_instance_uid: str
    sha256: bytes
    object: ObjectReference


class Intake:
    """Stores objects of one stream.

    Args:
        sender: this stream's own.
        station: what stands for the calling AE title: who stores.
        address: of the person's client.
        registry: calls of RegistryService.
    """

    def __init__(self, sender: Sender, station: str, address: str, registry: Any) -> None:
        self._sender = sender
        self._station = station
        self._address = address
        self._registry = registry

    def store(self, transfer_syntax_uid: str, chunks: Iterator[bytes]) -> Stored:
        """Store one object; returns when it is durable.

        Raises:
            RadmeshError: DATA_SET_MISSING, DATA_SET_UNREADABLE, DATA_SET_TRUNCATED, BAD_VR, UID_MISSING, UID_INVALID,
            and
                what the stores answer.
        """
        syntax = transfer_syntax(transfer_syntax_uid)
        if not is_valid_uid(transfer_syntax_uid):
            raise RadmeshError("UID_INVALID", "the transfer syntax is no UID")
        scanner = queryable_header.new_scanner(syntax)
        feed: Callable[[bytes], bool] = _inflating(scanner) if syntax.deflated else scanner.feed
        head: list[bytes] = []
        size = 0
        for chunk in chunks:
            head.append(chunk)
            size += len(chunk)
            if feed(chunk) or size > SCAN_LIMIT:
                break
        scanner.finish()
        if not size:
            raise RadmeshError("DATA_SET_MISSING", "the file has no data set")
        queryable = scanner.header()
        header = QueryableHeader.parse(queryable)
        uids = {keyword: header.text(keyword) for keyword in _UIDS}
        if scanner.error is not None and (scanner.error[0] == "DATA_SET_TRUNCATED" or not all(uids.values())):
            reason, tag, _ = scanner.error
            raise RadmeshError(reason, f"the data set cannot be read from ({tag}) on")
        for keyword, uid in uids.items():
            if not is_valid_uid(uid):
                reason = "UID_INVALID" if uid else "UID_MISSING"
                raise RadmeshError(reason, f"{keyword} is {'no UID' if uid else 'missing'}")
        remarks = [*scanner.remarks, *([f"{scanner.error[0]} {scanner.error[1]}"] if scanner.error else [])]
        key = AdmissionKey.of(self._station, header)
        digest = hashlib.sha256()
        self._sender.begin(self._header(transfer_syntax_uid, uids), key, queryable)
        try:
            for chunk in chain(head, chunks):
                digest.update(chunk)
                self._sender.write(chunk)
            committed = self._sender.commit(digest.digest(), queryable, remarks)
        except BaseException:
            self._sender.abort()
            raise
        return Stored(
            committed.outcome.value, uids["StudyInstanceUID"], uids["SOPInstanceUID"], digest.digest(), committed.object
        )

    def _header(self, transfer_syntax_uid: str, uids: dict[str, str]) -> ObjectHeader:
        return ObjectHeader(
            study_instance_uid=uids["StudyInstanceUID"],
            series_instance_uid=uids["SeriesInstanceUID"],
            sop_class_uid=uids["SOPClassUID"],
            sop_instance_uid=uids["SOPInstanceUID"],
            transfer_syntax_uid=transfer_syntax_uid,
            calling_ae_title=self._station,
            called_ae_title="",
            source_address=self._address,
            admission_key=b"",
            verification=0,
        )

    def registered(self, objects: Iterable[ObjectReference]) -> bool:
        """Wait until a query finds the objects, for 2 s at most; return whether it does."""
        marks = [
            common_pb2.CommitMark(
                store_id=o.store_id, study_hash=o.study_hash, generation=o.generation, sequence=o.sequence
            )
            for o in objects
        ]
        try:
            answer = self._registry.WaitRegistered(
                database_pb2.WaitRegisteredRequest(marks=marks), timeout=_WAIT_SECONDS
            )
        except RadmeshError:
            return False
        return not answer.missing


def _inflating(scanner: Any) -> Callable[[bytes], bool]:
    """Return what feeds a scanner with a deflated data set (PS3.5 A.5), inflated as far as it is looked at."""
    inflater = zlib.decompressobj(-15)

    def feed(chunk: bytes) -> bool:
        try:
            return bool(scanner.feed(inflater.decompress(chunk, SCAN_LIMIT)))
        except zlib.error:
            raise RadmeshError("DATA_SET_UNREADABLE", "the data set cannot be inflated") from None

    return feed
