"""DICOM over TLS (PS3.15 B.9 to B.12, BCP 195): certificates that may be replaced, and a tunnel for each connection.

An association reads and writes a plain socket in native/; over TLS that is one end of a pair, whose other end a thread
of the tunnel joins with the connection.
"""

import hashlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger

CLIENTS: Final = ("off", "optional", "required")
# Of TLS 1.2 what BCP 195 recommends (RFC 9325 section 4.2): ephemeral keys and authenticated encryption alone. TLS 1.3
# has nothing else.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_HANDSHAKE: Final = 0x16
_ASSOCIATE_RQ: Final = 0x01
_PIECE: Final = 64 << 10
# What the pair takes at once, about: some eight records, each of which would cost a turn of the loop.
_INWARDS: Final = 128 << 10
_TURN_MS: Final = 200

Buffer = bytes | memoryview


class Certificates:
    """The server's TLS context, loaded again when a file was replaced. Thread-safe.

    Args:
        certificate: PEM file of the certificate and its chain.
        key: PEM file of its key; the same file if it is in there.
        authorities: PEM file of who certifies stations; None = none is asked for a certificate.
        required: whether only stations with a certificate are let in.
        log: where it says what was loaded.

    Raises:
        RadmeshError: CONFIG_INVALID: a file cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, authorities: Path | None, *, required: bool, log: Logger) -> None:
        self._files = [path for path in (certificate, key, authorities) if path is not None]
        self._certificate, self._key, self._authorities = certificate, key, authorities
        self._required = required
        self._log = log
        self._lock = threading.Lock()
        self._seen = self._times()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context of what the files have now; of files that cannot be used, what there was before."""
        with self._lock:
            times = self._times()
            if times != self._seen:
                self._seen = times
                try:
                    self._context = self._load()
                    self._log.info("certificates loaded")
                except RadmeshError as error:
                    self._log.warning("certificates cannot be used, the earlier ones are kept", text=error.message)
            return self._context

    def _times(self) -> list[tuple[int, int]]:
        found = []
        for path in self._files:
            try:
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_ino))
            except OSError:
                found.append((-1, -1))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
        context.set_ciphers(_CIPHERS)
        name = "tls_certificate, tls_key"
        try:
            # A key with a password would ask for it on the console.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
            name = "tls_ca"
            if self._authorities is not None:
                context.load_verify_locations(self._authorities)
                context.verify_mode = ssl.CERT_REQUIRED if self._required else ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            what = getattr(error, "reason", "") or getattr(error, "strerror", "") or "no PEM, or an encrypted key"
            remedy = "give PEM files that belong together, and a key without a password"
            raise RadmeshError("CONFIG_INVALID", f"dicom.{name} cannot be used ({what}): {remedy}") from error
        return context


class Tunnel:
    """One TLS connection, joined with the plain socket that its association gets.

    Attributes:
        inner: the association's end.
        certificate: SHA-256 of the certificate that the peer showed, in hexadecimal digits; empty = none.
    """

    def __init__(self, connection: ssl.SSLSocket, flush_timeout: float) -> None:
        shown = connection.getpeercert(binary_form=True)
        self.certificate = hashlib.sha256(shown).hexdigest() if shown else ""
        self._outer = connection
        self._flush_timeout = flush_timeout
        self.inner, self._end = socket.socketpair()
        for each in (connection, self._end):
            each.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
        self._buffer = memoryview(bytearray(_INWARDS))
        self._thread = threading.Thread(target=self._run, name="tls", daemon=True)

    def start(self) -> None:
        """Carry bytes, until the association closes its end."""
        self._thread.start()

    def join(self) -> None:
        """Wait until what the association sent is on its way, or cannot be."""
        self._thread.join(self._flush_timeout + 1.0)

    def _run(self) -> None:
        try:
            self._carry()
            with suppress(OSError, ValueError):  # want-read too: nobody waits for the peer's goodbye
                self._outer.unwrap()
        finally:
            self._outer.close()
            self._end.close()

    def _carry(self) -> None:
        """Carry both ways; a way has one piece under way at most, so that whoever does not read stops who writes."""
        inwards: Buffer = b""
        outwards: Buffer = b""
        outer_open = inner_open = True
        told = False
        until = 0.0
        while True:
            if not inwards and outer_open:
                inwards, outer_open = self._receive()
            if inwards:
                inwards, alive = _sent(self._end, inwards)
                if not alive:
                    inwards, outer_open = b"", False
            if not inwards and not outer_open and not told:
                told = True
                with suppress(OSError):
                    self._end.shutdown(socket.SHUT_WR)
            if not outwards and inner_open:
                try:
                    outwards = self._end.recv(_PIECE)
                    inner_open = bool(outwards)
                except BlockingIOError:
                    pass
                except OSError:
                    inner_open = False
                if not inner_open:
                    until = time.monotonic() + self._flush_timeout
            if outwards:
                outwards, alive = _sent(self._outer, outwards)
                if not alive:
                    outwards = b""
                    outer_open = False
                    with suppress(OSError):
                        self._end.shutdown(socket.SHUT_RDWR)
            if not inner_open and (not outwards or time.monotonic() > until):
                return
            self._wait(inwards, outwards, outer_open=outer_open, inner_open=inner_open, until=until)

    def _receive(self) -> tuple[memoryview, bool]:
        """Return what the peer sent, as many records as are here, and whether there may be more."""
        size = 0
        try:
            while size < _INWARDS:
                got = self._outer.recv_into(self._buffer[size:])
                if not got:
                    return self._buffer[:size], False
                size += got
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, ValueError):
            return self._buffer[:size], False
        return self._buffer[:size], True

    def _wait(self, inwards: Buffer, outwards: Buffer, *, outer_open: bool, inner_open: bool, until: float) -> None:
        if not inwards and outer_open and self._outer.pending():
            return
        poll = select.poll()
        outer = (select.POLLIN if outer_open and not inwards else 0) | (select.POLLOUT if outwards else 0)
        inner = (select.POLLIN if inner_open and not outwards else 0) | (select.POLLOUT if inwards else 0)
        if outer:
            poll.register(self._outer, outer)
        if inner:
            poll.register(self._end, inner)
        # With nothing to wait for but the other way, which a dead peer may never let go on.
        poll.poll(max(1, int((until - time.monotonic()) * 1000)) if until else None)


