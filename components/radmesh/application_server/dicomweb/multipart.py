"""multipart/related (RFC 2387), the form of PS3.18 8.6.1.2: the same parts give the same bytes, always.

So a client that fetched the first bytes of an answer can fetch the rest of it later, from another server.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around the parts of an answer."""

    boundary: str
    part_type: str

    @classmethod
    def of(cls, part_type: str, *identity: object) -> "Envelope":
        """Return the envelope of an answer that `identity` tells from all others; part_type: media type of its parts.

        128 bits of a digest occur in no content by chance.
        """
        text = "\x1f".join(map(str, identity))
        return cls(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32], part_type)

    @property
    def content_type(self) -> str:
        """Content-Type of the whole."""
        return f'multipart/related; type="{self.part_type}"; boundary={self.boundary}'

    def head(self, content_type: str, *, first: bool) -> bytes:
        """Return what stands before a part; viewers look for exactly this spelling of the header."""
        text = f"--{self.boundary}\r\nContent-Type: {content_type}\r\n\r\n"
        return (text if first else f"\r\n{text}").encode("latin-1")

    @property
    def tail(self) -> bytes:
        """What stands behind the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode("latin-1")

    def size(self, parts: Sequence[tuple[str, int]]) -> int:
        """Return the bytes of an answer with these parts: (content type, bytes)."""
        heads = sum(len(self.head(kind, first=not number)) for number, (kind, _) in enumerate(parts))
        return heads + sum(size for _, size in parts) + len(self.tail)
