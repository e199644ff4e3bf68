"""The codec of bulk messages, against protobuf: what it writes, what it reads, and that it invents nothing."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from radmesh.api.transfer.v1 import transfer_pb2
from radmesh_native import bulk

SIZES = [1, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152]
OFFSET = transfer_pb2.PutRequest(offset=5).SerializeToString()


@pytest.mark.parametrize("size", SIZES)
def test_every_length_of_a_length(size: int) -> None:
    data = b"x" * size
    wire = bulk.join(OFFSET, data)
    assert wire == transfer_pb2.PutRequest(offset=5, data=data).SerializeToString()
    parts = bulk.split(wire)
    assert parts is not None
    assert parts == (OFFSET, data)


def test_without_data() -> None:
    assert bulk.join(OFFSET, b"") == OFFSET
    assert bulk.split(OFFSET) == (OFFSET, b"")
    assert bulk.split(b"") == (b"", b"")


def test_buffers_of_any_kind() -> None:
    data = bytes(range(100))
    for buffer in (bytearray(data), memoryview(data), memoryview(data).cast("H"), memoryview(b"x" + data)[1:]):
        assert bulk.join(OFFSET, buffer) == bulk.join(OFFSET, data)
    with pytest.raises(BufferError):
        bulk.join(OFFSET, memoryview(data)[::2])
    held = bytearray(data)
    bulk.join(OFFSET, held)
    held.append(1)  # would raise while somebody holds it


def test_the_beginning_of_any_field() -> None:
    for size in (0, 1, 127, 128, 70_000):
        header = transfer_pb2.Header(sop_instance_uid="1" * size).SerializeToString()
        field = bulk.lead(OFFSET, len(header), transfer_pb2.PutRequest.HEADER_FIELD_NUMBER << 3 | 2) + header
        message = transfer_pb2.PutRequest.FromString(field)
        assert (message.offset, message.header.sop_instance_uid) == (5, "1" * size)
    assert len(bulk.room(1000)) == 1000
    assert bulk.room(0) == b""


def test_no_copy() -> None:
    wire = bulk.join(OFFSET, bytes(1000))
    parts = bulk.split(wire)
    assert parts is not None
    assert isinstance(parts[1], memoryview)
    assert parts[1].obj is wire
    assert parts[1].readonly


def test_what_protobuf_has_to_read() -> None:
    data = transfer_pb2.PutRequest(data=b"one").SerializeToString()
    # Data before other fields, twice, beyond the end, of another wire type; groups; a broken tag.
    for wire in (data + OFFSET, data + data, data[:-1], data + b"x", b"\x0b\x0c", b"\x0f", b"\xff" * 11, b"\x0a"):
        assert bulk.split(wire) is None
    # Field 15 as a number is another field, which protobuf skips.
    assert bulk.split(b"\x78\x01") == (b"\x78\x01", b"")


def reading(wire: bytes) -> transfer_pb2.PutRequest | None:
    """What the codec and protobuf make of it together, as radmesh.transfer does."""
    parts = bulk.split(wire)
    try:
        if parts is None:
            return transfer_pb2.PutRequest.FromString(wire)
        message = transfer_pb2.PutRequest.FromString(parts[0])
        if parts[1]:
            message.data = bytes(parts[1])
    except DecodeError:
        return None
    return message


fields = st.one_of(
    st.binary(max_size=6),
    st.builds(lambda n: transfer_pb2.PutRequest(offset=n).SerializeToString(), st.integers(0, 2**64 - 1)),
    st.builds(lambda b: transfer_pb2.PutRequest(transfer_id=b).SerializeToString(), st.binary(max_size=20)),
    st.builds(lambda b: transfer_pb2.PutRequest(data=b).SerializeToString(), st.binary(max_size=300)),
    st.sampled_from([b"\x7a\x00", b"\x7a", b"\xfa\x00\x01x", b"\x79" + bytes(8), b"\x7d" + bytes(4)]),
)


@given(st.lists(fields, max_size=8))
def test_whatever_comes_is_read_as_protobuf_reads_it(parts: list[bytes]) -> None:
    wire = b"".join(parts)
    try:
        expected: transfer_pb2.PutRequest | None = transfer_pb2.PutRequest.FromString(wire)
    except DecodeError:
        expected = None
    assert reading(wire) == expected
