"""A DICOM requestor of a few lines, with nothing of radmesh or pynetdicom in it: sends exactly what it is given."""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"

Contexts = Sequence[tuple[int, str, Sequence[str]]]
DEFAULT_CONTEXTS: Contexts = ((1, CT, (EXPLICIT,)), (3, VERIFICATION, (IMPLICIT,)))

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def associate_rq(
    contexts: Contexts,
    called: str = "RADMESH",
    calling: str = "RAWSCU",
    max_pdu: int = 131072,
    roles: Sequence[tuple[str, int, int]] = (),
) -> bytes:
    """An A-ASSOCIATE-RQ; roles as (SOP class, SCU, SCP)."""
    body = struct.pack(">Hxx", 1) + called.encode().ljust(16) + calling.encode().ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract, syntaxes in contexts:
        inner = item(0x30, abstract.encode()) + b"".join(item(0x40, s.encode()) for s in syntaxes)
        body += item(0x20, bytes((number, 0, 0, 0)) + inner)
    user = item(0x51, struct.pack(">I", max_pdu)) + item(0x52, b"1.2.826.0.1.3680043.9.9") + item(0x55, b"RAW")
    for sop_class, scu, scp in roles:
        user += item(0x54, struct.pack(">H", len(sop_class)) + sop_class.encode() + bytes((scu, scp)))
    return pdu(ASSOCIATE_RQ, body + item(0x50, user))


def element(group: int, number: int, value: bytes, pad: bytes = b"\0") -> bytes:
    """An element in Implicit VR Little Endian, as command sets have them."""
    value += pad * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(value)) + value


def command(elements: dict[int, bytes]) -> bytes:
    body = b"".join(element(0, number, value) for number, value in sorted(elements.items()))
    return element(0, 0, struct.pack("<I", len(body))) + body


def us(value: int) -> bytes:
    return struct.pack("<H", value)


def store_rq(sop_class: str, sop_instance: str, message_id: int = 1, **changes: bytes | None) -> bytes:
    """A C-STORE-RQ; changes by element number, such as e0700=None to leave the priority out."""
    elements: dict[int, bytes | None] = {
        0x0002: sop_class.encode(),
        0x0100: us(0x0001),
        0x0110: us(message_id),
        0x0700: us(0),
        0x0800: us(0),
        0x1000: sop_instance.encode(),
    }
    elements |= {int(name[1:], 16): value for name, value in changes.items()}
    return command({number: value for number, value in elements.items() if value is not None})


def echo_rq(message_id: int = 1, sop_class: str = VERIFICATION) -> bytes:
    return command({0x0002: sop_class.encode(), 0x0100: us(0x30), 0x0110: us(message_id), 0x0800: us(0x0101)})


def pdv(context: int, flags: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context, flags) + data


def message(context: int, command_set: bytes, data: bytes | None = None, max_pdu: int = 131072) -> bytes:
    """A command set and its data set as P-DATA-TF PDUs."""
    out = [pdu(P_DATA, pdv(context, 3, command_set))]
    if data is not None:
        size = max_pdu - 6
        for start in range(0, max(len(data), 1), size):
            last = start + size >= len(data)
            out.append(pdu(P_DATA, pdv(context, 2 if last else 0, data[start : start + size])))
    return b"".join(out)


def explicit(*elements: tuple[int, str, bytes], order: str = "<") -> bytes:
    """A data set in Explicit VR: (tag, VR, value) in the given order."""
    out = b""
    for tag, vr, unpadded in elements:
        value = unpadded + (b"\0" if vr in ("UI", "OB", "OW", "UN") else b" ") * (len(unpadded) % 2)
        out += struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
        if vr in ("OB", "OW", "OF", "SQ", "UN", "UT", "UC", "UR"):
            out += struct.pack(order + "HI", 0, len(value))
        else:
            out += struct.pack(order + "H", len(value))
        out += value
    return out


