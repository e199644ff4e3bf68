"""The gRPC edge: every rpc answers, whatever it is asked; restarts and kills lose nothing."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import argon2
import pytest
import sqlalchemy as sa
from database_support import (
    ARCHIVE,
    EXPLICIT,
    HELD,
    NEW,
    NOT_REQUIRED,
    PENDING,
    TIME,
    VERIFIED,
    Parts,
    at_once,
    record,
    uid,
)
from depth import allowed
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message_factory import GetMessageClass
from runtime_support import World
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import database_pb2 as pb
from radmesh.database_server import service
from radmesh.database_server.config import Section
from radmesh.database_server.grants import GrantService
from radmesh.database_server.module import DatabaseServer, module
from radmesh.database_server.registry import Record
from radmesh.database_server.reports import DELIVERED, NOT_CONFIGURED, REFUSED, WAITING
from radmesh.database_server.schema import MIGRATIONS, outbox
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, time_of

SERVICES = pb.DESCRIPTOR.services_by_name
PASSWORD = "correct horse battery"


def message(entry: Record) -> pb.InstanceRecord:
    """A record as a store sends it."""
    made = pb.InstanceRecord(
        object=_reference(entry),
        identity=common_pb2.ContentIdentity(
            sop_instance_uid=entry.sop_instance_uid,
            transfer_syntax_uid=entry.transfer_syntax_uid,
            sha256=entry.sha256,
        ),
        length=entry.length,
        header=entry.header,
        study_instance_uid=entry.study_instance_uid,
        series_instance_uid=entry.series_instance_uid,
        sop_class_uid=entry.sop_class_uid,
        calling_ae_title=entry.calling_ae_title,
        admission_key=entry.admission_key,
        verification=entry.verification,  # type: ignore[arg-type]
        remarks=entry.remarks,
    )
    made.receive_time.FromDatetime(time_of(entry.receive_time))
    return made


def _reference(entry: Record) -> common_pb2.ObjectReference:
    return common_pb2.ObjectReference(
        store_id=entry.store_id, study_hash=entry.study_hash, generation=entry.generation, sequence=entry.sequence
    )


def beat(store_id: str = "archive-0", kind: int = ARCHIVE) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(
        store_id=store_id,
        kind=kind,  # type: ignore[arg-type]
        target=f"unix:/{store_id}",
        epoch=b"e" * 16,
        free_bytes=10**12,
        accepting=True,
    )


class Cluster:
    """A Database Server that serves, and the others' ways to it."""

    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self.url = url
        self._contexts: dict[str, Any] = {}
        world.addresses["database-server"] = world.listen("database-server")
        world.authority.issue(["connectivity-manager-0", "connectivity-manager-1", "curator-0"])
        self.server = self._make()
        self.server.start()

    def _make(self) -> DatabaseServer:
        data = self.world.folder / "database-server"
        data.mkdir(exist_ok=True)
        # No store falls silent here, however long a test takes between a heartbeat and what it is for.
        section = Section(url=self.url, store_timeout=60.0)
        return module(section, replace(self.world.context("database-server"), data=data))

    def restart(self) -> None:
        self.server.stop(1.0)
        self.server = self._make()
        self.server.start()

    def call(self, name: str, instance: str) -> Any:
        """A service's calls, as `instance` makes them."""
        if instance not in self._contexts:
            self._contexts[instance] = self.world.context(instance)
        return self._contexts[instance].client(SERVICES[name], "database-server")


