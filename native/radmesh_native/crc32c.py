"""CRC-32C (Castagnoli; RFC 3720 12.1): guards every chunk that moves between components."""

from radmesh_native._crc32c import crc32c, path

__all__ = ["crc32c", "path"]
