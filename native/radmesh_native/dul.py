"""The loop of the DICOM upper layer over a connected socket (PS3.8 9.3), with the GIL released.

`Connection.receive(idle_ms, pdu_ms)` returns the next event, a tuple that begins with its kind:

    (PDU, pdu_type, body)                    any PDU but P-DATA-TF, whole; body is what follows the length
    (COMMAND, context_id, command, has_data) a command set is complete
    (DATA, context_id, data, last)           up to `chunk_size` data set bytes; `last` ends the data set
    (TIMEOUT, in_pdu)                        nothing came for idle_ms, or a PDU was not whole after pdu_ms
    (CLOSED, clean)                          the peer closed; `clean`: between messages
    (INVALID, reason, detail)                A-ABORT it: reason of PS3.8 9.3.8
    (WOKEN,)                                 `wake_fd` became readable

No length from the peer is believed before it is checked: P-DATA-TF against `max_pdu`, other PDUs against `max_body`,
command sets against `max_command`. Memory is one chunk. TCP_QUICKACK is armed before every wait, TCP_NODELAY is on, and
a message is sent by one sendmsg. The time of a PDU stands still between two calls of `receive`. After INVALID nothing
else comes. `receive(0, 0)` never waits: what it leaves within a PDU is gone on with.

`send_message(context, command, data, peer_max_pdu, timeout_ms, last=True)` frames a command set and its data set. A
long one goes out piece by piece: the command with the first piece and last=False, then the others with command None.
`timeout_ms` is for one call, so pieces of 1 MiB demand a pace of the peer that a whole object would not.

`send_rows(context, command, rows, peer_max_pdu, timeout_ms)` sends a message for each row, with the same command set:
the responses of a query. They are framed in one buffer (64 MiB at most) and go out with one send.

`send`, `send_message` and `send_rows` raise TimeoutError when the peer does not read, ConnectionError when it is gone:
part of the message may have gone out, and the connection is of no more use. `parse_command` and `encode_command` raise
ValueError.
"""

from radmesh_native._dul import (
    CLOSED,
    COMMAND,
    DATA,
    INVALID,
    PDU,
    TIMEOUT,
    WOKEN,
    Connection,
    encode_command,
    parse_command,
)

__all__ = [
    "CLOSED",
    "COMMAND",
    "DATA",
    "INVALID",
    "PDU",
    "TIMEOUT",
    "WOKEN",
    "Connection",
    "encode_command",
    "parse_command",
]