@pytest.fixture
def cluster(url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RADMESH_ADMIN_PASSWORD", PASSWORD)
    world = World(tmp_path_factory.mktemp("c"), "unix")
    made = Cluster(world, url)
    yield made
    made.server.stop(1.0)
    world.close()


def reason_of(call: Callable[[], Any]) -> str:
    with pytest.raises(RadmeshError) as error:
        call()
    return error.value.reason


# -- a walk through every rpc


def test_an_image_from_its_store_to_a_viewer(cluster: Cluster) -> None:
    archive = cluster.call("RegistryService", "archive-server-0")
    gateway = cluster.call("PlacementService", "network-gateway")
    proxy = cluster.call("QueryService", "gateway-proxy")
    entries = [record(sop=sop, Rows=64, NumberOfFrames=3) for sop in range(3)]
    request = pb.RegisterInstancesRequest(records=map(message, entries))
    assert reason_of(lambda: archive.RegisterInstances(request)) == "STORE_UNKNOWN"
    assert archive.Heartbeat(beat()).timeout.ToTimedelta() == timedelta(seconds=60)
    assert [(s.store_id, s.alive) for s in archive.ListStores(pb.ListStoresRequest()).stores] == [("archive-0", True)]
    answer = archive.RegisterInstances(request)
    assert [r.outcome for r in answer.registrations] == [NEW] * 3
    # The administrator was the first change, the store the second.
    assert answer.revision == 3
    # The ticket of the study's next object.
    key = common_pb2.AdmissionKey(station="CT1", study_instance_uid=uid("study", 0), patient_id="P0")
    signed = gateway.PlaceStudy(pb.PlaceStudyRequest(admission_key=key)).ticket
    credentials = cluster.world.credentials("archive-server-0")
    assert credentials.ticket_verify("database-server", signed.payload, signed.signature)
    ticket = common_pb2.Ticket.FromString(signed.payload)
    assert (ticket.issuer, ticket.store_id, ticket.epoch) == ("database-server", "archive-0", b"e" * 16)
    assert ticket.admission_key == AdmissionKey("CT1", uid("study", 0), "P0").digest()
    assert (ticket.verification, ticket.revision, ticket.target) == (1, 3, "unix:/archive-0")
    left = ticket.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    # The release of an association waits for what it sent.
    marks = [common_pb2.CommitMark(store_id="archive-0", study_hash=entries[0].study_hash, generation=1, sequence=3)]
    waiting = cluster.call("RegistryService", "gateway-proxy")
    assert not waiting.WaitRegistered(pb.WaitRegisteredRequest(marks=marks)).missing
    marks[0].sequence = 4
    began = time.monotonic()
    assert list(waiting.WaitRegistered(pb.WaitRegisteredRequest(marks=marks)).missing) == marks
    assert 1.5 < time.monotonic() - began < allowed(6)
    # And it is found.
    studies = proxy.FindStudies(pb.FindStudiesRequest(patient_name="DOE*")).studies
    assert [(s.patient_id, s.instance_count, list(s.modalities), list(s.stations)) for s in studies] == [
        ("P0", 3, ["CT"], ["CT1"])
    ]
    detail = proxy.GetStudy(pb.GetStudyRequest(study_instance_uid=uid("study", 0)))
    assert [(s.modality, s.instance_count, s.series_number) for s in detail.series] == [("CT", 3, "1")]
    found = proxy.FindInstances(pb.FindInstancesRequest(study_instance_uid=uid("study", 0), page_size=2))
    assert [(i.identity.sha256, i.rows, i.number_of_frames, i.length) for i in found.instances] == [
        (entry.sha256, 64, 3, 1000) for entry in entries[:2]
    ]
    assert found.next_page_token
    place = found.instances[0].locations[0]
    assert (place.object, place.residence, place.target) == (_reference(entries[0]), 1, "unix:/archive-0")
    patients = proxy.FindPatients(pb.FindPatientsRequest(patient_id="P*")).patients
    assert [(p.patient_id, p.study_count) for p in patients] == [("P0", 1)]
    # What the archive finds out later.
    update = pb.InstanceUpdate(object=_reference(entries[0]), residence=2, defect="PIXEL_DATA_SHORT")  # type: ignore[arg-type]
    archive.UpdateInstances(pb.UpdateInstancesRequest(updates=[update]))
    found = proxy.FindInstances(pb.FindInstancesRequest(study_instance_uid=uid("study", 0)))
    assert (found.instances[0].defect, found.instances[0].locations[0].residence) == ("PIXEL_DATA_SHORT", 2)
    assert reason_of(lambda: proxy.GetStudy(pb.GetStudyRequest(study_instance_uid="1.2"))) == "STUDY_NOT_FOUND"


def test_status_holds_and_corrections(cluster: Cluster) -> None:
    archive = cluster.call("RegistryService", "archive-server-0")
    archive.Heartbeat(beat())
    entry = record()
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=[message(entry)]))
    gateway = cluster.call("StudyService", "network-gateway")
    queries = cluster.call("QueryService", "application-server")
    study: dict[str, Any] = {"study_instance_uid": entry.study_instance_uid}
    moved = gateway.SetStatus(pb.SetStatusRequest(**study, reading=2, expected_version=2))  # type: ignore[arg-type]
    assert (moved.reading, moved.version) == (2, 3)
    assert reason_of(lambda: gateway.SetStatus(pb.SetStatusRequest(**study, reading=5))) == "STATUS_ILLEGAL"  # type: ignore[arg-type]
    stale = pb.SetStatusRequest(**study, reading=3, expected_version=2)  # type: ignore[arg-type]
    assert reason_of(lambda: gateway.SetStatus(stale)) == "VERSION_CONFLICT"
    assert reason_of(lambda: gateway.SetStatus(pb.SetStatusRequest(**study))) == "FIELD_INVALID"
    held = pb.SetVerificationRequest(verification=HELD, reason="PATIENT_MISMATCH")  # type: ignore[arg-type]
    held.admission_key.study_instance_uid = entry.study_instance_uid
    held.admission_key_digest = entry.admission_key
    assert gateway.SetVerification(held).instance_count == 1
    assert not gateway.SetVerification(held).changed
    assert reason_of(lambda: queries.GetStudy(pb.GetStudyRequest(**study))) == "STUDY_NOT_FOUND"
    mine = queries.GetStudy(pb.GetStudyRequest(**study, viewer_station="CT1")).study
    assert (mine.instance_count, mine.verification_reason) == (1, "PATIENT_MISMATCH")
    admissions = gateway.ListAdmissions(pb.ListAdmissionsRequest(verifications=[HELD])).admissions  # type: ignore[list-item]
    assert [(a.admission_key_digest, a.admission_key.station, a.reason) for a in admissions] == [
        (entry.admission_key, "CT1", "PATIENT_MISMATCH")
    ]
    corrected = gateway.SetCorrection(
        pb.SetCorrectionRequest(**study, values={"PatientName": "Roe^Jane"}, source="user:x")
    )
    assert (corrected.patient_name, corrected.corrected) == ("Roe^Jane", True)
    listed = gateway.ListCorrections(pb.ListCorrectionsRequest(**study)).corrections
    assert [(c.keyword, c.original_value, c.value, c.actor) for c in listed] == [
        ("PatientName", "Doe^John", "Roe^Jane", "network-gateway")
    ]
    history = gateway.ListHistory(pb.ListHistoryRequest(**study)).entries
    assert [(h.axis, getattr(h, "from"), h.to) for h in history] == [
        ("reading", "NEW", "DICTATED"),
        ("verification", "NOT_REQUIRED", "HELD"),
        ("correction", "PatientName", "set"),
    ]


