"""The cheapest sender there is: objects framed in memory before the clock runs, no DICOM library in the loop."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import raw_dicom


@dataclass(frozen=True)
class Item:
    """An object of a set: Explicit VR Little Endian, as bench/sets.py writes them."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes


def read_part10(path: Path) -> Item:
    from radmesh.dicom import header, part10, uids

    with path.open("rb") as file:
        syntax = part10.seek_data_set(file)
        data = file.read()
    scanner = header.new_scanner(uids.transfer_syntax(syntax))
    scanner.feed(data[:65536])
    scanner.finish()
    return Item(
        uids.clean_uid(scanner.value(0x00080016) or b""),
        uids.clean_uid(scanner.value(0x00080018) or b""),
        syntax,
        data,
    )


class RawAssociation:
    """One association that sends items in order."""

    def __init__(self, host: str, port: int, *, called: str, calling: str, objects: list[Item]) -> None:
        contexts: dict[tuple[str, str], int] = {}
        for item in objects:
            contexts.setdefault((item.sop_class_uid, item.transfer_syntax_uid), 2 * len(contexts) + 1)
        self._framed = [
            raw_dicom.message(
                contexts[item.sop_class_uid, item.transfer_syntax_uid],
                raw_dicom.store_rq(item.sop_class_uid, item.sop_instance_uid, 1 + number % 65535),
                item.data_set,
            )
            for number, item in enumerate(objects)
        ]
        self._connect = lambda: raw_dicom.Client(
            port,
            [(n, a, [t]) for (a, t), n in contexts.items()],
            host=host,
            called=called,
            calling=calling,
            timeout=120.0,
        )

    def __enter__(self) -> Self:
        self._client = self._connect()
        if not self._client.accepted:
            raise ConnectionError(f"association refused: {self._client.answer}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._client.release()
        self._client.close()

    def store(self, number: int) -> int:
        """Send an item; return the status of the response."""
        self._client.send(self._framed[number])
        return self._client.response().status


__all__ = ["Item", "RawAssociation", "read_part10"]
