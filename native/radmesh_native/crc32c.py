"""CRC-32C (Castagnoli; RFC 3720 12.1): guards every chunk that moves between components.

`crc32c(data, value=0)` goes on from the CRC of what was before; `combine(first, second, length)` is the CRC of two
pieces from those of each, `length` being that of the second. `copy(into, offset, data, value=0)` writes `data` into a
buffer (ValueError: it does not fit) and returns its CRC as `crc32c` does, in one pass.
"""

from radmesh_native._crc32c import combine, copy, crc32c, path

__all__ = ["combine", "copy", "crc32c", "path"]
