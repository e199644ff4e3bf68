"""What may come in: every value that the store keeps is bounded, and can be written as it is kept."""

from collections.abc import Sequence
from typing import Final

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.store import ObjectHeader

UID_MAX: Final = 64
TEXT_MAX: Final = 128
QUERYABLE_MAX: Final = 262_144
REMARKS_MAX: Final = 64
DIGEST_BYTES: Final = 32
TRANSFER_ID_BYTES: Final = 16


def check_begin(transfer_id: bytes, header: ObjectHeader) -> None:
    """Refuse what can be no object's header.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if len(transfer_id) != TRANSFER_ID_BYTES:
        raise _invalid("transfer_id", f"{TRANSFER_ID_BYTES} bytes")
    _text("study_instance_uid", header.study_instance_uid, 1, UID_MAX)
    _text("series_instance_uid", header.series_instance_uid, 0, UID_MAX)
    _text("sop_class_uid", header.sop_class_uid, 0, UID_MAX)
    _text("sop_instance_uid", header.sop_instance_uid, 1, UID_MAX)
    _text("transfer_syntax_uid", header.transfer_syntax_uid, 1, UID_MAX)
    _text("calling_ae_title", header.calling_ae_title, 0, TEXT_MAX)
    _text("called_ae_title", header.called_ae_title, 0, TEXT_MAX)
    _text("source_address", header.source_address, 0, TEXT_MAX)
    if len(header.admission_key) != DIGEST_BYTES:
        raise _invalid("admission_key", f"{DIGEST_BYTES} bytes")
    if not 0 <= header.verification <= 255:
        raise _invalid("verification", "0 to 255")


def check_commit(sha256: bytes, queryable: bytes, remarks: Sequence[str]) -> None:
    """Refuse what can be no commit's.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if len(sha256) != DIGEST_BYTES:
        raise _invalid("sha256", f"{DIGEST_BYTES} bytes")
    if len(queryable) > QUERYABLE_MAX:
        raise _invalid("queryable", f"at most {QUERYABLE_MAX} bytes")
    if len(remarks) > REMARKS_MAX:
        raise _invalid("remarks", f"at most {REMARKS_MAX}")
    for remark in remarks:
        _text("remarks", remark, 1, TEXT_MAX)


def _text(field: str, value: str, least: int, most: int) -> None:
    # A NUL stands between texts where several are kept in one value; half a surrogate pair has no UTF-8.
    if not least <= len(value) <= most or "\0" in value or not (value.isascii() or _encodable(value)):
        raise _invalid(field, f"{least} to {most} characters, no NUL")


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid(field: str, rule: str) -> RadmeshError:
    return RadmeshError("FIELD_INVALID", f"{field}: {rule}", metadata={"field": field, "rule": rule})