def _sent(connection: socket.socket, data: Buffer) -> tuple[Buffer, bool]:
    """Send what can be sent; return the rest, and whether the connection lives."""
    try:
        return data[connection.send(data) :], True
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return data, True
    except (OSError, ValueError):
        return b"", False


def accept(
    connection: socket.socket, context: ssl.SSLContext, seconds: float, between: Callable[[], object]
) -> ssl.SSLSocket:
    """Shake hands with a peer that has just connected.

    `between` is called at least every 0.2 s; what it raises passes through.

    Raises:
        RadmeshError: TLS_REFUSED: it did not, in time; the message says why, and what can be done.
    """
    until = time.monotonic() + seconds
    try:
        _wait_for(connection, select.POLLIN, until, between)
        first = connection.recv(1, socket.MSG_PEEK)
        if first and first[0] != _HANDSHAKE:
            what = "DICOM without TLS" if first[0] == _ASSOCIATE_RQ else "something other than TLS"
            remedy = "turn TLS on there, or have it use the port without"
            raise RadmeshError("TLS_REFUSED", f"the station speaks {what} on the port for TLS: {remedy}")
        if not first:
            raise RadmeshError("TLS_REFUSED", "the connection ended before anything came")
        wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        _shake_hands(wrapped, until, between)
    except ssl.SSLError as error:
        reason = (error.reason or "no handshake").replace("_", " ").lower()
        raise RadmeshError("TLS_REFUSED", f"the handshake failed ({reason}): compare {_REMEDY}") from error
    except OSError as error:
        what = "nothing came in time" if isinstance(error, TimeoutError) else "the connection was lost"
        raise RadmeshError("TLS_REFUSED", f"no handshake: {what}") from error
    return wrapped


_REMEDY: Final = "versions (1.2 at least), cipher suites, and the authorities on both sides"


@dataclass(frozen=True, slots=True)
class Dialer:
    """How a station is called over TLS.

    Attributes:
        context: of the client's side.
        certificate: SHA-256 of the certificate that the station has to show; empty = one that the context accepts.
    """

    context: ssl.SSLContext
    certificate: str = ""

    def tunnel(
        self, connection: socket.socket, host: str, seconds: float, flush: float, between: Callable[[], object]
    ) -> socket.socket:
        """Shake hands on a connection, and return the plain end of its tunnel.

        `between` is called at least every 0.2 s.

        Raises:
            RadmeshError: STATION_REFUSED, STATION_SILENT.
        """
        try:
            wrapped = self.context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
            try:
                _shake_hands(wrapped, time.monotonic() + seconds, between)
                tunnel = Tunnel(wrapped, flush)
            except BaseException:
                wrapped.close()
                raise
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or (error.reason or "no handshake").replace("_", " ").lower()
            raise RadmeshError("STATION_REFUSED", f"no TLS with the station ({reason}): compare {_REMEDY}") from error
        except TimeoutError:
            raise RadmeshError("STATION_SILENT", "the station does not finish the TLS handshake") from None
        except (OSError, ValueError) as error:
            raise RadmeshError("STATION_REFUSED", "the station ended the connection within the handshake") from error
        tunnel.start()
        if self.certificate not in ("", tunnel.certificate):
            tunnel.inner.close()
            raise RadmeshError("STATION_REFUSED", "the station shows another certificate than the registry names")
        return tunnel.inner


def dialer(certificate: Path, key: Path, authorities: Path | None, shown: str) -> Dialer:
    """Return how to call a station over TLS.

    Args:
        certificate: PEM file of our certificate and its chain, for a station that asks for one.
        key: that of its key.
        authorities: PEM file of who certifies stations; None = those of the system.
        shown: SHA-256 of the one certificate that the station has to show, whoever made it; empty = its authority
            must be known, and it must name the host.

    Raises:
        RadmeshError: CONFIG_INVALID: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    name = "tls_certificate, tls_key"
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
        name = "tls_ca"
        if shown:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif authorities is not None:
            context.load_verify_locations(authorities)
        else:
            context.load_default_certs()
    except (OSError, ValueError) as error:
        raise RadmeshError("CONFIG_INVALID", f"dicom.{name} cannot be used: give PEM files") from error
    return Dialer(context, shown)


def _shake_hands(connection: ssl.SSLSocket, until: float, between: Callable[[], object]) -> None:
    """Do the handshake as a whole by `until`, however slowly its bytes come."""
    connection.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
    while True:
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        else:
            return
        _wait_for(connection, wanted, until, between)


def _wait_for(connection: socket.socket, wanted: int, until: float, between: Callable[[], object]) -> None:
    """Wait until a connection can be read or written, by `until`; TimeoutError when it cannot."""
    poll = select.poll()
    poll.register(connection, wanted)
    while not poll.poll(_TURN_MS):
        between()
        if time.monotonic() >= until:
            raise TimeoutError
