"""Requests of every service, damaged; and objects that nobody should send, from their C-STORE to their display."""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from cluster_support import image
from depth import times
from pydicom.uid import generate_uid
from raw_dicom import ABORT, EXPLICIT, P_DATA, Client, command, explicit, message, us
from station_support import Edge
from waiting import wait_for

from radmesh.dicom import part10

CT = "1.2.840.10008.5.1.4.1.1.2"
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
WORKLIST = "1.2.840.10008.5.1.4.31"
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
MPPS = "1.2.840.10008.3.1.2.3.3"
CLASSES = (CT, FIND, MOVE, GET, WORKLIST, COMMITMENT, MPPS)
CONTEXTS = [(2 * n + 1, uid, (EXPLICIT,)) for n, uid in enumerate(CLASSES)]
STUDY = "2.25.77.960"


def item(*elements: tuple[int, str, bytes]) -> bytes:
    inner = explicit(*elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner


def asked(kind: int, uid: str, **more: bytes) -> dict[int, bytes]:
    elements = {0x0002: uid.encode(), 0x0100: us(kind), 0x0110: us(7), 0x0700: us(0), 0x0800: us(1)}
    return elements | {int(name[1:], 16): value for name, value in more.items()}


def of_instance(kind: int, uid: str, instance: str, **more: bytes) -> dict[int, bytes]:
    """N-ACTION, N-SET, N-GET, N-DELETE: what is requested."""
    elements = asked(kind, uid, **more)
    return {k: v for k, v in elements.items() if k not in (2, 0x700)} | {3: uid.encode(), 0x1001: instance.encode()}


LEVEL = (0x00080052, "CS", b"STUDY ")
QUERY = explicit(LEVEL, (0x00100010, "PN", b"D*"), (0x00100020, "LO", b""), (0x0020000D, "UI", STUDY.encode()))
STEP = explicit((0x00400252, "CS", b"IN PROGRESS"), (0x00400270, "SQ", item((0x0020000D, "UI", STUDY.encode()))))
REFERENCES = item((0x00081150, "UI", CT.encode()), (0x00081155, "UI", f"{STUDY}.1.1".encode()))
# What is whole: SOP class of its context, command set, data set.
REQUESTS: Mapping[str, tuple[str, dict[int, bytes], bytes]] = {
    "C-FIND": (FIND, asked(0x0020, FIND), QUERY),
    "C-FIND, worklist": (
        WORKLIST,
        asked(0x0020, WORKLIST),
        explicit((0x00100010, "PN", b"*"), (0x00400100, "SQ", item((0x00080060, "CS", b"MR")))),
    ),
    "C-MOVE": (MOVE, asked(0x0021, MOVE, e0600=b"DEAD"), explicit(LEVEL, (0x0020000D, "UI", STUDY.encode()))),
    "C-GET": (GET, asked(0x0010, GET), explicit(LEVEL, (0x0020000D, "UI", STUDY.encode()))),
    "N-ACTION": (
        COMMITMENT,
        of_instance(0x0130, COMMITMENT, COMMITMENT_INSTANCE, e1008=us(1)),
        explicit((0x00081195, "UI", b"2.25.960"), (0x00081199, "SQ", REFERENCES)),
    ),
    "N-CREATE": (MPPS, asked(0x0140, MPPS, e1000=b"2.25.9601"), STEP),
    "N-SET": (MPPS, of_instance(0x0120, MPPS, "2.25.9601"), explicit((0x00400252, "CS", b"DISCONTINUED"))),
    "N-GET": (MPPS, of_instance(0x0110, MPPS, "2.25.9601"), QUERY),
    "N-DELETE": (MPPS, of_instance(0x0150, MPPS, "2.25.9601"), QUERY),
    "N-EVENT-REPORT": (COMMITMENT, asked(0x0100, COMMITMENT, e1000=b"1.2", e1002=us(1)), QUERY),
    "C-CANCEL": (FIND, asked(0x0FFF, FIND, e0120=us(7)), QUERY),
    "C-STORE": (CT, asked(0x0001, CT, e1000=f"{STUDY}.1.1".encode()), b""),
}


@pytest.fixture(scope="module")
def data(edge: Edge) -> bytes:
    """The data set of an image; it is at the cluster."""
    path = edge.folder / "hostile.dcm"
    image(960).save_as(path, enforce_file_format=True)
    edge.store(path)
    with path.open("rb") as file:
        part10.seek_data_set(file)
        return file.read()


@pytest.fixture(autouse=True)
def lives(edge: Edge) -> Iterator[None]:
    """Every process is the one it was, and none met what it did not expect."""

    def processes() -> set[int]:
        # Those in which Curators decode come and go.
        edges = children(set(edge.cluster.ready["pids"]["gateway-proxy"]))
        pids = {pid for each in edge.cluster.ready["pids"].values() for pid in each} | edges
        return {pid for pid in pids if Path(f"/proc/{pid}").exists()}

    before = processes()
    yield
    assert processes() == before
    for log in (edge.cluster.data / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert "association failed" not in text, log
        assert "Traceback" not in text, log
    with Client(edge.port, [(1, "1.2.840.10008.1.1", (EXPLICIT,))]) as client:
        assert client.echo(1) == 0
        client.release()


def children(parents: set[int]) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) in parents:
            found.add(int(status.parent.name))
    return found


def last_status(client: Client) -> int | None:
    """The status of the last response; None = the association was aborted, or there is none to such a request."""
    while True:
        try:
            kind, body = client.pdu()
        except ConnectionError:
            return None
        if kind == ABORT:
            return None
        assert kind == P_DATA
        if not body[5] & 1:
            continue  # a row
        at, elements = 6, {}
        while at < len(body):
            _, number, length = struct.unpack_from("<HHI", body, at)
            elements[number] = body[at + 8 : at + 8 + length]
            at += 8 + length
        status = int.from_bytes(elements[0x0900], "little")
        assert not elements.get(0x0902, b"").startswith(b"INTERNAL"), elements
        if status & 0xFF00 != 0xFF00:
            return status


def damaged(what: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, some left out, some twice, or all of it cut."""
    bad = bytearray(what)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(bad) + 1)
        kind = chance.randrange(4)
        if kind == 0 and at < len(bad):
            bad[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 1:
            del bad[at : at + chance.randint(1, 8)]
        elif kind == 2:
            bad[at:at] = bad[at : at + chance.randint(1, 40)]
        elif bad:
            del bad[at:]
    return bytes(bad)


@pytest.mark.parametrize("name", REQUESTS)
def test_damaged_requests_are_answered_or_aborted(edge: Edge, data: bytes, name: str) -> None:
    uid, elements, body = REQUESTS[name]
    body = body or data
    context = next(number for number, each, _ in CONTEXTS if each == uid)
    seen = set()
    for seed in range(times(full=3000, ci=150)):
        chance = random.Random(f"{name} {seed}")
        request, identifier = command(elements), body
        if seed % 2:
            request = damaged(request, chance)
        else:
            identifier = damaged(body, chance)
        with Client(edge.port, CONTEXTS, timeout=120, calling="FUZZER") as client:
            client.send(message(context, request, identifier))
            # What is no request of its own has no answer: then this ends it.
            client.send(message(context, command(asked(0x0999, uid)), b"\0\0"))
            status = last_status(client)
            seen.add(status)
            client.abort()
    assert len(seen) > 1, seen


def nested(tag: int, levels: int, *, undefined: bool) -> bytes:
    """A sequence in a sequence in a sequence."""
    head = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"SQ", 0)
    if undefined:
        opened = head + struct.pack("<IHHI", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        return opened * levels + struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * levels
    pieces, size = [], 0
    for _ in range(levels):
        pieces.append(head + struct.pack("<IHHI", size + 8, 0xFFFE, 0xE000, size))
        size += len(pieces[-1])
    return b"".join(reversed(pieces))


@pytest.mark.parametrize("undefined", [False, True])
def test_deep_identifiers_are_refused(edge: Edge, undefined: bool) -> None:
    for name, (uid, elements, body) in REQUESTS.items():
        if name in ("N-GET", "N-DELETE", "N-EVENT-REPORT", "C-CANCEL", "C-STORE"):
            continue
        context = next(number for number, each, _ in CONTEXTS if each == uid)
        for tag in (0x00081140, 0x00400275):
            deep = nested(tag, 5_000, undefined=undefined)
            with Client(edge.port, CONTEXTS, timeout=60) as client:
                client.send(message(context, command(elements), body + deep))
                status = last_status(client)
                assert status is not None, name
                client.release()


def with_deep(number: int, tag: int, *, undefined: bool, levels: int = 5_000) -> tuple[str, bytes]:
    """SOP Instance UID and data set of an image with a deep sequence."""
    uid = generate_uid()
    elements = list(image(number, SOPInstanceUID=uid))
    before, after = (
        explicit(*((e.tag, str(e.VR)[:2], encoded(e.value, str(e.VR))) for e in part))
        for part in ([e for e in elements if e.tag < tag], [e for e in elements if e.tag > tag])
    )
    return uid, before + nested(tag, levels, undefined=undefined) + after


def encoded(value: object, vr: str) -> bytes:
    if isinstance(value, bytes):
        return value
    return struct.pack("<H", int(str(value))) if vr == "US" else str(value).encode()


def with_name(number: int, name: bytes) -> tuple[str, bytes]:
    """SOP Instance UID and data set of an image of a patient of that name, as it stands."""
    uid = generate_uid()
    named = ((e.tag, str(e.VR)[:2], name if e.keyword == "PatientName" else encoded(e.value, str(e.VR)))
             for e in image(number, SOPInstanceUID=uid))  # fmt: skip
    return uid, explicit(*named)


CODED, UNREADABLE = ("CODED", ""), ("NONE", "DATA_SET_UNREADABLE")
OBJECTS: Mapping[str, tuple[Callable[[], tuple[str, bytes]], tuple[str, str]]] = {
    "deep in the head, defined": (lambda: with_deep(961, 0x00081140, undefined=False), CODED),
    "deep behind it, defined": (lambda: with_deep(962, 0x00400275, undefined=False), CODED),
    "deep behind it, undefined": (lambda: with_deep(963, 0x00400275, undefined=True), UNREADABLE),
    "not so deep, undefined": (lambda: with_deep(964, 0x00081140, undefined=True, levels=31), CODED),
    "a NUL within a name": (lambda: with_name(965, b"Doe\0^John"), CODED),
    "a name of control characters": (lambda: with_name(966, bytes(range(1, 32)) + b"\x7f\xff"), CODED),
    "a name of a megabyte, were it not cut": (lambda: with_name(967, b"Doe^" + b"x" * 65_000), CODED),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_nobody_should_send(edge: Edge, name: str) -> None:
    """They are kept, found, shown and given back byte by byte, and described as far as can be."""
    make, expected = OBJECTS[name]
    uid, data = make()
    study = f"2.25.77.{961 + list(OBJECTS).index(name)}"
    with Client(edge.port, [(1, CT, (EXPLICIT,))], timeout=60) as client:
        response = client.store(data, uid)
        assert (response.status, response.comment) == (0, "")
        client.release()
    cluster = edge.cluster.client()
    (instance,) = cluster.instances(study)
    assert b"".join(cluster.read(study, instance)) == data
    assert edge.cluster.run("show", study).code == 0
    wait_for(lambda: cluster.study(study).study.curated_count == 1)
    (picture,) = cluster.manifest(study)
    assert (picture.state, picture.reason) == expected
    (described,) = cluster.series_metadata(study, instance.series_instance_uid)
    assert described["00080018"]["Value"] == [uid]
    into = edge.folder / f"hostile-{uid}"
    got = edge.get(into, "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={study}", options=("+B",))
    assert got.numbers["completed"] == 1
