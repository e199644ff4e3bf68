"""Who takes objects, in a few lines, with nothing of radmesh or pynetdicom in it: every byte of a data set as it came.

A station for C-MOVE and C-STORE (`Station`), and a C-GET (`get`). Data sets are kept, or only counted.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Self

import raw_dicom

IMPLEMENTATION = "1.2.826.0.1.3680043.9.9"
_MOST_PDU = 1 << 20


@dataclass
class Taken:
    """What came.

    Attributes:
        objects: by SOP Instance UID: transfer syntax and data set; empty where only counted.
        commands: the command set of each C-STORE request.
        pending: that of each pending response to a request of ours.
    """

    keep: bool = True
    count: int = 0
    size: int = 0
    associations: int = 0
    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    commands: list[dict[int, bytes]] = field(default_factory=list)
    pending: list[dict[int, bytes]] = field(default_factory=list)


class Wire:
    """Reads messages from a connection into one buffer."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_MOST_PDU))

    def pdu(self) -> tuple[int, memoryview]:
        """Return type and body of a PDU; the body is there until the next one is read.

        Raises:
            ConnectionError: the other side closed.
        """
        kind, length = struct.unpack(">BxI", self._exactly(6))
        if length > _MOST_PDU:
            raise ConnectionError(f"a PDU of {length} bytes")
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> memoryview:
        got = 0
        while got < size:
            more = self.socket.recv_into(self._buffer[got:size], 0, socket.MSG_WAITALL)
            if not more:
                raise ConnectionError(f"closed after {got} of {size} bytes")
            got += more
        return self._buffer[:size]

    def message(self, *, keep: bool) -> tuple[int, dict[int, bytes], bytes, int]:
        """Return context, command set, data set (nothing unless it is kept) and its size.

        Raises:
            ConnectionError: the other side closed, released or aborted; its text begins with the type of the PDU.
        """
        command, data, size = bytearray(), bytearray(), 0
        context, elements, ended = 0, {}, False
        while not ended:
            kind, body = self.pdu()
            if kind != raw_dicom.P_DATA:
                raise ConnectionError(f"{kind}")
            at = 0
            while at < len(body):
                length, context, flags = struct.unpack_from(">IBB", body, at)
                piece = body[at + 6 : at + 4 + length]
                at += 4 + length
                # As strict as DCMTK: fragments have an even length (PS3.8 annex E); a data set may end with an odd one.
                assert flags & 2 or not len(piece) % 2
                if flags & 1:
                    command += piece
                    if flags & 2:
                        elements = command_set(bytes(command))
                        ended = elements[0x0800] == raw_dicom.us(0x0101)
                else:
                    size += len(piece)
                    if keep:
                        data += piece
                    ended = bool(flags & 2)
        return context, elements, bytes(data), size


def command_set(data: bytes) -> dict[int, bytes]:
    """Elements of a command set."""
    elements, at = {}, 0
    while at < len(data):
        group, number, length = struct.unpack_from("<HHI", data, at)
        assert group == 0
        elements[number] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return elements


def text(value: bytes) -> str:
    """A UID or AE title without its padding."""
    return value.decode().strip("\0 ")


def stored(wire: Wire, context: int, request: dict[int, bytes], status: int = 0) -> None:
    """Answer a C-STORE request."""
    answer = raw_dicom.command(
        {
            0x0002: request[0x0002],
            0x0100: raw_dicom.us(0x8001),
            0x0120: request[0x0110],
            0x0800: raw_dicom.us(0x0101),
            0x0900: raw_dicom.us(status),
            0x1000: request[0x1000],
        }
    )
    wire.socket.sendall(raw_dicom.message(context, answer))


