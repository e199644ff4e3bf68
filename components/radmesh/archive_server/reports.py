"""What the Database Server is still to be told of objects that it knows: a copy made, gone or found defective.

A set of object ids in a small LMDB environment, durable before the change itself is: what is sent later is the
object's state at that time, so an entry too many does no harm and none is lost.
"""

import contextlib
import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import lmdb

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.study_store import Ref

BATCH: Final = 256
POLL_SECONDS: Final = 5.0
CALL_SECONDS: Final = 10.0
_KEY: Final = struct.Struct(">16sIQ")
SERVICE: Final = database_pb2.DESCRIPTOR.services_by_name["RegistryService"]

Describe = Callable[[Ref], database_pb2.InstanceUpdate | None]


class Reports:
    """The durable set."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._changing = threading.Lock()
        self._environment = lmdb.open(str(folder), map_size=1 << 30, max_dbs=0, sync=True, metasync=True)

    def add(self, refs: Iterable[Ref]) -> None:
        """Durable when it returns."""
        with self._environment.begin(write=True) as transaction:
            for ref in refs:
                transaction.put(_key(ref), secrets.token_bytes(8))

    @contextlib.contextmanager
    def changing(self, refs: Sequence[Ref]) -> Iterator[None]:
        """Add objects around a change of theirs: it is reported, whenever the process ends or the reporter looks.

        Added before, a change is reported that a crash came after. Added again after it, what the reporter has said
        of an object meanwhile, which was its state before, does not count.
        """
        with self._changing:
            self.add(refs)
            yield
            self.add(refs)

    def first(self, limit: int, after: Ref | None = None) -> list[tuple[Ref, bytes]]:
        """Objects to be reported, with what ``remove`` needs, in order of their ids."""
        found: list[tuple[Ref, bytes]] = []
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(_key(after) + b"\0") if after is not None else cursor.first()
            while more and len(found) < limit:
                study_hash, generation, sequence = _KEY.unpack(cursor.key())
                found.append((Ref(study_hash.hex(), generation, sequence), bytes(cursor.value())))
                more = cursor.next()
        return found

    def remove(self, reported: Iterable[tuple[Ref, bytes]]) -> None:
        """Forget those that were not added again since they were read."""
        with self._changing, self._environment.begin(write=True) as transaction:
            for ref, version in reported:
                if transaction.get(_key(ref)) == version:
                    transaction.delete(_key(ref))

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


def _key(ref: Ref) -> bytes:
    return _KEY.pack(bytes.fromhex(ref.study_hash), ref.generation, ref.sequence)


class Reporter:
    """Sends what is in the set by UpdateInstances; a service with one thread.

    Args:
        reports: the set.
        describe: an object's state as it is now; None = not yet registered, ask again later.
        context: of the archive.
    """

    def __init__(self, reports: Reports, describe: Describe, context: Context) -> None:
        self._reports, self._describe = reports, describe
        self._registry = context.client(SERVICE, "database-server")
        self._worker: Worker = context.worker("reporter", self._step, most_pause=1.0)

    def start(self) -> None:
        """Go on with what is there."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End; the rest is sent after the next start."""
        self._worker.stop(grace)

    def wake(self) -> None:
        """There is something new."""
        self._worker.wake()

    def _step(self) -> float:
        after: Ref | None = None
        while not self._worker.stopping:
            page = self._reports.first(BATCH, after)
            if not page:
                break
            after = page[-1][0]
            self._send([(item, update) for item in page if (update := self._describe(item[0])) is not None])
        return POLL_SECONDS

    def _send(self, batch: Sequence[tuple[tuple[Ref, bytes], database_pb2.InstanceUpdate]]) -> None:
        if not batch:
            return
        request = database_pb2.UpdateInstancesRequest(updates=[update for _, update in batch])
        try:
            self._registry.UpdateInstances(request, timeout=CALL_SECONDS)
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                raise
            # One object that the database does not know has the whole batch refused; of it there is nothing to say.
            if len(batch) > 1:
                for one in batch:
                    self._send([one])
                return
        self._reports.remove(item for item, _ in batch)
