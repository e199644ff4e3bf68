"""C-STORE into a real store: what is stored, what is refused with which status, and what becomes of the bytes."""

import contextlib
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from depth import allowed
from edge_mesh import World
from edge_support import LocalEdge
from raw_dicom import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    P_DATA,
    Client,
    explicit,
    image,
    message,
    pdu,
    pdv,
    store_rq,
    us,
)

from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.intake import Intake
from radmesh_gateway_proxy.services.exchange import Peer
from radmesh_native import header as native

CONTEXTS = (
    (1, CT, (EXPLICIT,)),
    (3, CT, (IMPLICIT,)),
    (5, CT, (BIG_ENDIAN,)),
    (7, CT, (DEFLATED,)),
    (9, CT, (JPEG,)),
)
SOP = "2.25.1.1.1"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Not pytest's own folder: a path of a unix socket is short.
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture
def edge(world: World) -> Iterator[LocalEdge]:
    world.rejects.clear()
    world.dropped.clear()
    world.refuse.clear()
    senders = world.senders(resume_seconds=0.5)
    with LocalEdge(make_store=world.intake(senders)) as edge:
        yield edge


def as_implicit(data: bytes) -> bytes:
    """The same data set in Implicit VR Little Endian."""
    out = b""
    for tag, (_, value) in native.split_header(data).items():
        out += struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    return out


def encapsulated(*fragments: bytes) -> bytes:
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(f)) + f for f in (b"", *fragments))
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return without(image(), 0x7FE00010) + head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def without(data: bytes, *tags: int) -> bytes:
    elements = native.split_header(data)
    return explicit(*((tag, vr.decode(), value) for tag, (vr, value) in elements.items() if tag not in tags))


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def test_an_object_is_stored_as_it_came(world: World, edge: LocalEdge) -> None:
    study = "2.25.100"
    with Client(edge.port, calling="CT1") as client:
        for number in range(3):
            data = image(study, f"{study}.{number}", pixels=32 * (1 + 1000 * number))
            assert client.store(data, f"{study}.{number}").status == 0
            row, stored = world.stored(f"{study}.{number}")
            assert stored == data
            assert row.header.study_instance_uid == study
            assert row.header.calling_ae_title == "CT1"
            assert row.header.transfer_syntax_uid == EXPLICIT
            assert row.remarks == ()
            assert native.split_header(row.queryable)[0x00100020] == (b"LO", b"P1")
        client.release()
    # One admission for three objects of one key, and one mark to wait for.
    assert [a.admission_key.patient_name for a in world.admissions if a.admission_key.study_instance_uid == study] == [
        "Test^Patient"
    ]
    assert world.registry.waited[-1].store_id == "archive-0"


def test_an_object_larger_than_any_buffer(world: World, edge: LocalEdge) -> None:
    study = "2.25.101"
    data = image(study, study, pixels=40 << 20)
    with Client(edge.port) as client:
        assert client.store(data, study).status == 0
    assert world.stored(study)[1] == data


@pytest.mark.parametrize(
    ("context", "data"),
    [
        pytest.param(3, as_implicit(image("2.25.102", "2.25.102.3")), id="implicit"),
        pytest.param(5, image("2.25.102", "2.25.102.5", order=">"), id="big endian"),
        pytest.param(7, deflated(image("2.25.102", "2.25.102.7")), id="deflated"),
        pytest.param(9, encapsulated(b"abcd", b"efgh").replace(b"2.25.1.1.1\0\0", b"2.25.102.9"), id="encapsulated"),
        pytest.param(1, as_implicit(image("2.25.102", "2.25.102.1")), id="implicit, declared explicit"),
    ],
)
def test_every_encoding(world: World, edge: LocalEdge, context: int, data: bytes) -> None:
    sop = "2.25.1.1.1" if context == 9 else f"2.25.102.{context}"
    with Client(edge.port, CONTEXTS) as client:
        response = client.store(data, sop, context=context)
        assert (response.status, response.comment) == (0, "")
        client.release()
    assert world.stored(sop)[1] == data