def test_pictures_from_their_curator_to_whoever_shows_them(cluster: Cluster) -> None:
    archive = cluster.call("RegistryService", "archive-server-0")
    stores = cluster.call("RegistryService", "curator-0")
    curator = cluster.call("CurationService", "curator-0")
    door = cluster.call("CurationService", "application-server")
    queries = cluster.call("QueryService", "application-server")
    archive.Heartbeat(beat())
    entries = [record(sop=sop) for sop in range(3)]
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=map(message, entries)))
    study: dict[str, Any] = {"study_instance_uid": uid("study", 0)}
    assert list(curator.FindUncurated(pb.FindUncuratedRequest()).study_instance_uids) == [uid("study", 0)]
    made = [
        pb.Rendition(
            identity=message(entry).identity,
            study_instance_uid=entry.study_instance_uid,
            series_instance_uid=entry.series_instance_uid,
            store_id="curator-0",
            state=pb.RENDITION_STATE_CODED,
            number_of_frames=1,
            transfer_syntax_uid="1.2.840.10008.1.2.4.202",
            photometric_interpretation="YBR_RCT",
            derived=True,
            bytes=1 << 40,
        )
        for entry in entries
    ]
    request = pb.RegisterRenditionsRequest(renditions=made)
    assert reason_of(lambda: curator.RegisterRenditions(request)) == "STORE_UNKNOWN"
    announced = pb.HeartbeatRequest(
        store_id="curator-0",
        kind=common_pb2.STORE_KIND_WEB_CACHE,
        target="unix:/curator-0",
        epoch=b"c" * 16,
        client_url="grpcs://curator-0:50053",
    )
    stores.Heartbeat(announced)
    listed = {store.store_id: store for store in stores.ListStores(pb.ListStoresRequest()).stores}
    assert (listed["curator-0"].kind, listed["curator-0"].client_url, listed["archive-0"].client_url) == (
        common_pb2.STORE_KIND_WEB_CACHE,
        "grpcs://curator-0:50053",
        "",
    )
    feed = cluster.call("FeedService", "application-server").Watch(pb.WatchRequest(kinds=["rendition"]), timeout=20)
    for _ in range(2):
        curator.RegisterRenditions(request)
    assert next(feed).key == uid("study", 0)
    feed.cancel()
    found = door.FindRenditions(pb.FindRenditionsRequest(**study, page_size=2))
    for rendition in made:
        rendition.target = "unix:/curator-0"
    assert list(found.renditions) == made[:2]
    more = pb.FindRenditionsRequest(**study, page_size=2, page_token=found.next_page_token)
    assert list(door.FindRenditions(more).renditions) == made[2:]
    shown = queries.GetStudy(pb.GetStudyRequest(**study)).study
    assert (shown.curated_count, shown.instance_count) == (3, 3)
    assert not curator.FindUncurated(pb.FindUncuratedRequest()).study_instance_uids
    # What is known survives a restart of the database; the web cache has to be heard again.
    cluster.restart()
    stores.Heartbeat(announced)
    assert len(door.FindRenditions(pb.FindRenditionsRequest(**study)).renditions) == 3
    assert queries.GetStudy(pb.GetStudyRequest(**study)).study.curated_count == 3
    assert curator.DropRenditions(pb.DropRenditionsRequest(store_id="curator-0", **study)).dropped == 3
    assert not door.FindRenditions(pb.FindRenditionsRequest(**study)).renditions
    for field, value in (("state", 0), ("store_id", ""), ("reason", "R" * 65), ("frame", -1), ("state", 3)):
        bad = pb.Rendition()
        bad.CopyFrom(made[0])
        setattr(bad, field, value)
        wrong = pb.RegisterRenditionsRequest(renditions=[bad])
        assert reason_of(lambda wrong=wrong: curator.RegisterRenditions(wrong)) == "FIELD_INVALID"  # type: ignore[misc]
    missing = pb.FindRenditionsRequest(study_instance_uid="1.2")
    assert reason_of(lambda: door.FindRenditions(missing)) == "STUDY_NOT_FOUND"
    assert reason_of(lambda: door.RegisterRenditions(request)) == "CALLER_REFUSED"


# -- the RIS


def _ris_order(accession: str = "A1", patient: str = "P0", **more: Any) -> pb.Order:
    made = pb.Order(
        order_id=f"default/{accession}",
        domain="default",
        accession_number=accession,
        patient=pb.RisPatient(patient_id=patient, patient_name="Doe^Ris", patient_birth_date="19700101"),
        status=pb.ORDER_STATUS_SCHEDULED,
        scheduled_time="20260102080000",
        modality="CT",
        **more,
    )
    made.update_time.FromSeconds(1_700_000_000)
    return made


def test_a_verdict_before_its_object_is_in_ticket_study_and_list(cluster: Cluster) -> None:
    archive = cluster.call("RegistryService", "archive-server-0")
    placement = cluster.call("PlacementService", "network-gateway")
    gateway = cluster.call("StudyService", "network-gateway")
    queries = cluster.call("QueryService", "application-server")
    archive.Heartbeat(beat())
    entry = record(AccessionNumber="A1")
    key = common_pb2.AdmissionKey(
        station="CT1",
        study_instance_uid=entry.study_instance_uid,
        patient_id="P0",
        patient_name="Doe^John",
        accession_number="A1",
    )

    def ticket(asked: int) -> int:
        request = pb.PlaceStudyRequest(admission_key=key, verification=asked)  # type: ignore[arg-type]
        return common_pb2.Ticket.FromString(placement.PlaceStudy(request).ticket.payload).verification

    assert ticket(PENDING) == PENDING
    request = pb.SetVerificationRequest(admission_key=key, verification=HELD, reason="NO_ORDER", domain="default")  # type: ignore[arg-type]
    answer = gateway.SetVerification(request)
    assert (answer.instance_count, answer.changed) == (0, True)
    assert not gateway.SetVerification(request).changed
    # What is known goes before what is asked for.
    assert [ticket(state) for state in (PENDING, VERIFIED, NOT_REQUIRED)] == [HELD] * 3
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=[message(entry)]))
    assert (
        reason_of(lambda: queries.GetStudy(pb.GetStudyRequest(study_instance_uid=entry.study_instance_uid)))
        == "STUDY_NOT_FOUND"
    )
    (held,) = gateway.ListAdmissions(pb.ListAdmissionsRequest(reason="NO_ORDER", domain="default")).admissions
    assert (held.admission_key, held.revision, held.instance_count) == (key, 1, 1)
    assert (list(held.modalities), held.study_date, held.receive_time.ToDatetime(UTC)) == (["CT"], "20260101", TIME)
    # The order comes.
    verified = pb.SetVerificationRequest(
        admission_key=key,
        admission_key_digest=held.admission_key_digest,
        verification=VERIFIED,  # type: ignore[arg-type]
        domain="default",
        order=_ris_order(),
        expected_revision=held.revision,
        actor="network-gateway",
    )
    assert gateway.SetVerification(verified).changed
    assert reason_of(lambda: gateway.SetVerification(verified)) == "VERSION_CONFLICT"
    study = queries.GetStudy(pb.GetStudyRequest(study_instance_uid=entry.study_instance_uid)).study
    assert (study.patient_name, study.order_id, study.domain, study.corrected) == (
        "Doe^Ris",
        "default/A1",
        "default",
        True,
    )
    assert ticket(PENDING) == VERIFIED
    assert not gateway.ListAdmissions(pb.ListAdmissionsRequest(verifications=[HELD])).admissions  # type: ignore[list-item]
    (row,) = gateway.ListAdmissions(pb.ListAdmissionsRequest(accession_number="A1")).admissions
    assert (row.verification, row.order_id, row.revision) == (VERIFIED, "default/A1", 2)
    # The Application Server asks the gateway, which knows the policy.
    door = cluster.call("StudyService", "application-server")
    assert reason_of(lambda: door.SetVerification(request)) == "CALLER_REFUSED"


