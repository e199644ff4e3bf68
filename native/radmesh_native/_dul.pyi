from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

PDU: int
COMMAND: int
DATA: int
TIMEOUT: int
CLOSED: int
INVALID: int
WOKEN: int

class Connection:
    bytes_received: int
    def __init__(
        self,
        fd: int,
        *,
        max_pdu: int = 131072,
        chunk_size: int = 1048560,
        max_command: int = 65536,
        max_body: int = 1048576,
        wake_fd: int = -1,
        tcp: bool = True,
    ) -> None: ...
    def receive(self, idle_ms: int, pdu_ms: int) -> tuple[Any, ...]: ...
    def send(self, buffers: Sequence[Buffer], timeout_ms: int) -> None: ...
    def send_message(
        self,
        context: int,
        command: bytes | None,
        data: Buffer | None,
        peer_max_pdu: int,
        timeout_ms: int,
        *,
        last: bool = True,
    ) -> None: ...
    def send_rows(
        self, context: int, command: bytes, rows: Sequence[Buffer], peer_max_pdu: int, timeout_ms: int
    ) -> None: ...

def parse_command(command: bytes) -> dict[int, bytes]: ...
def encode_command(elements: dict[int, bytes]) -> bytes: ...