def test_sent_twice_is_stored_once(world: World, edge: LocalEdge) -> None:
    data = image("2.25.103", "2.25.103.1")
    with Client(edge.port) as client:
        assert [client.store(data, "2.25.103.1").status for _ in range(3)] == [0, 0, 0]
        client.release()
    assert world.stored("2.25.103.1")[1] == data


def test_another_patient_in_the_same_study_is_admitted_again(world: World, edge: LocalEdge) -> None:
    study = "2.25.104"
    with Client(edge.port) as client:
        for number, name in enumerate((b"A^B", b"A^B", b"C^D")):
            data = image(study, f"{study}.{number}").replace(b"Test^Patient", name.ljust(12))
            assert client.store(data, f"{study}.{number}").status == 0
    names = [a.admission_key.patient_name for a in world.admissions if a.admission_key.study_instance_uid == study]
    assert names == ["A^B", "C^D"]


def changed(data: bytes, tag: int, vr: str, value: bytes) -> bytes:
    elements = native.split_header(data)
    elements[tag] = (vr.encode(), value)
    return explicit(*((t, v.decode(), value) for t, (v, value) in sorted(elements.items())))


SHORT = image()[:-100]
REFUSED = [
    # id, data set, changes of the command, status, offending element, comment begins with
    ("cut in pixel data", SHORT, {}, 0xC000, "7FE0,0010", "DATA_SET_TRUNCATED: the data set ends inside (7FE0,0010)"),
    ("cut in the head", image()[:100], {}, 0xC000, "0010,0010", "DATA_SET_TRUNCATED"),
    ("cut in an element's header", image() + b"\x01\x00\x02", {}, 0xC000, "7FE0,0010", "DATA_SET_TRUNCATED"),
    ("no elements", b"", {}, 0xC000, "", "DATA_SET_MISSING"),
    ("bad VR first", b"\x08\x00\x16\x00\xff\xff\xff\xff\xff\xff\xff\xff" + image(), {}, 0xC000, "0008,0016", "BAD_VR"),
    ("noise", bytes(range(1, 250)) * 4, {}, 0xA900, "0008,0016", "UID_MISSING"),
    ("Part 10 file", bytes(128) + b"DICM" + image(), {}, 0xC000, "0000,0000", "DATA_SET_UNREADABLE"),
    (
        "file meta information",
        explicit((0x00020010, "UI", EXPLICIT.encode())) + image(),
        {},
        0xC000,
        "0002,0010",
        "DATA_SET_UNREADABLE",
    ),
    ("no study", without(image(), 0x0020000D), {}, 0xA900, "0020,000D", "UID_MISSING: Study Instance UID (0020,000D)"),
    ("no series", without(image(), 0x0020000E), {}, 0xA900, "0020,000E", "UID_MISSING: Series"),
    ("no SOP class", without(image(), 0x00080016), {}, 0xA900, "0008,0016", "UID_MISSING: SOP Class UID (0008,0016)"),
    ("no SOP instance", without(image(), 0x00080018), {}, 0xA900, "0008,0018", "UID_MISSING: SOP Instance UID"),
    ("other SOP instance", image(sop_instance="2.25.2"), {}, 0xA900, "0008,0018", "UID_MISMATCH: SOP Instance UID"),
    ("other SOP class", image(sop_class=CT + ".1"), {}, 0xA900, "0008,0016", "UID_MISMATCH: SOP Class UID"),
    ("bad study UID", changed(image(), 0x0020000D, "UI", b"1.2.x"), {}, 0xA900, "0020,000D", "UID_INVALID"),
    ("path for a UID", changed(image(), 0x0020000D, "UI", b"../../etc"), {}, 0xA900, "0020,000D", "UID_INVALID"),
    ("long UID", changed(image(), 0x0020000D, "UI", b"1." * 32 + b"1"), {}, 0xA900, "0020,000D", "UID_INVALID"),
    ("command's UID missing", image(), {"e1000": None}, 0xA900, "0000,1000", "UID_MISSING"),
    ("command's UID bad", image(), {"e1000": b"a/b"}, 0xA900, "0000,1000", "UID_INVALID"),
    ("command's class missing", image(), {"e0002": None}, 0xA900, "0000,0002", "UID_MISSING"),
    ("class of no context", image(), {"e0002": (CT + ".1").encode()}, 0x0122, "0000,0002", "SOP_CLASS_NOT_IN_CONTEXT"),
]