def test_what_a_manager_tells_is_found_and_merged(cluster: Cluster) -> None:
    manager = cluster.call("OrderService", "connectivity-manager-0")
    door = cluster.call("OrderService", "application-server")
    feed = cluster.call("FeedService", "network-gateway")
    stream = feed.Watch(pb.WatchRequest(kinds=["order", "patient", "domain"]), timeout=20)

    def tell(*events: pb.RisEvent) -> int:
        request = pb.ApplyRisEventsRequest(manager="connectivity-manager-0", manager_epoch=b"e" * 16, events=events)
        return int(manager.ApplyRisEvents(request).sequence)

    assert reason_of(tell) == "FIELD_INVALID"
    told = _ris_order(procedure_description="CT abdomen", referring_physician_name="Roe^Ref")
    assert tell(pb.RisEvent(sequence=1, domain="default", order=told)) == 1
    with pytest.raises(RadmeshError) as error:
        tell(pb.RisEvent(sequence=3, domain="default", order=told))
    assert (error.value.reason, error.value.metadata["sequence"]) == ("EVENT_GAP", "2")
    (found,) = door.FindOrders(pb.FindOrdersRequest(patient_name="doe*", scheduled_to="20260102")).orders
    assert found == told
    for wrong in ("2026", "20260102T0800", "x"):
        assert reason_of(partial(door.FindOrders, pb.FindOrdersRequest(scheduled_from=wrong))) == "FIELD_INVALID"
    merge = pb.PatientMerge(
        prior=pb.RisPatient(patient_id="P0"), surviving=pb.RisPatient(patient_id="P1", patient_name="Doe^Merged")
    )
    assert (
        tell(
            pb.RisEvent(sequence=2, domain="default", merge=merge),
            pb.RisEvent(sequence=3, domain="default", domain_state=pb.DomainState(available=True)),
        )
        == 3
    )
    (found,) = door.FindOrders(pb.FindOrdersRequest(order_id="default/A1")).orders
    assert (found.patient.patient_id, found.patient.patient_name) == ("P1", "Doe^Merged")
    (listed,) = door.ListMerges(pb.ListMergesRequest(domain="default")).merges
    assert (listed.prior.patient_id, listed.surviving.patient_id, listed.study_count) == ("P0", "P1", 0)
    assert not listed.HasField("undo_time")
    undone = door.UndoMerge(pb.UndoMergeRequest(id=listed.id, actor="admin"))
    assert (undone.undo_actor, undone.HasField("undo_time")) == ("admin", True)
    assert reason_of(lambda: door.UndoMerge(pb.UndoMergeRequest(id=listed.id))) == "MERGE_UNDONE"
    (found,) = door.FindOrders(pb.FindOrdersRequest(order_id="default/A1")).orders
    assert found.patient.patient_id == "P0"
    seen = [next(stream) for _ in range(6)]
    assert {(change.kind, change.key) for change in seen} == {
        ("order", "default A1"),
        ("patient", "default P0"),
        ("patient", "default P1"),
        ("domain", "default"),
    }


