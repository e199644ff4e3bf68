"""Reading from an archive itself, past the door: what a client on the spot does (CORRECTNESS rule 18).

Nothing depends on it: what cannot be read so is read through the door.
"""

import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import grpc

from radmesh.api.application.v1 import application_pb2
from radmesh.api.archive.v1 import archive_pb2_grpc
from radmesh.api.common.v1 import common_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.client import model
from radmesh.client.connection import on_this_machine, open_channel
from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import from_rpc_error
from radmesh_native.crc32c import crc32c

# A grant is good for a minute from when it was signed; where there was none, or it was of no use, the door is used.
_GOOD_SECONDS: Final = 45.0
_AVOID_SECONDS: Final = 10.0
_STUDIES_MOST: Final = 256
_CALL_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class _Way:
    """How a study is read for now; `stub` None: through the door."""

    until: float
    stub: archive_pb2_grpc.ReadServiceStub | None = None
    store_id: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


class LocalArchives:
    """Grants, and connections to archives. Thread-safe.

    Args:
        ask: ImageService.GetReadGrant, of a Study Instance UID.
        target: of the door: from another machine, an archive that serves its own one only is not reached.
        ca_certificate: authority of the cluster, PEM; None: archives that speak TLS are not reached.
    """

    def __init__(
        self, ask: Callable[[str], application_pb2.ReadGrant], target: str, ca_certificate: bytes | None
    ) -> None:
        self._ask = ask
        self._here = on_this_machine(target)
        self._ca = ca_certificate
        self._lock = threading.Lock()
        self._ways: OrderedDict[str, _Way] = OrderedDict()
        self._channels: dict[str, grpc.Channel] = {}
        self._closed = False

    def close(self) -> None:
        """End the connections, and what is read over them."""
        with self._lock:
            self._closed = True
            for channel in self._channels.values():
                channel.close()

    def read(self, study_instance_uid: str, instance: model.Instance) -> Iterator[bytes]:
        """Yield data set bytes of an instance from its first on, as many as come: all, some, or none."""
        offset = 0
        # Once more, for a grant may have become void: the archive was restarted.
        for _ in range(2):
            way = self._way(study_instance_uid)
            place = next((p for p in instance.locations if p.store_id == way.store_id and p.sequence), None)
            if way.stub is None or place is None:
                return
            request = transfer_pb2.ReadRangeRequest(
                object=common_pb2.ObjectReference(
                    store_id=place.store_id,
                    study_hash=study_hash(study_instance_uid),
                    generation=place.generation,
                    sequence=place.sequence,
                ),
                offset=offset,
            )
            first = True
            try:
                for message in way.stub.ReadRange(request, metadata=way.metadata, timeout=_CALL_SECONDS):
                    if message.offset != offset or message.crc32c != crc32c(message.data):
                        break
                    # It has to be the content that was asked for: stores are restored from backups.
                    if first and (message.size != instance.length or message.sha256.hex() != instance.sha256):
                        break
                    first = False
                    offset += len(message.data)
                    yield message.data
                else:
                    return
                again = False
            except grpc.RpcError as error:
                again = from_rpc_error(error).reason == "GRANT_INVALID"
            except ValueError:
                return  # so grpc says that the channel was closed
            self._leave(study_instance_uid, way, for_good=not again)
            if not again:
                return

    def _way(self, study_instance_uid: str) -> _Way:
        with self._lock:
            way = self._ways.get(study_instance_uid)
            if way is None or way.until <= time.monotonic():
                way = self._ways[study_instance_uid] = self._find(study_instance_uid)
                self._ways.move_to_end(study_instance_uid)
                if len(self._ways) > _STUDIES_MOST:
                    self._ways.popitem(last=False)
            return way

    def _find(self, study_instance_uid: str) -> _Way:
        begin = time.monotonic()
        try:
            grant = self._ask(study_instance_uid)
        except RadmeshError:
            # Whatever it is: the door says it better, or has what is wanted.
            return _Way(begin + _AVOID_SECONDS)
        channel = self._channel(grant.client_url)
        if channel is None:
            return _Way(begin + _AVOID_SECONDS)
        authorization = f"Grant {base64.b64encode(grant.grant).decode()}"
        return _Way(
            begin + _GOOD_SECONDS,
            archive_pb2_grpc.ReadServiceStub(channel),
            grant.store_id,
            (("authorization", authorization),),
        )

    def _channel(self, url: str) -> grpc.Channel | None:
        """Return the channel to an archive; None if it cannot be reached from here."""
        scheme, _, target = url.partition("://")
        near = on_this_machine(target)
        if self._closed or (near and not self._here):
            return None
        # Without TLS a grant, and what it lets read, never leaves the machine.
        if not (near if scheme == "grpc" else scheme == "grpcs" and self._ca is not None):
            return None
        if url not in self._channels:
            self._channels[url] = open_channel(target, self._ca if scheme == "grpcs" else None, "archive-server")
        return self._channels[url]

    def _leave(self, study_instance_uid: str, way: _Way, *, for_good: bool) -> None:
        with self._lock:
            if self._ways.get(study_instance_uid) is way:
                del self._ways[study_instance_uid]
                if for_good:
                    self._ways[study_instance_uid] = _Way(time.monotonic() + _AVOID_SECONDS)
