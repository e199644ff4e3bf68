"""Bulk messages without a copy of their bytes.

A bulk message is its small fields followed by ``data``, the highest field number: serialised small fields,
tag, length, data. What is written here is byte-identical to protobuf; what any protobuf library wrote is read
(``data`` elsewhere than last costs a copy, nothing else).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from radmesh.api.application.v1 import application_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.runtime.rpc import MethodCodec
from radmesh_native import bulk

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)

PUT: Final = "/radmesh.api.transfer.v1.TransferService/Put"
READ: Final = "/radmesh.api.transfer.v1.TransferService/Read"


@dataclass(frozen=True, slots=True)
class Bulk(Generic[M]):
    """A bulk message: ``fields`` without its data, and the data beside them."""

    fields: M
    data: Buffer = b""


def encode(message: Bulk[Any]) -> bytes:
    """The wire form, byte-identical to protobuf's."""
    return bulk.join(message.fields.SerializeToString(), message.data)


def decoder(kind: type[M]) -> Callable[[bytes | bytearray], Bulk[M]]:
    """A function from the wire form of ``kind`` (whose bytes field ``data`` has the number 15)."""
    parse = kind.FromString

    def decode(wire: bytes | bytearray) -> Bulk[M]:
        parts = bulk.split(wire)
        if parts is not None:
            return Bulk(parse(parts[0]), parts[1])
        fields: Any = parse(bytes(wire))  # data is not last, or repeated: as protobuf reads it
        data = fields.data
        fields.ClearField("data")
        return Bulk(fields, data)

    return decode


def parts(message: Bulk[Any]) -> tuple[Buffer, ...]:
    """The wire form in parts, its data as it lies: for who writes several parts at once."""
    head = message.fields.SerializeToString()
    size = len(message.data)
    return (bulk.lead(head, size), message.data) if size else (head,)


READ_ANSWER: Final = decoder(transfer_pb2.ReadResponse)
TRANSFER_CODECS: Final = {
    "Put": MethodCodec(request_deserializer=decoder(transfer_pb2.PutRequest), request_serializer=encode),
    "ReadRange": MethodCodec(response_deserializer=decoder(transfer_pb2.ReadRangeResponse), response_serializer=encode),
    "Read": MethodCodec(response_deserializer=READ_ANSWER, response_serializer=encode, response_parts=parts),
}
"""Codecs of TransferService, both sides."""
REJECT_CODECS: Final = {
    "ReadReject": MethodCodec(
        response_deserializer=decoder(gateway_pb2.ReadRejectResponse), response_serializer=encode
    ),
}
"""Codecs of RejectService, both sides."""
DOOR_CODECS: Final = {
    "ReadInstance": MethodCodec(
        response_deserializer=decoder(application_pb2.ReadInstanceResponse), response_serializer=encode
    ),
    "StoreInstances": MethodCodec(
        request_deserializer=decoder(application_pb2.StoreInstancesRequest), request_serializer=encode
    ),
}
"""Codecs of the clients' door, application.v1.StudyService, both sides."""