class Manager:
    """A Connectivity Manager that takes reports over; raises `errors` first, calls `before` before it answers."""

    def __init__(self, world: World, instance: str = "connectivity-manager-0") -> None:
        self._world = world
        self._instance = instance
        self.undone: list[connectivity_pb2.UndoMergeRequest] = []
        self.reports: list[connectivity_pb2.SendReportRequest] = []
        self.errors: list[RadmeshError] = []
        self.before: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Serve."""
        context = self._world.context(self._instance)
        self._world.serve(context, (connectivity_pb2.DESCRIPTOR.services_by_name["ConnectivityService"], self))

    def SendReport(
        self, request: connectivity_pb2.SendReportRequest, _call: Any
    ) -> connectivity_pb2.SendReportResponse:
        if self.errors:
            raise self.errors.pop(0)
        self.reports.append(request)
        self.before()
        return connectivity_pb2.SendReportResponse(control_id=f"R{request.report.version}")

    def UndoMerge(self, request: connectivity_pb2.UndoMergeRequest, _call: Any) -> connectivity_pb2.UndoMergeResponse:
        if self.errors:
            raise self.errors.pop(0)
        self.undone.append(request)
        return connectivity_pb2.UndoMergeResponse()

    def VerifyStudy(self, _request: Any, _call: Any) -> connectivity_pb2.VerifyStudyResponse:
        raise NotImplementedError

    def ListDomains(self, _request: Any, _call: Any) -> connectivity_pb2.ListDomainsResponse:
        raise NotImplementedError


class Reading:
    """A study that is read by a radiologist."""

    def __init__(self, cluster: Cluster) -> None:
        archive = cluster.call("RegistryService", "archive-server-0")
        archive.Heartbeat(beat())
        self.entry = record(AccessionNumber="A1")
        archive.RegisterInstances(pb.RegisterInstancesRequest(records=[message(self.entry)]))
        self.service = cluster.call("ReportService", "application-server")
        self.study: dict[str, Any] = {"study_instance_uid": self.entry.study_instance_uid}

    def report(self, text: str) -> pb.Report:
        self.service.SaveReport(pb.SaveReportRequest(**self.study, text=text, actor="rad"))
        approved: pb.Report = self.service.ApproveReport(pb.ApproveReportRequest(**self.study, actor="rad"))
        return approved

    def fares(self) -> list[tuple[int, int, str, str]]:
        """(version, delivery, reason, control id), oldest first; none while the server cannot be asked."""
        try:
            listed = self.service.ListReports(pb.ListReportsRequest(**self.study)).reports
        except RadmeshError as error:
            assert error.transient, error
            return []
        return [(r.version, r.delivery, r.delivery_reason, r.control_id) for r in reversed(listed)]


def test_an_approved_report_goes_to_the_manager_of_its_domain(cluster: Cluster) -> None:
    manager = Manager(cluster.world)
    manager.start()
    reading = Reading(cluster)
    gateway = cluster.call("StudyService", "network-gateway")
    verified = pb.SetVerificationRequest(verification=VERIFIED, domain="default", order=_ris_order())  # type: ignore[arg-type]
    verified.admission_key.study_instance_uid = reading.entry.study_instance_uid
    verified.admission_key_digest = reading.entry.admission_key
    gateway.SetVerification(verified)
    # The order is somebody else's by now: the report is of the patient whose images were read.
    teller = cluster.call("OrderService", "connectivity-manager-0")
    event = pb.RisEvent(sequence=1, domain="default", order=_ris_order(patient="P9"))
    teller.ApplyRisEvents(
        pb.ApplyRisEventsRequest(manager="connectivity-manager-0", manager_epoch=b"e" * 16, events=[event])
    )
    assert reading.report("No fracture.").delivery == WAITING
    wait_for(lambda: manager.reports)
    (sent,) = manager.reports
    assert (sent.report.text, sent.report.version, sent.report.approver) == ("No fracture.", 1, "rad")
    assert (sent.study.patient_name, sent.order.accession_number, sent.order.patient.patient_id) == (
        "Doe^Ris",
        "A1",
        "P0",
    )
    wait_for(lambda: reading.fares() == [(1, WAITING, "", "R1")])
    delivery = pb.SetReportDeliveryRequest(**reading.study, version=1, delivery=DELIVERED, control_id="R1")  # type: ignore[arg-type]
    service_of_manager = cluster.call("ReportService", "connectivity-manager-0")
    service_of_manager.SetReportDelivery(delivery)
    assert reading.fares() == [(1, DELIVERED, "", "R1")]
    delivery.version = 7
    assert reason_of(lambda: service_of_manager.SetReportDelivery(delivery)) == "REPORT_NOT_FOUND"


def test_a_report_waits_for_its_manager_and_an_addendum_waits_behind_it(cluster: Cluster) -> None:
    manager = Manager(cluster.world)
    cluster.world.addresses["connectivity-manager-0"] = cluster.world.listen("connectivity-manager-0")
    reading = Reading(cluster)
    reading.report("No fracture.")
    wait_for(lambda: reading.fares() == [(1, WAITING, "PEER_UNAVAILABLE", "")])
    reading.report("A fracture after all.")
    # The Database Server is started again meanwhile.
    cluster.restart()
    manager.errors = [RadmeshError("DOMAIN_UNKNOWN", "it has the configuration of yesterday")]
    manager.start()
    wait_for(lambda: len(manager.reports) == 2, 20)
    assert [sent.report.version for sent in manager.reports] == [1, 2]
    wait_for(lambda: reading.fares() == [(1, WAITING, "", "R1"), (2, WAITING, "", "R2")])


def test_what_the_manager_says_goes_before_the_answer_that_it_has_the_report(cluster: Cluster) -> None:
    manager = Manager(cluster.world)
    manager.start()
    reading = Reading(cluster)
    teller = cluster.call("ReportService", "connectivity-manager-0")

    def delivered() -> None:
        teller.SetReportDelivery(
            pb.SetReportDeliveryRequest(**reading.study, version=1, delivery=DELIVERED, control_id="R1")  # type: ignore[arg-type]
        )
        raise RadmeshError("PEER_UNAVAILABLE", "the answer is lost")

    manager.before = delivered
    reading.report("No fracture.")
    wait_for(lambda: manager.reports)
    manager.before = lambda: None
    # It is handed over again, which the manager knows, and stays what it is.
    wait_for(lambda: len(manager.reports) >= 2)
    wait_for(lambda: not _outbox(cluster))
    assert reading.fares() == [(1, DELIVERED, "", "R1")]


def test_a_report_that_nobody_can_take_is_marked(cluster: Cluster) -> None:
    reading = Reading(cluster)
    reading.report("There is no Connectivity Manager.")
    wait_for(lambda: reading.fares() == [(1, NOT_CONFIGURED, "DOMAIN_UNKNOWN", "")])
    manager = Manager(cluster.world)
    manager.errors = [RadmeshError("HL7_REPORT_INVALID", "not in this version")]
    manager.start()
    reading.report("What cannot be said.")
    wait_for(lambda: reading.fares()[1] == (2, REFUSED, "HL7_REPORT_INVALID", ""))
    wait_for(lambda: not _outbox(cluster))
    assert manager.reports == []


def test_what_nobody_could_take_is_sent_when_somebody_can(cluster: Cluster) -> None:
    reading = Reading(cluster)
    reading.report("There is no Connectivity Manager.")
    wait_for(lambda: reading.fares() == [(1, NOT_CONFIGURED, "DOMAIN_UNKNOWN", "")])
    manager = Manager(cluster.world)
    manager.start()
    cluster.restart()
    wait_for(lambda: manager.reports)
    wait_for(lambda: reading.fares() == [(1, WAITING, "", "R1")])
    # The manager has no receiver for it, and says when it has one.
    teller = cluster.call("ReportService", "connectivity-manager-0")
    for state in (NOT_CONFIGURED, WAITING, WAITING):
        teller.SetReportDelivery(
            pb.SetReportDeliveryRequest(**reading.study, version=1, delivery=state, control_id="R1")  # type: ignore[arg-type]
        )
    wait_for(lambda: len(manager.reports) == 2)
    wait_for(lambda: not _outbox(cluster))
    assert [sent.report.text for sent in manager.reports] == ["There is no Connectivity Manager."] * 2
    assert reading.fares() == [(1, WAITING, "", "R1")]


@dataclass(frozen=True)
class _Domain:
    """A [[domains]] entry, as far as it concerns the Database Server."""

    name: str
    issuer: str
    manager: int


def test_a_manager_that_hangs_keeps_no_other_domain_waiting(cluster: Cluster) -> None:
    domains = tuple(_Domain(name, name.upper(), number) for number, name in enumerate(("clinic", "town")))
    context = cluster.world.context

    def configured(instance: str) -> Any:
        made = context(instance)
        return replace(made, settings={**made.settings, "domains": domains})

    cluster.world.context = configured  # type: ignore[method-assign]
    cluster.restart()
    hangs, works = (Manager(cluster.world, f"connectivity-manager-{number}") for number in range(2))
    for manager in (hangs, works):
        manager.start()
    let_go = threading.Event()
    hangs.before = lambda: let_go.wait(60)
    archive = cluster.call("RegistryService", "archive-server-0")
    archive.Heartbeat(beat())
    entries = [record(study=n, sop=n, IssuerOfPatientID=domains[n % 2].issuer) for n in range(12)]
    stations = [replace(entry, calling_ae_title="") for entry in entries]
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=map(message, stations)))
    service = cluster.call("ReportService", "application-server")
    for entry in entries:
        study: dict[str, Any] = {"study_instance_uid": entry.study_instance_uid}
        service.SaveReport(pb.SaveReportRequest(**study, text="Text.", actor="rad"))
        service.ApproveReport(pb.ApproveReportRequest(**study, actor="rad"))
    wait_for(lambda: len(works.reports) == 6)
    assert len(hangs.reports) == 1
    let_go.set()
    wait_for(lambda: len(hangs.reports) == 6, 20)
    wait_for(lambda: not _outbox(cluster))


def test_an_undo_waits_for_its_manager_and_is_told_again_until_it_is_taken(cluster: Cluster) -> None:
    teller = cluster.call("OrderService", "connectivity-manager-0")
    door = cluster.call("OrderService", "application-server")
    merge = pb.RisEvent(sequence=1, domain="default")
    merge.merge.prior.patient_id, merge.merge.surviving.patient_id = "P0", "P1"
    teller.ApplyRisEvents(
        pb.ApplyRisEventsRequest(manager="connectivity-manager-0", manager_epoch=b"e" * 16, events=[merge])
    )
    (listed,) = door.ListMerges(pb.ListMergesRequest()).merges
    door.UndoMerge(pb.UndoMergeRequest(id=listed.id, actor="admin"))
    # Nobody serves the domain; the Database Server is started again meanwhile, and the manager fails at first.
    wait_for(lambda: [row.attempts > 0 for row in _outbox(cluster)] == [True])
    manager = Manager(cluster.world)
    manager.errors = [RadmeshError("DATABASE_UNAVAILABLE", "its store is away"), RadmeshError("DOMAIN_UNKNOWN", "old")]
    manager.start()
    cluster.restart()
    feed = cluster.call("FeedService", "network-gateway")
    wait_for(lambda: manager.undone, 20)
    (told,) = manager.undone
    assert (told.domain, told.prior.patient_id, told.surviving.patient_id) == ("default", "P0", "P1")
    assert told.merge == f"{listed.id}@{listed.time.ToMicroseconds()}"
    wait_for(lambda: not _outbox(cluster))
    # Whoever asked the manager before it knew asks it again.
    stream = feed.Watch(pb.WatchRequest(kinds=["patient"]), timeout=20)
    assert [next(stream).key for _ in range(6)] == ["default P0", "default P1"] * 3


def _outbox(cluster: Cluster) -> list[Any]:
    with cluster.server._database.read() as connection:
        return list(connection.execute(sa.select(outbox)))


def test_jobs_and_the_feed(cluster: Cluster) -> None:
    jobs = cluster.call("JobService", "archive-server-0")
    feed = cluster.call("FeedService", "network-gateway")
    stream = feed.Watch(pb.WatchRequest(kinds=["job"]), timeout=20)
    made = jobs.EnqueueJob(pb.EnqueueJobRequest(kind="curate", key="1.2", payload="{}"))
    minute = timedelta(minutes=1)
    leased = jobs.LeaseJobs(pb.LeaseJobsRequest(kinds=["curate"], count=1, lease=minute)).jobs[0]
    assert (leased.id, leased.owner, leased.attempt) == (made.id, "archive-server-0", 1)
    renewed = jobs.RenewJob(pb.RenewJobRequest(id=leased.id, fence=leased.fence, lease=minute))
    assert renewed.lease_expire_time.ToDatetime() >= leased.lease_expire_time.ToDatetime()
    done = jobs.FinishJob(pb.FinishJobRequest(id=leased.id, fence=leased.fence, state=3))  # type: ignore[arg-type]
    assert done.state == 3
    assert [job.id for job in jobs.ListJobs(pb.ListJobsRequest(state=3)).jobs] == [made.id]  # type: ignore[arg-type]
    lost = pb.RenewJobRequest(id=leased.id, fence=leased.fence, lease=minute)
    assert reason_of(lambda: jobs.RenewJob(lost)) == "JOB_LOST"
    changes = [next(stream), next(stream)]
    assert [(change.kind, change.key) for change in changes] == [("job", str(made.id))] * 2
    assert changes[0].revision < changes[1].revision
    ahead = feed.Watch(pb.WatchRequest(from_revision=4711), timeout=20)
    assert reason_of(lambda: next(ahead)) == "RESYNC"


def test_users_sessions_and_audit(cluster: Cluster) -> None:
    accounts = cluster.call("AccountService", "application-server")
    session = accounts.SignIn(pb.SignInRequest(name="Admin", password=PASSWORD))
    assert (session.user.name, session.user.role) == ("admin", 4)
    again = accounts.GetSession(pb.GetSessionRequest(token=session.token))
    assert (again.session_id, again.token) == (session.session_id, "")
    user = accounts.CreateUser(pb.CreateUserRequest(name="doe", role=3, password=PASSWORD))  # type: ignore[arg-type]
    assert user.role == 3
    assert accounts.UpdateUser(pb.UpdateUserRequest(name="doe", display_name="Jane")).display_name == "Jane"
    assert [u.name for u in accounts.ListUsers(pb.ListUsersRequest()).users] == ["admin", "doe"]
    accounts.DeleteUser(pb.DeleteUserRequest(name="doe"))
    assert reason_of(lambda: accounts.DeleteUser(pb.DeleteUserRequest(name="admin"))) == "LAST_ADMINISTRATOR"
    accounts.SignOut(pb.SignOutRequest(token=session.token))
    assert reason_of(lambda: accounts.GetSession(pb.GetSessionRequest(token=session.token))) == "SESSION_EXPIRED"
    wrong = pb.SignInRequest(name="admin", password="wrong")
    assert reason_of(lambda: accounts.SignIn(wrong)) == "PASSWORD_WRONG"
    event = pb.AuditEvent(action="SIGN_IN", actor="admin", outcome="SUCCESS", detail="{}")
    event.time.GetCurrentTime()
    proxy = cluster.call("AccountService", "gateway-proxy")
    proxy.AppendAudit(pb.AppendAuditRequest(events=[event, event]))
    listed = accounts.ListAudit(pb.ListAuditRequest(action="SIGN_IN")).events
    assert [(e.actor, e.outcome, e.time) for e in listed] == [("admin", "SUCCESS", event.time)] * 2
    assert listed[0].id > listed[1].id
    # Only the Application Server signs people in.
    assert reason_of(lambda: proxy.SignIn(pb.SignInRequest(name="admin", password=PASSWORD))) == "CALLER_REFUSED"


def test_a_restart_keeps_everything(cluster: Cluster) -> None:
    archive = cluster.call("RegistryService", "archive-server-0")
    archive.Heartbeat(beat())
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=[message(record())]))
    accounts = cluster.call("AccountService", "application-server")
    token = accounts.SignIn(pb.SignInRequest(name="admin", password=PASSWORD)).token
    feed = cluster.call("FeedService", "network-gateway")
    stream = feed.Watch(pb.WatchRequest(from_revision=0), timeout=20)
    seen = [next(stream).revision for _ in range(3)]
    cluster.restart()
    # The watch ends; another goes on where it was.
    with contextlib.suppress(RadmeshError):
        assert list(stream) == []
    assert accounts.GetSession(pb.GetSessionRequest(token=token)).user.name == "admin"
    queries = cluster.call("QueryService", "gateway-proxy")
    assert len(queries.FindStudies(pb.FindStudiesRequest()).studies) == 1
    archive.RegisterInstances(pb.RegisterInstancesRequest(records=[message(record(sop=1))]))
    assert next(feed.Watch(pb.WatchRequest(from_revision=seen[-1]), timeout=20)).revision == seen[-1] + 1


# -- whatever is asked (seeded; each request goes straight into the implementation)


class _Call:
    caller, instance = "network-gateway", "network-gateway"

    @staticmethod
    def is_active() -> bool:
        return False


_INTEGERS = {
    Field.TYPE_INT32: (-(1 << 31), -1, 0, 1, 2, 100, 5000, (1 << 31) - 1),
    Field.TYPE_INT64: (-(1 << 63), -1, 0, 1, 253_402_300_799, 253_402_300_800, (1 << 63) - 1),
    Field.TYPE_UINT32: (0, 1, 2, (1 << 32) - 1),
    Field.TYPE_UINT64: (0, 1, 2, (1 << 62), (1 << 63), (1 << 64) - 1),
    Field.TYPE_ENUM: (0, 1, 2, 3, 4, 5, 6, 99, -1, (1 << 31) - 1),
}
_STRINGS = (
    "",
    "a",
    "*",
    "1.2.3",
    "20260101",
    "archive-0",
    "spool-0",
    "0" * 32,
    "PatientName",
    "admin",
    "x" * 65,
    "é" * 300,
    "漢" * 6000,
    "a\0b",
    "\0",
    "' OR 1=1 --",
    "%_\\",
    uid("study", 0),
    uid("series", 0, 0),
    uid("sop", 0),
    EXPLICIT,
    PASSWORD,
    "\U0010ffff\ud7ff",
)
_BYTES = (b"", b"e" * 16, b"s" * 32, b"s" * 33, b"\0" * 400, record().admission_key, record().sha256, record().header)


def _fill(message: Any, choose: random.Random, depth: int = 0) -> Any:
    for field in message.DESCRIPTOR.fields:
        if choose.random() < 0.25:
            continue
        repeated = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(choose.randrange(3)):
                getattr(message, field.name)[choose.choice(_STRINGS[:-1])] = choose.choice(_STRINGS)
        elif field.message_type is not None:
            for _ in range(choose.randrange(1, 4) if repeated else 1):
                part = getattr(message, field.name).add() if repeated else getattr(message, field.name)
                if not repeated:
                    part.SetInParent()
                _fill(part, choose, depth + 1)
        else:
            values = [_value(field, choose) for _ in range(choose.randrange(1, 4) if repeated else 1)]
            if repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
    return message


def _value(field: Any, choose: random.Random) -> Any:
    if field.type == Field.TYPE_STRING:
        return choose.choice(_STRINGS)
    if field.type == Field.TYPE_BYTES:
        return choose.choice(_BYTES)
    if field.type == Field.TYPE_BOOL:
        return choose.random() < 0.5
    return choose.choice(_INTEGERS[field.type])


def _implementations(parts: Parts, world: World) -> dict[str, Any]:
    queries = parts.queries
    return {
        "RegistryService": service.RegistryService(parts.registry),
        "PlacementService": service.PlacementService(
            parts.placement, parts.verifications, parts.feed, world.credentials("database-server"), parts.clock
        ),
        "QueryService": service.QueryService(queries, parts.clock, 3.0),
        "StudyService": service.StudyService(parts.statuses, queries, parts.verifications),
        "OrderService": service.OrderService(parts.orders, parts.merges),
        "ReportService": service.ReportService(parts.reports),
        "JobService": service.JobService(parts.jobs),
        "CurationService": service.CurationService(parts.renditions),
        "FeedService": service.FeedService(parts.feed),
        "AccountService": service.AccountService(parts.accounts),
        "GrantService": GrantService(parts.database, parts.clock),
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_whatever_is_asked_has_an_answer_or_a_reason(
    database: Database, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_WAIT_SECONDS", 0.0)
    world = World(tmp_path / "w", "unix")
    parts = Parts(database, ManualClock())
    parts.register(record(sop=0), record(sop=1))
    parts.jobs.enqueue("a", "a", "", timedelta(), 0)
    parts.accounts._hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    implementation = _implementations(parts, world)[name]
    choose = random.Random(name)
    reasons: set[str] = set()
    for method in SERVICES[name].methods:
        # Hashing a password takes a while.
        turns = 40 if method.name in ("SignIn", "CreateUser", "UpdateUser") else 150
        for _ in range(turns):
            request = _fill(GetMessageClass(method.input_type)(), choose)
            try:
                answer = getattr(implementation, method.name)(request, _Call())
                for one in answer if method.server_streaming else [answer]:
                    assert one.ByteSize() < 4 << 20
            except RadmeshError as error:
                reasons.add(error.reason)
                # Nothing that a request says is an INTERNAL defect, or a database that is down.
                assert error.reason not in ("INTERNAL", "DATABASE_UNAVAILABLE"), (method.name, str(error), request)
            except Exception as error:
                raise AssertionError(f"{method.name}: {error!r}\n{request}") from error
    assert reasons or name == "FeedService"
    # And it works as before.
    assert parts.study()["instance_count"] >= 2
    world.close()


# -- kill -9

_WRITER = """
import sys
from database_support import Parts, record
from radmesh.database_server.schema import MIGRATIONS
from radmesh.sql.engine import Database
url, first = sys.argv[1], int(sys.argv[2])
parts = Parts(Database(url, MIGRATIONS))
parts.beat()
for number in range(first, first + 100000):
    batch = [record(study=number % 3, sop=number * 4 + n, sequence=0) for n in range(4)]
    parts.registry.register(batch)
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(url: str) -> None:
    """A process that registers, killed at seeded instants: what it said is there, each batch whole or not at all."""
    choose = random.Random(9)
    first = 0
    acknowledged: list[int] = []
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url, str(first)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline()) for _ in range(choose.randrange(1, 25))]
        threading.Event().wait(choose.random() * 0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
        writer.stdout.close()
        first = acknowledged[-1] + 1
        database = Database(url, MIGRATIONS)
        parts = Parts(database)
        known = {row["sop_instance_uid"] for study in range(3) for row in _instances(parts, study)}
        for number in acknowledged:
            assert {uid("sop", number * 4 + n) for n in range(4)} <= known
        # At most the batch that was not answered is there besides, whole.
        assert len(known) - 4 * len(acknowledged) in (0, 4)
        for study in range(3):
            if uid("study", study) in parts.find():
                counted = parts.study(study)["instance_count"]
                assert counted == len(_instances(parts, study))
        # Told again it is the same: the store repeats what it had no answer for.
        parts.register(*(record(study=first % 3, sop=first * 4 + n) for n in range(4)))
        acknowledged.append(first)
        first += 1
        database.close()
    print(f"{len(acknowledged)} batches acknowledged over 4 kills, all there")


def _instances(parts: Parts, study: int) -> list[dict[str, Any]]:
    return parts.instances(study, size=1000) if uid("study", study) in parts.find() else []


def test_a_burst_of_writes_starves_no_reader(database: Database) -> None:
    parts = Parts(database)
    parts.beat()
    parts.register(record())
    stop = threading.Event()
    waits: list[float] = []

    def write(number: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(40):
                parts.register(record(study=number, sop=(number, turn), sequence=turn + 1))
            stop.set()

        return run

    def read() -> None:
        while not stop.is_set():
            began = time.monotonic()
            parts.find(size=100)
            waits.append(time.monotonic() - began)

    answers = at_once(write(1), write(2), write(3), read, read)
    assert answers == [None] * 5
    assert len(waits) > 20
    assert sorted(waits)[int(len(waits) * 0.95)] < 0.5
    assert wait_for(lambda: parts.study(3)["instance_count"] == 40)