@pytest.mark.parametrize(
    ("data", "changes", "expected"), [pytest.param(row[1], row[2], row[3:], id=row[0]) for row in REFUSED]
)
def test_refused_and_kept_as_a_reject(
    world: World, edge: LocalEdge, data: bytes, changes: dict[str, bytes | None], expected: tuple[int, str, str]
) -> None:
    status, tag, comment = expected
    before = len(world.rows())
    with Client(edge.port) as client:
        response = client.store(data, **changes)  # type: ignore[arg-type]
        assert (hex(response.status), response.offending) == (hex(status), tag)
        assert response.comment.startswith(comment)
        assert len(response.comment) <= 64
        (reject,) = world.rejects
        assert bytes(reject.data) == data
        assert reject.reason == comment.partition(":")[0]
        assert reject.tag == tag
        assert not reject.cut
        assert reject.header.transfer_syntax_uid == EXPLICIT
        # The association lives on.
        good = image("2.25.105", "2.25.105.1")
        assert client.store(good, "2.25.105.1").status == 0
        client.release()
    assert len(world.rows()) - before <= 1


def test_of_a_large_truncated_object_the_beginning_is_kept_and_said_to_be_one(world: World, edge: LocalEdge) -> None:
    data = image(pixels=40 << 20)[:-100]
    with Client(edge.port) as client:
        assert client.store(data).status == 0xC000
        client.release()
    (reject,) = world.rejects
    assert reject.cut
    assert 0 < len(reject.data) < len(data)
    assert data.startswith(bytes(reject.data))


