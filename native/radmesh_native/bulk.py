"""Bulk messages: protobuf whose field 15 is `bytes data`, the last on the wire.

`join(prefix, data)` is the message whose other fields serialise to `prefix`, byte-identical to protobuf's, with one
copy of `data`.
`lead(prefix, length)` is what comes before `length` bytes of data: for who writes them after it, without a copy. With
`tag` (of less than 128) it is the same before another field.
`room(size)` is memory to read a message into; nothing is written to it first.
`split(wire)` gives (prefix, data) without a copy, or None where `data` is not the one last field, or the message is
broken: then protobuf itself has to read it.
"""

from radmesh_native._bulk import join, lead, room, split

__all__ = ["join", "lead", "room", "split"]
