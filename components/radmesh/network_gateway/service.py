"""The gRPC edge: parse, call, answer."""

from collections.abc import Iterator

from radmesh.api.gateway.v1 import gateway_pb2 as pb
from radmesh.dicom.header import QueryableHeader
from radmesh.network_gateway.admission import Admission
from radmesh.network_gateway.holds import Holds
from radmesh.network_gateway.policy import Facts
from radmesh.network_gateway.rejects import Rejected, Rejects
from radmesh.network_gateway.routing import Routing
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.transfer.codec import REJECT_CODECS, Bulk
from radmesh.transfer.model import key_of


class AdmissionService:
    """gateway.v1.AdmissionService."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def Admit(self, request: pb.AdmitRequest, _call: Call) -> pb.AdmitResponse:
        """Give a ticket."""
        key = key_of(request.admission_key)
        if not 1 <= len(key.study_instance_uid) <= 64:
            raise RadmeshError(
                "FIELD_INVALID",
                "admission_key.study_instance_uid: 1 to 64 characters",
                metadata={"field": "admission_key.study_instance_uid"},
            )
        try:
            header = QueryableHeader.parse(request.header)
        except ValueError:
            header = QueryableHeader()  # what it would say is compared later, when the object is registered
        facts = Facts(
            key,
            request.source_address,
            *(header.text(keyword)[:16] for keyword in ("StudyDate", "Modality", "PatientSex")),
        )
        return pb.AdmitResponse(ticket=self._admission.admit(facts, request.avoid_store_id))


class HoldService:
    """gateway.v1.HoldService."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds

    def ReleaseHold(self, request: pb.ReleaseHoldRequest, call: Call) -> pb.ReleaseHoldResponse:
        """Verify again, or let a person answer for it."""
        admissions = self._holds.release(
            request.study_instance_uid,
            request.admission_key,
            actor=request.actor or call.caller,
            override=request.override,
            note=request.override_reason,
        )
        return pb.ReleaseHoldResponse(admissions=admissions)


class RoutingService:
    """gateway.v1.RoutingService."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def TestRoutes(self, request: pb.TestRoutesRequest, _call: Call) -> pb.TestRoutesResponse:
        """Say which routes would fire."""
        return pb.TestRoutesResponse(tests=self._routing.test(request.study_instance_uid))


def _reject(item: Rejected) -> pb.Reject:
    message = pb.Reject(
        id=item.id,
        calling_ae_title=item.calling_ae_title,
        source_address=item.source_address,
        reason=item.reason,
        tag=item.tag,
        message=item.message,
        transfer_syntax_uid=item.transfer_syntax_uid,
        sop_class_uid=item.sop_class_uid,
        sop_instance_uid=item.sop_instance_uid,
        length=item.length,
        cut=item.cut,
    )
    message.receive_time.FromDatetime(item.time)
    return message


class RejectService:
    """gateway.v1.RejectService."""

    codecs = REJECT_CODECS

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects

    def ListRejects(self, request: pb.ListRejectsRequest, _call: Call) -> pb.ListRejectsResponse:
        """List rejects."""
        if request.page_size < 0:
            raise RadmeshError("FIELD_INVALID", "page_size: 0 or more", metadata={"field": "page_size"})
        size = min(request.page_size or 100, 1000)
        items = self._rejects.list(request.page_token, size + 1)
        token = items[size - 1].position if len(items) > size else ""
        return pb.ListRejectsResponse(rejects=map(_reject, items[:size]), next_page_token=token)

    def ReadReject(self, request: pb.ReadRejectRequest, _call: Call) -> Iterator[Bulk[pb.ReadRejectResponse]]:
        """Return the bytes of a reject."""
        item = self._rejects.get(request.id)
        fields = pb.ReadRejectResponse(reject=_reject(item))
        empty = True
        for data in self._rejects.read(item):
            yield Bulk(fields, data)
            fields, empty = pb.ReadRejectResponse(), False
        if empty:
            yield Bulk(fields)

    def DeleteReject(self, request: pb.DeleteRejectRequest, _call: Call) -> pb.DeleteRejectResponse:
        """Remove a reject."""
        self._rejects.delete(request.id)
        return pb.DeleteRejectResponse()
