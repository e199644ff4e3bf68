"""Bulk messages: byte-identical to protobuf, and protobuf's own bytes are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.api.application.v1 import application_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.transfer.codec import Bulk, decoder, encode

decode_put = decoder(transfer_pb2.PutRequest)
KINDS = [
    transfer_pb2.PutRequest,
    transfer_pb2.ReadRangeResponse,
    gateway_pb2.ReadRejectResponse,
    application_pb2.ReadInstanceResponse,
    application_pb2.StoreInstancesRequest,
]


def put_request(transfer_id: bytes, offset: int, crc: int, remarks: list[str], uid: str) -> transfer_pb2.PutRequest:
    return transfer_pb2.PutRequest(
        transfer_id=transfer_id,
        offset=offset,
        crc32c=crc,
        header=transfer_pb2.Header(study_instance_uid=uid) if uid else None,
        commit=transfer_pb2.Commit(length=offset, remarks=remarks) if remarks else None,
    )


fields = st.builds(
    put_request,
    st.binary(max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.text(max_size=8), max_size=3),
    st.text(max_size=64),
)


@given(fields, st.binary(max_size=70_000))
def test_what_we_write_is_what_protobuf_writes(message: transfer_pb2.PutRequest, data: bytes) -> None:
    ours = encode(Bulk(message, data))
    message.data = data
    assert ours == message.SerializeToString()


@given(fields, st.binary(max_size=70_000))
def test_what_protobuf_writes_is_read(message: transfer_pb2.PutRequest, data: bytes) -> None:
    whole = transfer_pb2.PutRequest.FromString(message.SerializeToString())
    whole.data = data
    read = decode_put(whole.SerializeToString())
    assert (read.fields, bytes(read.data)) == (message, data)


@pytest.mark.parametrize("kind", KINDS)
def test_data_is_field_15_and_the_last(kind: type) -> None:
    assert kind.DESCRIPTOR.fields_by_name["data"].number == 15
    assert max(field.number for field in kind.DESCRIPTOR.fields) == 15


def test_data_before_other_fields_is_read_as_protobuf_reads_it() -> None:
    wire = transfer_pb2.PutRequest(data=b"abc").SerializeToString()
    wire += transfer_pb2.PutRequest(transfer_id=b"x" * 16, offset=7).SerializeToString()
    read = decode_put(wire)
    assert (read.fields.transfer_id, read.fields.offset, bytes(read.data)) == (b"x" * 16, 7, b"abc")
    assert not read.fields.data


def test_data_given_twice_is_the_last_one() -> None:
    wire = b"".join(transfer_pb2.PutRequest(data=data).SerializeToString() for data in (b"first", b"2"))
    assert bytes(decode_put(wire).data) == b"2"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_protobuf_reads_them(wire: bytes) -> None:
    try:
        expected = transfer_pb2.PutRequest.FromString(wire)
    except Exception as error:
        with pytest.raises(type(error)):
            decode_put(wire)
        return
    read = decode_put(wire)
    data = expected.data
    expected.ClearField("data")
    assert (bytes(read.data), read.fields.SerializeToString()) == (data, expected.SerializeToString())
