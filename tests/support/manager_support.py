"""A Connectivity Manager as the gateway meets it: a real server with orders that a test writes down, and its moods."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transfer_support import Mesh

from radmesh.api.connectivity.v1 import connectivity_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Server

SERVICE = pb.DESCRIPTOR.services_by_name["ConnectivityService"]


def order(domain: str, accession: str, patient: str, name: str = "Doe^John", **more: Any) -> database_pb2.Order:
    fields = {"order_id": f"{domain}/{accession}", "status": database_pb2.ORDER_STATUS_SCHEDULED, **more}
    person = database_pb2.RisPatient(patient_id=patient, patient_name=name)
    return database_pb2.Order(domain=domain, accession_number=accession, patient=person, **fields)


class Manager:
    """Answers by accession number and Patient ID. `mood`: "", "late", "unavailable", "nonsense", "other domain"."""

    def __init__(self, mesh: Mesh, number: int = 0, domains: tuple[str, ...] = ("default",)) -> None:
        self._mesh, self._instance, self._domains = mesh, f"connectivity-manager-{number}", domains
        mesh.addresses[self._instance] = mesh.listen(self._instance)
        self.orders: list[database_pb2.Order] = []
        self.asked: list[pb.VerifyStudyRequest] = []
        self.probed = 0
        self.mood = ""
        self.go = threading.Event()
        self._server: Server | None = None

    def start(self) -> "Manager":
        self._server = self._mesh.context(self._instance).server(max_connection_age=None)
        self._server.add(SERVICE, self)
        self._server.start()
        return self

    def stop(self) -> None:
        self.go.set()
        if self._server is not None:
            Mesh.cut_off(self._server)
            self._server = None

    @contextmanager
    def late(self) -> Iterator[None]:
        """It hears and does not answer, until the end of the block."""
        self.go.clear()
        self.mood = "late"
        try:
            yield
        finally:
            self.mood = ""
            self.go.set()

    # -- ConnectivityService

    def VerifyStudy(self, request: pb.VerifyStudyRequest, _call: Any) -> pb.VerifyStudyResponse:
        self.asked.append(request)
        mood = self.mood
        if mood == "late":
            assert self.go.wait(60)
        if mood == "unavailable":
            raise RadmeshError("RIS_UNAVAILABLE", "the feed is old")
        if mood == "nonsense":
            return pb.VerifyStudyResponse(outcome=pb.VERIFY_OUTCOME_MATCH)
        if request.domain not in self._domains:
            raise RadmeshError("DOMAIN_UNKNOWN", "not served here")
        keys = request.keys
        found = [o for o in self.orders if o.domain == request.domain and o.accession_number == keys.accession_number]
        agree = [o for o in found if o.patient.patient_id == keys.patient_id]
        if mood == "other domain":
            return pb.VerifyStudyResponse(outcome=pb.VERIFY_OUTCOME_MATCH, orders=[order("elsewhere", "A", "P")])
        if len(agree) == 1:
            return pb.VerifyStudyResponse(outcome=pb.VERIFY_OUTCOME_MATCH, orders=agree)
        if agree:
            return pb.VerifyStudyResponse(outcome=pb.VERIFY_OUTCOME_AMBIGUOUS, orders=agree)
        if found:
            return pb.VerifyStudyResponse(
                outcome=pb.VERIFY_OUTCOME_PATIENT_MISMATCH, orders=found, mismatched_keywords=["PatientID"]
            )
        return pb.VerifyStudyResponse(outcome=pb.VERIFY_OUTCOME_NO_ORDER)

    def SendReport(self, _request: pb.SendReportRequest, _call: Any) -> pb.SendReportResponse:
        return pb.SendReportResponse()

    def UndoMerge(self, _request: pb.UndoMergeRequest, _call: Any) -> pb.UndoMergeResponse:
        return pb.UndoMergeResponse()

    def ListDomains(self, _request: pb.ListDomainsRequest, _call: Any) -> pb.ListDomainsResponse:
        self.probed += 1
        if self.mood == "late":
            assert self.go.wait(60)
        return pb.ListDomainsResponse(
            domains=[pb.Domain(name=name, available=self.mood != "unavailable") for name in self._domains]
        )
