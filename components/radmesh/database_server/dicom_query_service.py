"""The gRPC edge of what DICOM stations ask for: parse, call, answer."""

import threading
from collections.abc import Iterable, Iterator
from typing import Final

from radmesh.api.database.v1 import dicom_query_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.dicom_query import LIMIT, Batch, DicomQueries, Query
from radmesh.database_server.dicom_worklist import Worklist
from radmesh.database_server.queries import Viewer
from radmesh.dicom.identifier import KEYS_MOST, Key
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call

_MESSAGE_BYTES: Final = 1 << 20
_DEPTH_MOST: Final = 8
AT_ONCE: Final = 64
"""Queries at once: each has a thread for as long as its station takes to read, and others need threads too."""


@checked("Find", "FindWorklist")
class DicomQueryService:
    """database.v1.DicomQueryService."""

    def __init__(self, queries: DicomQueries, worklist: Worklist) -> None:
        self._queries = queries
        self._worklist = worklist
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def Find(self, request: pb.FindRequest, _call: Call) -> Iterator[pb.FindResponse]:
        """Answer a C-FIND of the Query/Retrieve Service Class."""
        found = self._queries.find(
            Query(
                model=request.model,
                level=request.level,
                keys=_keys(request.keys),
                viewer=Viewer(request.viewer_station),
                implicit=request.encoding.implicit_vr,
                character_set=request.encoding.character_set,
                retrieve_ae_title=request.retrieve_ae_title[:16],
                relational=request.relational,
                combined_date_time=request.combined_date_time,
                fuzzy=request.fuzzy_names,
                limit=min(request.limit or LIMIT, LIMIT),
            )
        )
        return self._answers(found.batches(), keys_unsupported=found.keys_unsupported)

    def FindWorklist(self, request: pb.FindWorklistRequest, _call: Call) -> Iterator[pb.FindResponse]:
        """Answer a C-FIND of the Modality Worklist."""
        found = self._worklist.find(
            _keys(request.keys),
            implicit=request.encoding.implicit_vr,
            character_set=request.encoding.character_set,
            limit=min(request.limit or LIMIT, LIMIT),
        )
        return self._answers(found.batches(), keys_unsupported=found.keys_unsupported)

    def _answers(self, batches: Iterable[Batch], *, keys_unsupported: bool) -> Iterator[pb.FindResponse]:
        if not self._room.acquire(blocking=False):
            raise RadmeshError("TOO_MANY_CALLS", f"{AT_ONCE} queries are being answered: ask again in a moment")
        try:
            yield from _messages(batches, keys_unsupported=keys_unsupported)
        finally:
            self._room.release()


def _keys(messages: Iterable[pb.QueryKey]) -> tuple[Key, ...]:
    left = KEYS_MOST

    def read(keys: Iterable[pb.QueryKey], depth: int) -> tuple[Key, ...]:
        nonlocal left
        if depth > _DEPTH_MOST:
            raise invalid("keys", f"at most {_DEPTH_MOST} deep")
        made = []
        for key in keys:
            left -= 1
            if left < 0:
                raise invalid("keys", f"at most {KEYS_MOST}")
            made.append(Key(key.tag, key.vr, key.value, read(key.items, depth + 1)))
        return tuple(made)

    return read(messages, 0)


def _messages(batches: Iterable[Batch], *, keys_unsupported: bool) -> Iterator[pb.FindResponse]:
    for batch in batches:
        answer = pb.FindResponse(keys_unsupported=keys_unsupported)
        size = 0
        for row in batch.rows:
            if size + len(row) > _MESSAGE_BYTES and size:
                yield answer
                answer, size = pb.FindResponse(keys_unsupported=keys_unsupported), 0
            answer.identifiers.append(row)
            size += len(row)
        answer.limited = batch.limited
        yield answer
