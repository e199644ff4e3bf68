"""The data set of a C-STORE request on its way out, piece by piece, in either role."""

from collections.abc import Callable, Iterable, Iterator

from radmesh_native import dul

Buffer = bytes | bytearray | memoryview


def in_pieces(pieces: Iterable[Buffer]) -> Iterator[tuple[Buffer, bool]]:
    """Yield each piece, and whether it is the last; of nothing, one that is empty.

    Each but the last has an even length, as fragments must have (PS3.8 annex E).
    """
    coming = iter(pieces)
    piece: Buffer = next(coming, b"")
    for following in coming:
        odd = len(piece) % 2
        yield (piece[:-1] if odd else piece), False
        piece = b"".join((piece[-1:], following)) if odd else following
    yield piece, True


def send_object(
    wire: dul.Connection,
    context_id: int,
    command: bytes,
    pieces: Iterator[tuple[Buffer, bool]],
    peer_max_pdu: int,
    timeout_ms: int,
    between: Callable[[], object] = lambda: None,
) -> int:
    """Send a C-STORE request; return the bytes of its data set.

    Args:
        wire: the connection.
        context_id: of the presentation context.
        command: the encoded command set; it goes with the first piece.
        pieces: of the data set, each with whether it is the last.
        peer_max_pdu: bytes of a P-DATA-TF that the peer takes; 0 = any number.
        timeout_ms: within which the peer must have read a piece.
        between: called between pieces; it may raise.

    Raises:
        TimeoutError: the peer does not read.
        ConnectionError: the peer is gone. After an exception the connection is of no more use.
    """
    sent = 0
    head: bytes | None = command
    for piece, last in pieces:
        wire.send_message(context_id, head, piece, peer_max_pdu, timeout_ms, last=last)
        head = None
        sent += len(piece)
        if not last:
            between()
    return sent