def test_no_data_set_announced(world: World, edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        response = client.store(None, e0800=us(0x0101))
        assert (response.status, response.offending) == (0xC000, "0000,0800")
        assert response.comment.startswith("DATA_SET_MISSING")
        assert client.store(image("2.25.105", "2.25.105.1"), "2.25.105.1").status == 0


def test_a_deflated_bomb_and_deflated_noise(world: World, edge: LocalEdge) -> None:
    bomb = deflated(explicit((0x00080001, "UN", bytes(64 << 20))) + image())
    cut = deflated(image(pixels=1 << 20))[:-9]
    with Client(edge.port, CONTEXTS) as client:
        for data in (bomb, b"\xff" * 1000, deflated(image())[:50], cut):
            response = client.store(data, context=7)
            assert response.status in (0xC000, 0xA900)
        assert (response.status, response.offending) == (0xC000, "7FE0,0010")
        client.release()
    assert [bytes(r.data) for r in world.rejects][1:] == [b"\xff" * 1000, deflated(image())[:50], cut]


def test_a_header_that_never_ends_is_bounded(world: World, edge: LocalEdge) -> None:
    data = explicit((0x00080001, "UN", bytes(8 << 20))) + image()
    with Client(edge.port) as client:
        response = client.store(data)
        assert response.status == 0xC000
    assert bytes(world.rejects[0].data) == data


HARMLESS = [
    ("padded with spaces", changed(image("2.25.106", "2.25.106.1"), 0x0020000D, "UI", b"2.25.106  "), {}, "2.25.106.1"),
    ("NUL behind", image("2.25.106", "2.25.106.2"), {"e1000": b"2.25.106.2\0\0"}, "2.25.106.2"),
    ("no priority", image("2.25.106", "2.25.106.3"), {"e0700": None}, "2.25.106.3"),
]


@pytest.mark.parametrize(("data", "changes", "sop"), [pytest.param(*row[1:], id=row[0]) for row in HARMLESS])
def test_harmless_oddities(
    world: World, edge: LocalEdge, data: bytes, changes: dict[str, bytes | None], sop: str
) -> None:
    with Client(edge.port) as client:
        assert client.store(data, sop, **changes).status == 0  # type: ignore[arg-type]
    assert world.stored(sop)[0].remarks == ()


REMARKED = [
    (
        "leading zeros",
        changed(image("2.25.107", "2.25.107.1"), 0x0020000D, "UI", b"2.25.0107"),
        "UID_IRREGULAR 0020,000D",
    ),
    ("bad VR later", changed(image("2.25.107", "2.25.107.2"), 0x00280106, "ZZ", b"\1\0"), "BAD_VR 0028,0106"),
]


@pytest.mark.parametrize(("data", "remark"), [pytest.param(*row[1:], id=row[0]) for row in REMARKED])
def test_stored_and_remarked(world: World, edge: LocalEdge, data: bytes, remark: str) -> None:
    sop = native.split_header(data.replace(b"ZZ", b"US"))[0x00080018][1].rstrip(b"\0").decode()
    with Client(edge.port) as client:
        assert client.store(data, sop).status == 0
    assert remark in world.stored(sop)[0].remarks


def test_an_unknown_priority_is_a_remark(world: World, edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        assert client.store(image("2.25.108", "2.25.108.1"), "2.25.108.1", e0700=us(9)).status == 0
    assert world.stored("2.25.108.1")[0].remarks == ("PRIORITY_INVALID 0000,0700",)


@pytest.mark.parametrize("size", [512, 64 << 20])
def test_no_store_answers_is_transient(world: World, edge: LocalEdge, size: int) -> None:
    world.refuse.append(RadmeshError("NO_STORE", "no archive answers and the spool is full"))
    study = f"2.25.109.{size}"
    with Client(edge.port) as client:
        response = client.store(image(study, study, pixels=size), study)
        assert response.status == 0xA700
        assert response.comment.startswith("NO_STORE")
        world.refuse.clear()
        assert client.store(image(study, study), study).status == 0
        client.release()
    assert world.rejects == []


def test_senders_are_bounded(world: World) -> None:
    senders = world.senders(most=1)
    senders._patience = 0.1
    borrowed = senders.borrow()
    with LocalEdge(make_store=world.intake(senders)) as edge, Client(edge.port) as client:
        response = client.store(image("2.25.110", "2.25.110.1"), "2.25.110.1")
        assert (response.status, response.comment[:10]) == (0xA700, "STORE_BUSY")
        senders.give_back(borrowed)
        assert client.store(image("2.25.110", "2.25.110.1"), "2.25.110.1").status == 0


def test_cut_in_the_middle_stores_nothing_and_loses_no_sender(world: World, edge: LocalEdge) -> None:
    sop = "2.25.111.1"
    for data in (image("2.25.111", sop, pixels=5 << 20), b"\xff" * (5 << 20)):
        for cut in (2000, 3 << 20):
            client = Client(edge.port)
            sent = message(1, store_rq(CT, sop), data)
            with contextlib.suppress(OSError):
                client.send(sent[:cut])
            client.close()
    edge.ended(4)
    assert all(row.header.sop_instance_uid != sop for row in world.rows())
    assert world.rejects == []
    with Client(edge.port) as client:
        assert client.store(image("2.25.111", sop), sop).status == 0


def test_release_in_a_head_leaves_nothing(world: World, edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        client.send(pdu(P_DATA, pdv(1, 3, store_rq(CT, SOP))) + pdu(P_DATA, pdv(1, 0, image()[:50])))
        client.release()
    assert world.rejects == []


def test_without_a_gateway_the_refusal_is_still_told(world: World) -> None:
    senders = world.senders(resume_seconds=0.5)

    def make(peer: Peer) -> Intake:
        return Intake(peer, senders, "unix:/nowhere/gateway.sock", lambda *_: None, world.context.log)

    with LocalEdge(make_store=make) as edge, Client(edge.port) as client:
        start = time.monotonic()
        assert client.store(without(image(pixels=5 << 20), 0x0020000D)).status == 0xA900
        assert time.monotonic() - start < allowed(5)
        assert client.store(image("2.25.112", "2.25.112.1"), "2.25.112.1").status == 0
        client.release()
