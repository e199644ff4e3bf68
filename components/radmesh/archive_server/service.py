"""The gRPC edge: parse, call, answer."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from radmesh.api.archive.v1 import archive_pb2 as pb
from radmesh.api.common.v1 import common_pb2
from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.study_store import LmdbStudyStore, Ref, StudyState
from radmesh.transfer.model import ObjectReference

_HASH: Final = re.compile(r"[0-9a-f]{32}")


def _page_size(asked: int) -> int:
    if asked < 0:
        raise RadmeshError("FIELD_INVALID", "page_size: 0 or more", metadata={"field": "page_size"})
    return min(asked or 100, 1000)


def _position(token: str) -> tuple[int, int]:
    try:
        generation, _, sequence = token.partition(".")
        return (int(generation), int(sequence)) if token else (0, 0)
    except ValueError:
        raise RadmeshError("FIELD_INVALID", "page_token: of another query", metadata={"field": "page_token"}) from None


class ArchiveService:
    """archive.v1.ArchiveService."""

    def __init__(
        self, store: LmdbStudyStore, changing: Callable[[Sequence[Ref]], AbstractContextManager[None]]
    ) -> None:
        self._store = store
        self._changing = changing

    def _generations(self, name: str) -> list[StudyState]:
        found = [s for s in self._store.generations(name) if s.state != "REMOVED"]
        if not found:
            raise RadmeshError("STUDY_NOT_FOUND", "the archive has no such study")
        return found

    def ListObjects(self, request: pb.ListObjectsRequest, _call: Call) -> pb.ListObjectsResponse:
        """List objects of a study."""
        if _HASH.fullmatch(request.study_hash) is None:
            raise RadmeshError(
                "FIELD_INVALID", "study_hash: 32 hexadecimal characters", metadata={"field": "study_hash"}
            )
        size = _page_size(request.page_size)
        generation, after = _position(request.page_token)
        answer = pb.ListObjectsResponse()
        for state in self._generations(request.study_hash):
            if state.generation < generation:
                continue
            room = size - len(answer.objects)
            start = after if state.generation == generation else 0
            for row in self._store.rows(state.study_hash, state.generation, after=start, limit=room):
                answer.objects.append(
                    pb.StoredObject(
                        object=ObjectReference(
                            self._store.store_id, row.ref.study_hash, row.ref.generation, row.ref.sequence
                        ).message(),
                        identity=common_pb2.ContentIdentity(
                            sop_instance_uid=row.header.sop_instance_uid,
                            transfer_syntax_uid=row.header.transfer_syntax_uid,
                            sha256=row.sha256,
                        ),
                        length=row.length,
                        residence=int(self._store.residence(row.ref)),  # type: ignore[arg-type]
                        registered=row.ref.sequence <= state.registered,
                    )
                )
            if len(answer.objects) == size:
                last = answer.objects[-1].object
                answer.next_page_token = f"{last.generation}.{last.sequence}"
                break
        return answer

    def ListStudies(self, request: pb.ListStudiesRequest, _call: Call) -> pb.ListStudiesResponse:
        """List studies, by hash; a study with several generations has a row for each."""
        size = _page_size(request.page_size)
        answer = pb.ListStudiesResponse()
        last = ""
        for state in self._store.studies():
            token = f"{state.study_hash}.{state.generation:010d}"
            if token <= request.page_token or state.state == "REMOVED":
                continue
            if len(answer.studies) == size:
                answer.next_page_token = last
                break
            gone = state.state in ("PERMANENT_ONLY", "EVICTING", "LOST")
            answer.studies.add(
                study_hash=state.study_hash,
                study_instance_uid=state.study_instance_uid,
                objects=state.last,
                bytes=state.bytes,
                residence=common_pb2.RESIDENCE_PERMANENT if gone else common_pb2.RESIDENCE_CACHE,
            )
            last = token
        return answer

    def EvictStudy(self, request: pb.EvictStudyRequest, _call: Call) -> pb.EvictStudyResponse:
        """Drop the cache copy of a study."""
        freed = 0
        for state in self._generations(study_hash(request.study_instance_uid)):
            if state.state in ("OPEN", "SEALED"):
                # The database hears of the new residence of every object.
                refs = [Ref(state.study_hash, state.generation, number) for number in range(1, state.last + 1)]
                with self._changing(refs):
                    freed += self._store.evict(state.study_hash, state.generation)
        return pb.EvictStudyResponse(bytes=freed)
