"""Command sets, byte by byte, and against pydicom's reading of them."""

from io import BytesIO

import pytest
from pydicom import dcmread
from raw_dicom import CT, command, echo_rq, store_rq, us

from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.reasons import REASONS
from radmesh_gateway_proxy.dimse import SUCCESS, CommandError, Outcome, encode_response, parse_request, text_of
from radmesh_gateway_proxy.services.exchange import outcome_of


def test_a_store_request_is_read() -> None:
    request = parse_request(store_rq(CT, "1.2.3", 7), has_data_set=True)
    assert (request.command_field, request.message_id, request.name) == (1, 7, "C-STORE")
    assert (request.affected_sop_class_uid, request.affected_sop_instance_uid) == (CT, "1.2.3")
    assert (request.has_data_set, request.priority) == (True, 0)
    assert parse_request(store_rq(CT, "1.2.3", e0700=us(7)), has_data_set=True).priority is None
    assert parse_request(store_rq(CT, "1.2.3", e0700=None), has_data_set=True).priority == 0


def test_a_response_is_golden() -> None:
    response = encode_response(parse_request(echo_rq(2), has_data_set=False), SUCCESS)
    assert response == bytes.fromhex(
        "0000 0000 04000000 42000000"  # (0000,0000) group length: 66
        "0000 0200 12000000 312e322e3834302e31303030382e312e3100"  # (0000,0002) 1.2.840.10008.1.1
        "0000 0001 02000000 3080"  # (0000,0100) C-ECHO-RSP
        "0000 2001 02000000 0200"  # (0000,0120) message id being responded to
        "0000 0008 02000000 0101"  # (0000,0800) no data set
        "0000 0009 02000000 0000"  # (0000,0900) success
    )


def test_pydicom_reads_what_a_failure_says() -> None:
    request = parse_request(store_rq(CT, "1.2.3", 9), has_data_set=True)
    encoded = encode_response(request, Outcome(0xA900, "UID_MISSING: Study Instance UID (0020,000D)", (0x20, 0x0D)))
    ds = dcmread(BytesIO(encoded), force=True)
    assert ds[0x00000900].value == 0xA900
    assert ds[0x00000901].value == 0x0020000D
    assert ds[0x00000902].value == "UID_MISSING: Study Instance UID (0020,000D)"
    assert ds[0x00000120].value == 9
    assert ds[0x00001000].value == "1.2.3"


def test_comments_are_ascii_and_short() -> None:
    request = parse_request(store_rq(CT, "1.2.3"), has_data_set=True)
    encoded = encode_response(request, Outcome(0xC000, "é" * 100))
    assert b"?" * 64 in encoded
    assert b"?" * 65 not in encoded


def test_every_reason_has_a_failure_status() -> None:
    for name, reason in REASONS.items():
        outcome = outcome_of(RadmeshError(name, "text"))
        assert outcome.status == reason.dimse_status
        assert outcome.comment.startswith(name[:60])
        assert outcome.status in (0x0122, 0x0124) or outcome.status >= 0xA700
        if reason.transient:
            assert outcome.status == 0xA700


@pytest.mark.parametrize("bad", [b"\0", command({}), command({0x0100: b"\1"}), store_rq(CT, "1", 1)[:-3]])
def test_what_cannot_be_answered(bad: bytes) -> None:
    with pytest.raises(CommandError):
        parse_request(bad, has_data_set=False)


def test_tags_as_text() -> None:
    assert text_of((0x7FE0, 0x10)) == "7FE0,0010"
    assert text_of(None) == ""
