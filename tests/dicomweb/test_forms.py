"""What a client accepts, which part of an answer it asks for, and the form of answers of several parts."""

import contextlib
import email.parser
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.application_server.dicomweb.multipart import Envelope
from radmesh.application_server.dicomweb.negotiation import MediaRange, Offer, choose, parse_accept
from radmesh.application_server.dicomweb.ranges import byte_range, has, range_holds
from radmesh.runtime.errors import RadmeshError

HTJ2K = "1.2.840.10008.1.2.4.202"
FRAME = Offer("application/octet-stream", HTJ2K, multipart=True)
IMAGE = Offer("image/jphc", HTJ2K, multipart=True)
BARE = Offer("application/octet-stream", HTJ2K)
OFFERS = (FRAME, IMAGE, BARE)


def reason(function, *arguments):
    with pytest.raises(RadmeshError) as caught:
        function(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # OHIF; the same with quotes; dicomweb-client; curl; nothing.
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", FRAME),
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', FRAME),
        ('multipart/related; type="*/*"', FRAME),
        ("*/*", FRAME),
        ("", FRAME),
        (f'multipart/related; type="image/jphc"; transfer-syntax={HTJ2K}', IMAGE),
        ('multipart/related; type="image/*"', IMAGE),
        (f"application/octet-stream; transfer-syntax={HTJ2K}", BARE),
        ("application/octet-stream", BARE),
        ('image/png, multipart/related;type="image/jphc";q=0.5, application/*;q=0.7', BARE),
        # What is most specific counts: not this one, whatever the wildcard says.
        ('*/*;q=0.1, multipart/related; type="application/octet-stream";q=0', IMAGE),
        # A value in quotes may have commas and semicolons.
        ('text/x;a="q,;\\"", application/octet-stream', BARE),
        ("garbage, ;;, /, application/octet-stream", BARE),
    ],
)
def test_what_is_accepted_is_chosen(header, expected):
    assert choose(parse_accept(header), OFFERS) == expected


@pytest.mark.parametrize(
    "header",
    [
        "image/jpeg",
        'multipart/related; type="application/dicom"',
        'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
        "*/*;q=0",
        "garbage",
    ],
)
def test_what_there_is_not_is_said(header):
    with pytest.raises(RadmeshError) as caught:
        choose(parse_accept(header), OFFERS)
    assert caught.value.reason == "NOT_ACCEPTABLE"
    assert HTJ2K in caught.value.message


@given(st.text(max_size=200))
def test_any_accept_header_is_read(header):
    for accepted in parse_accept(header):
        assert accepted.type.count("/") >= 1
        assert 0.0 <= accepted.q <= 1.0


def test_an_accept_header_has_an_end():
    assert len(parse_accept(", ".join(["a/b"] * 1000))) == 64
    assert parse_accept('a/b; c="d') == ()
    assert parse_accept("A/B; C=d") == (MediaRange("a/b", {"c": "d"}),)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("", None),
        ("bytes=3-2", None),
        ("bytes=0-1,3-4", None),
        ("frames=0-1", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
    ],
)
def test_a_range_is_read(header, expected):
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_outside_is_refused(header):
    assert reason(byte_range, header, 10) == "RANGE_INVALID"


@given(st.integers(1, 1000), st.integers(0, 2000), st.integers(0, 2000))
def test_a_range_lies_within(size, first, last):
    try:
        found = byte_range(f"bytes={first}-{last}", size)
    except RadmeshError:
        assert first >= size
    else:
        assert found == (None if last < first else (first, min(size, last + 1)))


def test_entity_tags_are_compared():
    assert has("*", '"a"')
    assert has('"b", W/"a"', '"a"')
    assert has('"b","a"', '"a"')
    assert not has('"b", "ab"', '"a"')
    assert not has("a", '"a"')
    assert not has("", '"a"')
    assert range_holds("", '"a"')
    assert range_holds('"a"', '"a"')
    # A weak tag, or a date, promises no equal bytes.
    assert not range_holds('W/"a"', '"a"')
    assert not range_holds("Tue, 15 Nov 1994 12:45:26 GMT", '"a"')


@given(st.text(max_size=100), st.text(st.characters(codec="latin-1"), max_size=100))
def test_any_condition_is_read(tags, ranges):
    has(tags, '"a"')
    with contextlib.suppress(RadmeshError):
        byte_range(ranges, 10)


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.text(max_size=20))
def test_a_multipart_answer_is_read_by_a_mime_parser(parts, name):
    envelope = Envelope.of("application/octet-stream", name, len(parts))
    assert envelope == Envelope.of("application/octet-stream", name, len(parts))
    kind = f"application/octet-stream; transfer-syntax={HTJ2K}"
    body = b"".join(envelope.head(kind, first=not n) + part for n, part in enumerate(parts)) + envelope.tail
    assert len(body) == envelope.size([(kind, len(part)) for part in parts])
    first = envelope.head(kind, first=True)
    assert first == f"--{envelope.boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    whole = b"Content-Type: " + envelope.content_type.encode() + b"\r\n\r\n" + body
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(whole)
    assert message.get_content_type() == "multipart/related"
    assert [part.get_param("transfer-syntax") for part in message.iter_parts()] == [HTJ2K] * len(parts)
    # The parser takes text to pieces; what is between the boundaries is compared as bytes.
    separator = f"\r\n--{envelope.boundary}".encode()
    pieces = (b"\r\n" + body).split(separator)[1:-1]
    assert [piece.partition(b"\r\n\r\n")[2] for piece in pieces] == parts
