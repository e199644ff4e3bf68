"""UIDs: their form (PS3.5 9.1), transfer syntaxes (PS3.6 A), and how a study is named on disk."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

IMPLEMENTATION_CLASS_UID: Final = "2.25.288331046014205893211743306182537184271"
IMPLEMENTATION_VERSION_NAME: Final = "RADMESH_010"

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
VERIFICATION_SOP_CLASS: Final = "1.2.840.10008.1.1"

# Native: pixel data is not encapsulated in these; in all others it is.
NATIVE: Final = frozenset(
    (
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    )
)

# PS3.5 9.1: digits and dots, no component but 0 begins with 0, at most 64 characters.
_STRICT = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
# What is borne: leading zeros, which real devices write.
_TOLERANT = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_valid_uid(uid: str, *, strict: bool = False) -> bool:
    """Return whether `uid` can be taken; `strict`: whether it is what PS3.5 9.1 says."""
    return 0 < len(uid) <= 64 and (_STRICT if strict else _TOLERANT).fullmatch(uid) is not None


def clean_uid(raw: bytes) -> str:
    """Return a UI value without its padding: trailing NULs (PS3.5 6.2), and the spaces that some devices write."""
    return raw.decode("latin-1").strip("\0 ")


def study_hash(study_instance_uid: str) -> str:
    """Return the study's name on disk: the first 16 bytes of SHA-256, as 32 hexadecimal characters."""
    return hashlib.sha256(study_instance_uid.encode()).digest()[:16].hex()


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """A transfer syntax: how its data set is encoded (PS3.5 10), and whether its pixel data is encapsulated."""

    uid: str
    implicit: bool
    big_endian: bool
    deflated: bool

    @property
    def encapsulated(self) -> bool:
        """Whether pixel data is a sequence of fragments (PS3.5 A.4)."""
        return self.uid not in NATIVE


@lru_cache(128)
def transfer_syntax(uid: str) -> TransferSyntax:
    """Return the encoding of a transfer syntax; unknown ones are Explicit VR Little Endian, encapsulated (PS3.5 10)."""
    return TransferSyntax(
        uid,
        implicit=uid == IMPLICIT_VR_LITTLE_ENDIAN,
        big_endian=uid == EXPLICIT_VR_BIG_ENDIAN,
        # Also of JPIP referenced deflate; Deflated Image Frame Compression (…8.1) deflates frames, not the data set.
        deflated=uid in (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"),
    )
