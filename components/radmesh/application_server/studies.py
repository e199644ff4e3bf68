"""Reading: which copies an instance has, and its bytes from the first that gives them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.errors import RadmeshError


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an instance's data set; `instance` and `residence` are set in the first."""

    offset: int
    data: memoryview | bytes
    crc32c: int
    instance: Any = None
    residence: int = 0


def choose(instances: list[database_pb2.Instance], sha256: bytes) -> database_pb2.Instance:
    """Return the instance wanted: by digest, or the current one.

    Raises:
        RadmeshError: INSTANCE_NOT_FOUND.
    """
    for instance in instances:
        if instance.identity.sha256 == sha256 if sha256 else instance.current:
            return instance
    raise RadmeshError("INSTANCE_NOT_FOUND", "the study has no such instance")


def pages(find: Any, request: database_pb2.FindInstancesRequest) -> Iterator[database_pb2.Instance]:
    """Yield the instances of every page."""
    while True:
        page = find(request)
        yield from page.instances
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
