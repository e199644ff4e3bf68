"""The one exception type of the mesh."""

from collections.abc import Mapping

import grpc

from radmesh.runtime.reasons import REASONS, Reason


class RadmeshError(Exception):
    """Something went wrong that a caller should know of.

    `reason` is a name in `radmesh.runtime.reasons`; `message` is for people, in lower case, without patient data.
    """

    def __init__(self, reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    @property
    def definition(self) -> Reason:
        """What the reason means in each protocol; that of INTERNAL for a reason this version does not know."""
        return REASONS.get(self.reason) or REASONS["INTERNAL"]

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.definition.code

    @property
    def transient(self) -> bool:
        """Whether trying again later can help."""
        return self.definition.transient