def encapsulated(*fragments: bytes) -> bytes:
    """Pixel data of fragments, with an empty offset table (PS3.5 A.4)."""
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(fragment)) + fragment for fragment in (b"", *fragments))
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def image(
    study: str = "2.25.1", sop_instance: str = "2.25.1.1.1", *, sop_class: str = CT, pixels: int = 512, order: str = "<"
) -> bytes:
    """A small CT image's data set in Explicit VR."""
    number = struct.Struct(order + "H").pack
    return explicit(
        (0x00080016, "UI", sop_class.encode()),
        (0x00080018, "UI", sop_instance.encode()),
        (0x00080020, "DA", b"20260102"),
        (0x00080060, "CS", b"CT"),
        (0x00100010, "PN", b"Test^Patient"),
        (0x00100020, "LO", b"P1"),
        (0x0020000D, "UI", study.encode()),
        (0x0020000E, "UI", study.encode() + b".1"),
        (0x00280002, "US", number(1)),
        (0x00280004, "CS", b"MONOCHROME2"),
        (0x00280010, "US", number(max(16, pixels // 2 // 32768))),
        (0x00280011, "US", number(min(pixels // 32, 32768))),
        (0x00280100, "US", number(16)),
        (0x00280101, "US", number(16)),
        (0x00280102, "US", number(15)),
        (0x00280103, "US", number(0)),
        (0x7FE00010, "OW", bytes(pixels)),
        order=order,
    )


@dataclass(frozen=True)
class Response:
    context: int
    elements: dict[int, bytes] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return int.from_bytes(self.elements[0x0900], "little")

    @property
    def comment(self) -> str:
        return self.elements.get(0x0902, b"").decode().strip()

    @property
    def offending(self) -> str:
        value = self.elements.get(0x0901, b"")
        return "{:04X},{:04X}".format(*struct.unpack("<HH", value)) if value else ""


class Client:
    """One connection; with contexts, one association."""

    def __init__(
        self,
        port: int,
        contexts: Contexts | None = DEFAULT_CONTEXTS,
        *,
        host: str = "127.0.0.1",
        called: str = "RADMESH",
        calling: str = "RAWSCU",
        max_pdu: int = 131072,
        timeout: float = 20.0,
        roles: Sequence[tuple[str, int, int]] = (),
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer: tuple[int, bytes] = (0, b"")
        self.accepted: dict[int, str] = {}
        if contexts is not None:
            self.send(associate_rq(contexts, called, calling, max_pdu, roles))
            self.answer = self.pdu()
            if self.answer[0] == ASSOCIATE_AC:
                self.accepted = accepted_contexts(self.answer[1])

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionError(f"closed after {len(data)} of {size} bytes")
            data += piece
        return data

    def pdu(self) -> tuple[int, bytes]:
        head = self.exactly(6)
        return head[0], self.exactly(struct.unpack(">I", head[2:])[0])

    def closed(self) -> bool:
        """Whether the other side closes, without a byte before."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def response(self) -> Response:
        kind, body = self.pdu()
        if kind != P_DATA:
            raise ConnectionError(f"PDU {kind} {body.hex()}")
        size, context, flags = struct.unpack_from(">IBB", body)
        assert flags == 3
        assert size + 4 == len(body)
        elements, at, data = {}, 0, body[6:]
        while at < len(data):
            group, number, length = struct.unpack_from("<HHI", data, at)
            assert group == 0
            elements[number] = data[at + 8 : at + 8 + length]
            at += 8 + length
        return Response(context, elements)

    def store(
        self,
        data: bytes | None,
        sop_instance: str = "2.25.1.1.1",
        *,
        context: int = 1,
        sop_class: str = CT,
        message_id: int = 1,
        max_pdu: int = 131072,
        **changes: bytes | None,
    ) -> Response:
        self.send(message(context, store_rq(sop_class, sop_instance, message_id, **changes), data, max_pdu))
        return self.response()

    def echo(self, context: int = 3) -> int:
        self.send(message(context, echo_rq()))
        return self.response().status

    def release(self) -> None:
        self.send(pdu(RELEASE_RQ, bytes(4)))
        assert self.pdu() == (RELEASE_RP, bytes(4))
        self.close()

    def abort(self) -> None:
        self.send(pdu(ABORT, bytes(4)))
        self.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def accepted_contexts(body: bytes) -> dict[int, str]:
    """Accepted presentation contexts of an A-ASSOCIATE-AC and their transfer syntaxes."""
    accepted, at = {}, 68
    while at < len(body):
        kind, length = body[at], struct.unpack_from(">H", body, at + 2)[0]
        value = body[at + 4 : at + 4 + length]
        if kind == 0x21 and value[2] == 0:
            accepted[value[0]] = value[8:].decode().rstrip("\0")
        at += 4 + length
    return accepted