class Station:
    """Takes every object in every transfer syntax that is proposed first, or in those of `syntaxes` alone.

    Args:
        port: where it listens; 0 = any free one.
        keep: whether data sets are kept.
        syntaxes: transfer syntaxes that it takes; empty = all.
        status: what it answers to a C-STORE request; given the number of objects before it.
        max_pdu: bytes of a P-DATA-TF that it takes.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        keep: bool = True,
        syntaxes: Collection[str] = (),
        status: Callable[[int], int] = lambda _number: 0,
        max_pdu: int = 131_072,
    ) -> None:
        self.taken = Taken(keep)
        self._syntaxes, self._status, self._max_pdu = syntaxes, status, max_pdu
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._start(self._accept)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        wire = Wire(connection)
        try:
            _, body = wire.pdu()
            accepted, answer = self._agree(bytes(body))
            connection.sendall(answer)
            self.taken.associations += 1
            while True:
                context, command, data, size = wire.message(keep=self.taken.keep)
                status = self._status(self.taken.count)
                self.taken.count += 1
                self.taken.size += size
                self.taken.commands.append(command)
                if self.taken.keep:
                    self.taken.objects[text(command[0x1000])] = (accepted[context], data)
                stored(wire, context, command, status)
        except OSError as error:
            if str(error) == f"{raw_dicom.RELEASE_RQ}":
                connection.sendall(raw_dicom.pdu(raw_dicom.RELEASE_RP, bytes(4)))
        finally:
            connection.close()

    def _agree(self, body: bytes) -> tuple[dict[int, str], bytes]:
        accepted: dict[int, str] = {}
        answer, at = body[:68], 68
        while at < len(body):
            kind, length = body[at], struct.unpack_from(">H", body, at + 2)[0]
            value = body[at + 4 : at + 4 + length]
            at += 4 + length
            if kind == 0x10:
                answer += raw_dicom.item(0x10, value)
            elif kind == 0x20:
                inner, offered = 4, []
                while inner < len(value):
                    size = struct.unpack_from(">H", value, inner + 2)[0]
                    if value[inner] == 0x40:
                        offered.append(text(value[inner + 4 : inner + 4 + size]))
                    inner += 4 + size
                taken = [s for s in offered if not self._syntaxes or s in self._syntaxes]
                if taken:
                    accepted[value[0]] = taken[0]
                chosen = raw_dicom.item(0x40, (taken or offered)[0].encode())
                answer += raw_dicom.item(0x21, bytes((value[0], 0, 0 if taken else 4, 0)) + chosen)
        user = raw_dicom.item(0x51, struct.pack(">I", self._max_pdu)) + raw_dicom.item(0x52, IMPLEMENTATION.encode())
        return accepted, raw_dicom.pdu(raw_dicom.ASSOCIATE_AC, answer + raw_dicom.item(0x50, user))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)


def retrieve(
    client: raw_dicom.Client,
    sop_class: str,
    identifier: bytes,
    taken: Taken,
    *,
    destination: str = "",
    status: Callable[[int], int] = lambda _number: 0,
) -> dict[int, bytes]:
    """Do a C-MOVE to `destination`, or a C-GET without one; return the command set of the last response.

    Args:
        client: an association whose context 1 is that of `sop_class`.
        sop_class: of the query and retrieve information model.
        identifier: in the transfer syntax of the context.
        taken: gets what a C-GET brings.
        destination: AE title.
        status: what is answered to a C-STORE request; given the number of objects before it.
    """
    us = raw_dicom.us
    command = {0x0002: sop_class.encode(), 0x0110: us(1), 0x0700: us(0), 0x0800: us(1)}
    command[0x0100] = us(0x0021 if destination else 0x0010)
    if destination:
        command[0x0600] = destination.encode() + b" " * (len(destination) % 2)
    client.send(raw_dicom.message(1, raw_dicom.command(command), identifier))
    wire = Wire(client.socket)
    while True:
        context, elements, data, size = wire.message(keep=taken.keep)
        if elements[0x0100] == us(0x0001):
            answer = status(taken.count)
            taken.count += 1
            taken.size += size
            taken.commands.append(elements)
            if taken.keep:
                taken.objects[text(elements[0x1000])] = (client.accepted[context], data)
            stored(wire, context, elements, answer)
        elif elements[0x0900] == us(0xFF00):
            taken.pending.append(elements)
        else:
            return {**elements, 0: data}
