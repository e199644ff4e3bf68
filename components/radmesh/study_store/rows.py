"""Index rows as bytes. The format has a version: rows are read for as long as studies are kept."""

import struct
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final

from radmesh.study_store.store import IndexRow, ObjectHeader, Ref

VERSION: Final = 1
# version, object number, length, receive time (µs since 1970), verification, SHA-256, admission key, transfer id
_HEAD: Final = struct.Struct(">BQQQB32s32s16s")
_SHA256_AT: Final = 26
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS: Final = 8
# Its first fields, in their order.
_texts_of: Final = attrgetter(*(field.name for field in fields(ObjectHeader)[:_TEXTS]))


class DamagedError(ValueError):
    """The bytes are no row, though of a version that is known."""


def encode(row: IndexRow, object_number: int) -> bytes:
    """Return a row as bytes; its ref is its place, and is not in it."""
    header = row.header
    parts = [
        _HEAD.pack(
            VERSION,
            object_number,
            row.length,
            (row.receive_time - _EPOCH) // timedelta(microseconds=1),
            header.verification,
            row.sha256,
            header.admission_key,
            row.transfer_id,
        )
    ]
    for text in (*map(str.encode, _texts_of(header)), "\0".join(row.remarks).encode(), row.queryable):
        parts.append(len(text).to_bytes(4, "big"))
        parts.append(text)
    return b"".join(parts)


def decode(ref: Ref, data: bytes) -> tuple[IndexRow, int]:
    """Return a row and its object number.

    Raises:
        ValueError: the bytes are none, or of a newer version.
    """
    if data and data[0] > VERSION:
        raise ValueError(f"an index row of version {data[0]}: this radmesh is older than its data")
    try:
        return _decode(ref, data)
    except (struct.error, OverflowError, ValueError) as error:
        raise DamagedError("an index row is cut or damaged") from error


def _decode(ref: Ref, data: bytes) -> tuple[IndexRow, int]:
    _, number, length, time, verification, sha256, key, transfer_id = _HEAD.unpack_from(data)
    texts = []
    at = _HEAD.size
    for _ in range(_TEXTS + 2):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4 + size
        if at > len(data):
            raise ValueError("an index row is cut")
        texts.append(data[at - size : at])
    study, series, sop_class, sop_instance, syntax, calling, called, source = map(bytes.decode, texts[:_TEXTS])
    header = ObjectHeader(study, series, sop_class, sop_instance, syntax, calling, called, source, key, verification)
    remarks = tuple(filter(None, texts[_TEXTS].decode().split("\0")))
    received = _EPOCH + timedelta(microseconds=time)
    return IndexRow(ref, header, length, sha256, texts[-1], received, remarks, transfer_id), number


def content(data: bytes) -> tuple[int, bytes]:
    """Return (length, SHA-256) of an encoded row."""
    return int.from_bytes(data[9:17], "big"), data[_SHA256_AT : _SHA256_AT + 32]


def encode_header(header: ObjectHeader) -> bytes:
    """Return what identifies an unfinished transfer's object."""
    return "\0".join(_texts_of(header)).encode()
