"""Bulk messages: protobuf whose field 15 is `bytes data`, the last on the wire.

`join(prefix, data)` is the message whose other fields serialise to `prefix`, byte-identical to protobuf's, with one
copy of `data`.
`split(wire)` gives (prefix, data) without a copy, or None where `data` is not the one last field, or the message is
broken: then protobuf itself has to read it.
"""

from radmesh_native._bulk import join, split

__all__ = ["join", "split"]
