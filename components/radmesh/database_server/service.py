"""The gRPC edge: parse, call, answer."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from radmesh.api.common.v1 import common_pb2
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import database_pb2 as pb
from radmesh.database_server.accounts import Accounts
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import Jobs
from radmesh.database_server.merges import Merges
from radmesh.database_server.orders import FIELDS as ORDER_FIELDS
from radmesh.database_server.orders import OrderFilter, Orders, RisEvent, order_key
from radmesh.database_server.people import FIELDS as PATIENT_FIELDS
from radmesh.database_server.placement import Placement
from radmesh.database_server.queries import Queries, StudyFilter, Viewer, page_size
from radmesh.database_server.registry import Record, Registry
from radmesh.database_server.renditions import Rendition, Renditions
from radmesh.database_server.reports import DOMAIN_UNKNOWN, NOT_CONFIGURED, REFUSED, WAITING, Reports
from radmesh.database_server.statuses import Statuses
from radmesh.database_server.texts import clean
from radmesh.database_server.verification import AdmissionFilter, Decision, Verifications
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.runtime.security import Credentials
from radmesh.sql.engine import micros

TICKET_SECONDS: Final = 60
_WAIT_SECONDS: Final = 2.0
_SPOOL_KIND: Final = 2


def _stamp(value: int) -> Timestamp | None:
    """Return a message's time from a table's; None (unset) for 0."""
    if not value:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(value)
    return stamp


def _reference(row: Any) -> common_pb2.ObjectReference:
    return common_pb2.ObjectReference(
        store_id=row["store_id"], study_hash=row["study_hash"], generation=row["generation"], sequence=row["sequence"]
    )


@checked("RegisterInstances", "UpdateInstances")
class RegistryService:
    """database.v1.RegistryService."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def RegisterInstances(self, request: pb.RegisterInstancesRequest, _call: Call) -> pb.RegisterInstancesResponse:
        """Make stored objects known."""
        if not 1 <= len(request.records) <= 256:
            raise invalid("records", "1 to 256")
        outcomes, revision = self._registry.register([self._record(record) for record in request.records])
        return pb.RegisterInstancesResponse(
            registrations=[pb.Registration(outcome=o, variant=v) for o, v in outcomes],  # type: ignore[arg-type]
            revision=revision,
        )

    @staticmethod
    def _record(r: pb.InstanceRecord) -> Record:
        where, identity, received = r.object, r.identity, r.receive_time
        record = Record(
            store_id=where.store_id,
            study_hash=where.study_hash,
            generation=where.generation,
            sequence=where.sequence,
            sop_instance_uid=identity.sop_instance_uid,
            transfer_syntax_uid=identity.transfer_syntax_uid,
            sha256=identity.sha256,
            length=r.length,
            header=r.header,
            study_instance_uid=r.study_instance_uid,
            series_instance_uid=r.series_instance_uid,
            sop_class_uid=r.sop_class_uid,
            calling_ae_title=r.calling_ae_title,
            source_address=r.source_address,
            admission_key=r.admission_key,
            verification=r.verification or common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
            receive_time=received.seconds * 1_000_000 + received.nanos // 1000,
            remarks=tuple(r.remarks),
            residence=common_pb2.RESIDENCE_SPOOL if where.store_id.startswith("spool") else common_pb2.RESIDENCE_CACHE,
        )
        for field, value in (
            ("identity.sop_instance_uid", record.sop_instance_uid),
            ("identity.transfer_syntax_uid", record.transfer_syntax_uid),
            ("study_instance_uid", record.study_instance_uid),
            ("series_instance_uid", record.series_instance_uid),
        ):
            if not 1 <= len(value) <= 64 or "\0" in value:
                raise invalid(field, "1 to 64 characters")
        if len(record.sha256) != 32 or len(record.admission_key) != 32:
            raise invalid("identity.sha256, admission_key", "32 bytes")
        if len(record.header) > 262_144:
            raise invalid("header", "at most 262,144 bytes")
        if not 1 <= len(record.store_id) <= 64 or len(record.study_hash) != 32:
            raise invalid("object", "store_id of 1 to 64 characters, study_hash of 32")
        return record

    def UpdateInstances(self, request: pb.UpdateInstancesRequest, _call: Call) -> pb.UpdateInstancesResponse:
        """Take over what stores found out later."""
        if not 1 <= len(request.updates) <= 256:
            raise invalid("updates", "1 to 256")
        self._registry.update(
            [
                {
                    "store_id": u.object.store_id,
                    "study_hash": u.object.study_hash,
                    "generation": u.object.generation,
                    "sequence": u.object.sequence,
                    "residence": u.residence,
                    "defect": u.defect,
                    "removed": u.removed,
                }
                for u in request.updates
            ]
        )
        return pb.UpdateInstancesResponse()

    def Heartbeat(self, request: pb.HeartbeatRequest, _call: Call) -> pb.HeartbeatResponse:
        """Remember that a store lives."""
        if not 1 <= len(request.store_id) <= 64 or len(request.epoch) != 16:
            raise invalid("store_id, epoch", "1 to 64 characters, 16 bytes")
        if len(request.client_url) > 256:
            raise invalid("client_url", "at most 256 characters")
        self._registry.heartbeat(
            {
                "store_id": request.store_id,
                "kind": request.kind,
                "target": request.target,
                "put_target": request.put_target or request.target,
                "client_url": request.client_url,
                "epoch": request.epoch,
                "free_bytes": min(request.free_bytes, 1 << 62),
                "accepting": request.accepting,
                "unregistered": min(request.unregistered, 1 << 62),
            }
        )
        answer = pb.HeartbeatResponse()
        answer.timeout.FromTimedelta(timedelta(seconds=self._registry.store_timeout))
        return answer

    def ListStores(self, _request: pb.ListStoresRequest, _call: Call) -> pb.ListStoresResponse:
        """List every store."""
        return pb.ListStoresResponse(
            stores=[
                pb.Store(
                    store_id=s["store_id"],
                    kind=s["kind"],
                    target=s["target"],
                    put_target=s["put_target"],
                    client_url=s["client_url"],
                    epoch=bytes(s["epoch"]),
                    free_bytes=s["free_bytes"],
                    accepting=s["accepting"],
                    unregistered=s["unregistered"],
                    heartbeat_time=_stamp(s["heartbeat_time"]),
                    alive=s["alive"],
                )
                for s in self._registry.stores()
            ]
        )

    def WaitRegistered(self, request: pb.WaitRegisteredRequest, _call: Call) -> pb.WaitRegisteredResponse:
        """Wait for registrations."""
        if len(request.marks) > 1024:
            raise invalid("marks", "at most 1,024")
        wanted = [(m.store_id, m.study_hash, m.generation, m.sequence) for m in request.marks]
        late = self._registry.wait_registered(wanted, _WAIT_SECONDS)
        return pb.WaitRegisteredResponse(
            missing=[common_pb2.CommitMark(store_id=a, study_hash=b, generation=c, sequence=d) for a, b, c, d in late]
        )


@checked("PlaceStudy")
class PlacementService:
    """database.v1.PlacementService."""

    def __init__(
        self,
        placement: Placement,
        verifications: Verifications,
        feed: Feed,
        credentials: Credentials,
        clock: Clock,
    ) -> None:
        self._placement = placement
        self._verifications = verifications
        self._feed = feed
        self._credentials = credentials
        self._clock = clock

    def PlaceStudy(self, request: pb.PlaceStudyRequest, _call: Call) -> pb.PlaceStudyResponse:
        """Place a study and sign a ticket."""
        key = _admission_key(request.admission_key)
        store = self._placement.place(key.study_instance_uid, request.avoid_store_id)
        digest = key.digest()
        decided = self._verifications.known(key.study_instance_uid, digest)
        ticket = common_pb2.Ticket(
            issuer="database-server",
            store_id=store["store_id"],
            target=store["put_target"],
            epoch=bytes(store["epoch"]),
            admission_key=digest,
            study_instance_uid=key.study_instance_uid,
            verification=decided  # type: ignore[arg-type]
            or request.verification
            or common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
            revision=self._feed.revision(),
        )
        ticket.expire_time.FromDatetime(self._clock.now() + timedelta(seconds=TICKET_SECONDS))
        payload = ticket.SerializeToString()
        return pb.PlaceStudyResponse(
            ticket=common_pb2.SignedTicket(payload=payload, signature=self._credentials.ticket_sign(payload))
        )


def _admission_key(message: common_pb2.AdmissionKey) -> AdmissionKey:
    if not 1 <= len(message.study_instance_uid) <= 64:
        raise invalid("admission_key.study_instance_uid", "1 to 64 characters")
    return AdmissionKey(
        message.station,
        message.study_instance_uid,
        message.patient_id,
        message.issuer_of_patient_id,
        message.patient_name,
        message.patient_birth_date,
        message.accession_number,
    )


def _admission(row: Any) -> pb.Admission:
    return pb.Admission(
        admission_key_digest=bytes(row["digest"]),
        admission_key=common_pb2.AdmissionKey(
            station=row["station"],
            study_instance_uid=row["study_instance_uid"],
            patient_id=row["patient_id"],
            issuer_of_patient_id=row["issuer_of_patient_id"],
            patient_name=row["patient_name"],
            patient_birth_date=row["patient_birth_date"],
            accession_number=row["accession_number"],
        ),
        verification=row["verification"],
        reason=row["reason"],
        instance_count=row["instance_count"],
        update_time=_stamp(row["update_time"]),
        domain=row["domain"],
        mismatched_keywords=filter(None, row["mismatched"].split("\n")),
        receive_time=_stamp(row["receive_time"]),
        study_date=row["study_date"],
        modalities=filter(None, row["modalities"].split("\\")),
        patient_sex=row["patient_sex"],
        study_description=row["study_description"],
        order_id=row["order_id"],
        revision=row["revision"],
        source_address=row["source_address"],
    )


def _patient(row: Any) -> pb.RisPatient:
    return pb.RisPatient(**{name: row[name] for name in PATIENT_FIELDS})


def _order(row: Any) -> pb.Order:
    return pb.Order(
        **{name: row[name] for name in ("order_id", "domain", *ORDER_FIELDS)},
        status=row["status"],
        patient=_patient(row),
        update_time=_stamp(row["update_time"]),
    )


def _flat(order: pb.Order) -> dict[str, Any]:
    """Return an order and its patient as one mapping."""
    values = {name: clean(getattr(order, name)) for name in ORDER_FIELDS} | _ris_patient(order.patient)
    return values | {
        "order_id": order_key({"order_id": order.order_id}),
        "status": order.status,
        "update_time": order.update_time.ToMicroseconds() if order.HasField("update_time") else 0,
    }


def _ris_patient(patient: pb.RisPatient) -> dict[str, Any]:
    return {name: clean(getattr(patient, name)) for name in PATIENT_FIELDS}


def _report(row: Any) -> pb.Report:
    return pb.Report(
        study_instance_uid=row["study_instance_uid"],
        version=row["version"],
        state=row["state"],
        text=row["text"],
        author=row["author"],
        approver=row["approver"],
        update_time=_stamp(row["update_time"]),
        approve_time=_stamp(row["approve_time"]),
        delivery=row["delivery"],
        delivery_reason=row["delivery_reason"],
        control_id=row["control_id"],
    )


def study_message(row: Any) -> pb.Study:
    """Return the message of a row of Queries."""
    return pb.Study(
        study_instance_uid=row["study_instance_uid"],
        patient_id=row["patient_id"],
        issuer_of_patient_id=row["issuer_of_patient_id"],
        patient_name=row["patient_name"],
        patient_birth_date=row["patient_birth_date"],
        patient_sex=row["patient_sex"],
        accession_number=row["accession_number"],
        study_date=row["study_date"],
        study_time=row["study_time"],
        study_id=row["study_id"],
        study_description=row["study_description"],
        referring_physician_name=row["referring_physician_name"],
        modalities=row["modalities"],
        series_count=row["series_count"],
        instance_count=row["instance_count"],
        bytes=row["bytes"],
        verification=row["verification"],
        verification_reason=row["verification_reason"],
        acquisition=row["acquisition"],
        reading=row["reading"],
        domain=row["domain"],
        first_receive_time=_stamp(row["first_receive_time"]),
        last_receive_time=_stamp(row["last_receive_time"]),
        version=row["version"],
        stations=row["stations"],
        defective_count=row["defective_count"],
        variant_count=row["variant_count"],
        corrected=row["corrected"],
        order_id=row["order_id"],
        report_version=row["report_version"],
        curated_count=row["curated_count"],
    )


@checked("FindStudies", "GetStudy", "FindInstances", "FindPatients")
class QueryService:
    """database.v1.QueryService."""

    def __init__(self, queries: Queries, clock: Clock, store_timeout: float) -> None:
        self._queries = queries
        self._clock = clock
        self._store_timeout = store_timeout

    def FindStudies(self, request: pb.FindStudiesRequest, _call: Call) -> pb.FindStudiesResponse:
        """Find studies."""
        r = request
        if len(r.study_instance_uids) > 1000:
            raise invalid("study_instance_uids", "at most 1,000")
        for field in ("study_date_from", "study_date_to"):
            value = getattr(r, field)
            if value and not (len(value) == 8 and value.isdecimal()):
                raise invalid(field, "YYYYMMDD")
        wanted = StudyFilter(
            patient_id=r.patient_id,
            issuer_of_patient_id=r.issuer_of_patient_id,
            patient_name=r.patient_name,
            fuzzy_names=r.fuzzy_names,
            accession_number=r.accession_number,
            study_instance_uids=tuple(r.study_instance_uids),
            study_date_from=r.study_date_from,
            study_date_to=r.study_date_to,
            modalities=tuple(r.modalities),
            study_description=r.study_description,
            verification=r.verification,
            reading=r.reading,
            acquisition=r.acquisition,
            viewer=Viewer(r.viewer_station, r.include_held),
        )
        rows, token = self._queries.studies(wanted, page_size(r.page_size, 100, 1000), r.page_token)
        return pb.FindStudiesResponse(studies=map(study_message, rows), next_page_token=token)

    def GetStudy(self, request: pb.GetStudyRequest, _call: Call) -> pb.StudyDetail:
        """Return a study with its series."""
        viewer = Viewer(request.viewer_station, request.include_held)
        row = self._queries.study(request.study_instance_uid, viewer)
        return pb.StudyDetail(
            study=study_message(row),
            series=[
                pb.Series(
                    series_instance_uid=s["series_instance_uid"],
                    modality=s["modality"],
                    series_number=s["series_number"],
                    series_description=s["series_description"],
                    body_part_examined=s["body_part_examined"],
                    series_date=s["series_date"],
                    series_time=s["series_time"],
                    station_name=s["station_name"],
                    manufacturer=s["manufacturer"],
                    instance_count=s["instance_count"],
                )
                for s in self._queries.series(row, viewer)
            ],
        )

    def FindInstances(self, request: pb.FindInstancesRequest, _call: Call) -> pb.FindInstancesResponse:
        """List instances."""
        rows, token = self._queries.instances(
            request.study_instance_uid,
            series_instance_uid=request.series_instance_uid,
            sop_instance_uid=request.sop_instance_uid,
            viewer=Viewer(request.viewer_station, request.include_held),
            variants=request.include_variants,
            size=page_size(request.page_size, 1000, 5000),
            token=request.page_token,
        )
        oldest = micros(self._clock.now()) - int(self._store_timeout * 1e6)
        instances = [self._instance(row, oldest) for row in rows]
        return pb.FindInstancesResponse(instances=instances, next_page_token=token)

    @staticmethod
    def _instance(row: Any, oldest: int) -> pb.Instance:
        return pb.Instance(
            identity=common_pb2.ContentIdentity(
                sop_instance_uid=row["sop_instance_uid"],
                transfer_syntax_uid=row["transfer_syntax_uid"],
                sha256=bytes(row["sha256"]),
            ),
            series_instance_uid=row["series_instance_uid"],
            sop_class_uid=row["sop_class_uid"],
            instance_number=row["instance_number"],
            rows=row["rows"],
            columns=row["columns"],
            number_of_frames=min(row["number_of_frames"], (1 << 31) - 1),
            bits_allocated=row["bits_allocated"],
            acquisition_number=row["acquisition_number"],
            content_date=row["content_date"],
            content_time=row["content_time"],
            length=row["length"],
            current=row["current"],
            variant=row["variant"],
            defect=row["defect"],
            verification=row["verification"],
            calling_ae_title=row["calling_ae_title"],
            receive_time=_stamp(row["receive_time"]),
            remarks=row["remarks"].split("\n") if row["remarks"] else (),
            locations=[
                pb.Location(
                    object=_reference(place),
                    residence=place["residence"],
                    target=place["target"] if (place["heartbeat_time"] or 0) >= oldest else "",
                    line_target=place["put_target"] if (place["heartbeat_time"] or 0) >= oldest else "",
                )
                for place in row["locations"]
            ],
        )

    def FindPatients(self, request: pb.FindPatientsRequest, _call: Call) -> pb.FindPatientsResponse:
        """Find patients."""
        rows, token = self._queries.patients(
            request.patient_id,
            request.issuer_of_patient_id,
            request.patient_name,
            Viewer(request.viewer_station, request.include_held),
            page_size(request.page_size, 100, 1000),
            request.page_token,
        )
        return pb.FindPatientsResponse(
            patients=[
                pb.Patient(
                    patient_id=p["patient_id"],
                    issuer_of_patient_id=p["issuer_of_patient_id"],
                    patient_name=p["patient_name"],
                    patient_birth_date=p["patient_birth_date"],
                    patient_sex=p["patient_sex"],
                    study_count=p["study_count"],
                )
                for p in rows
            ],
            next_page_token=token,
        )


@checked()
class StudyService:
    """database.v1.StudyService."""

    def __init__(self, statuses: Statuses, queries: Queries, verifications: Verifications) -> None:
        self._statuses = statuses
        self._queries = queries
        self._verifications = verifications

    def _all(self, uid: str) -> pb.Study:
        return study_message(self._queries.study(uid, Viewer(include_held=True)))

    def SetStatus(self, request: pb.SetStatusRequest, call: Call) -> pb.Study:
        """Move one axis."""
        asked = [(name, getattr(request, name)) for name in ("acquisition", "verification", "reading")]
        moves = [(name, value) for name, value in asked if value]
        if len(moves) != 1:
            raise invalid("acquisition, verification, reading", "exactly one of them")
        self._statuses.move(
            request.study_instance_uid,
            *moves[0],
            reason=request.reason,
            expected_version=request.expected_version,
            actor=request.actor or call.caller,
        )
        return self._all(request.study_instance_uid)

    def ListHistory(self, request: pb.ListHistoryRequest, _call: Call) -> pb.ListHistoryResponse:
        """List moves."""
        rows, token = self._statuses.history(
            request.study_instance_uid, page_size(request.page_size, 100, 1000), request.page_token
        )
        answer = pb.ListHistoryResponse(next_page_token=token)
        for row in rows:
            entry = answer.entries.add(
                axis=row["axis"],
                to=row["to_state"],
                reason=row["reason"],
                actor=row["actor"],
                time=_stamp(row["time"]),
                version=row["version"],
            )
            setattr(entry, "from", row["from_state"])
        return answer

    def SetVerification(self, request: pb.SetVerificationRequest, call: Call) -> pb.SetVerificationResponse:
        """Take over what was decided about an admission key."""
        key = _admission_key(request.admission_key)
        if len(request.admission_key_digest) not in (0, 32):
            raise invalid("admission_key_digest", "32 bytes")
        count, revision, changed = self._verifications.decide(
            Decision(
                study_instance_uid=key.study_instance_uid,
                digest=request.admission_key_digest or key.digest(),
                verification=request.verification,
                reason=request.reason,
                mismatched=tuple(request.mismatched_keywords)[:64],
                domain=request.domain,
                order=_flat(request.order) if request.order.order_id else {},
                expected_revision=request.expected_revision,
                actor=request.actor or call.caller,
                note=request.note,
            )
        )
        return pb.SetVerificationResponse(instance_count=count, revision=revision, changed=changed)

    def ListAdmissions(self, request: pb.ListAdmissionsRequest, _call: Call) -> pb.ListAdmissionsResponse:
        """List admissions."""
        wanted = AdmissionFilter(
            study_instance_uid=request.study_instance_uid,
            verifications=tuple(request.verifications),
            domain=request.domain,
            reason=request.reason,
            accession_number=request.accession_number,
            patient_id=request.patient_id,
        )
        size = page_size(request.page_size, 100, 1000)
        rows, token = self._verifications.admissions(wanted, size, request.page_token)
        return pb.ListAdmissionsResponse(admissions=map(_admission, rows), next_page_token=token)

    def SetCorrection(self, request: pb.SetCorrectionRequest, call: Call) -> pb.Study:
        """Lay corrected values over demographics."""
        self._statuses.correct(
            request.study_instance_uid,
            dict(request.values),
            source=request.source,
            expected_version=request.expected_version,
            actor=request.actor or call.caller,
        )
        return self._all(request.study_instance_uid)

    def ListCorrections(self, request: pb.ListCorrectionsRequest, _call: Call) -> pb.ListCorrectionsResponse:
        """List corrections."""
        rows, token = self._statuses.corrections(
            request.study_instance_uid, page_size(request.page_size, 100, 1000), request.page_token
        )
        return pb.ListCorrectionsResponse(
            corrections=[
                pb.Correction(
                    keyword=row["keyword"],
                    original_value=row["original_value"],
                    value=row["value"],
                    source=row["source"],
                    actor=row["actor"],
                    time=_stamp(row["time"]),
                    in_force=row["in_force"],
                )
                for row in rows
            ],
            next_page_token=token,
        )


@checked("ApplyRisEvents")
class OrderService:
    """database.v1.OrderService."""

    def __init__(self, orders: Orders, merges: Merges) -> None:
        self._orders = orders
        self._merges = merges

    def ApplyRisEvents(self, request: pb.ApplyRisEventsRequest, _call: Call) -> pb.ApplyRisEventsResponse:
        """Take over what a RIS said."""
        if not 1 <= len(request.events) <= 256:
            raise invalid("events", "1 to 256")
        if not 1 <= len(request.manager) <= 64 or len(request.manager_epoch) != 16:
            raise invalid("manager, manager_epoch", "1 to 64 characters, 16 bytes")
        news = [self._event(event) for event in request.events]
        sequence, revision = self._orders.apply(request.manager, request.manager_epoch, news)
        return pb.ApplyRisEventsResponse(sequence=sequence, revision=revision)

    @staticmethod
    def _event(event: pb.RisEvent) -> RisEvent:
        kind = event.WhichOneof("event")
        values: dict[str, Any] = {}
        if kind == "order":
            values["order"] = _flat(event.order)
        elif kind == "patient":
            values["patient"] = _ris_patient(event.patient)
        elif kind == "merge":
            values["merge"] = (_ris_patient(event.merge.prior), _ris_patient(event.merge.surviving))
        elif kind == "domain_state":
            values["available"] = event.domain_state.available
        return RisEvent(event.sequence, event.domain, **values)

    def FindOrders(self, request: pb.FindOrdersRequest, _call: Call) -> pb.FindOrdersResponse:
        """Find orders."""
        for field in ("scheduled_from", "scheduled_to"):
            value = getattr(request, field)
            if value and not (value.isdecimal() and len(value) in (8, 12, 14)):
                raise invalid(field, "YYYYMMDD[HHMM[SS]]")
        wanted = OrderFilter(
            order_id=request.order_id,
            domain=request.domain,
            accession_number=request.accession_number,
            patient_id=request.patient_id,
            patient_name=request.patient_name,
            modality=request.modality,
            station_ae_title=request.station_ae_title,
            scheduled_from=request.scheduled_from,
            scheduled_to=request.scheduled_to,
            statuses=tuple(request.statuses),
        )
        rows, token = self._orders.find(wanted, page_size(request.page_size, 100, 1000), request.page_token)
        return pb.FindOrdersResponse(orders=map(_order, rows), next_page_token=token)

    def ListMerges(self, request: pb.ListMergesRequest, _call: Call) -> pb.ListMergesResponse:
        """List merges."""
        rows, token = self._merges.listed(request.domain, page_size(request.page_size, 100, 1000), request.page_token)
        return pb.ListMergesResponse(merges=map(_merge, rows), next_page_token=token)

    def UndoMerge(self, request: pb.UndoMergeRequest, call: Call) -> pb.Merge:
        """Undo a merge."""
        return _merge(self._merges.undo(request.id, request.actor or call.caller))


def _merge(row: Any) -> pb.Merge:
    return pb.Merge(
        id=row["id"],
        domain=row["domain"],
        prior=_patient(row["prior"]),
        surviving=_patient(row["surviving"]),
        study_count=row["study_count"],
        time=_stamp(row["time"]),
        undo_time=_stamp(row["undo_time"]),
        undo_actor=row["undo_actor"],
    )


@checked("SaveReport")
class ReportService:
    """database.v1.ReportService."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    def SaveReport(self, request: pb.SaveReportRequest, call: Call) -> pb.Report:
        """Write a draft."""
        return _report(
            self._reports.save(
                request.study_instance_uid,
                request.text,
                transcribed=request.transcribed,
                actor=request.actor or call.caller,
                expected_version=request.expected_version,
            )
        )

    def ApproveReport(self, request: pb.ApproveReportRequest, call: Call) -> pb.Report:
        """Approve a draft."""
        if request.version < 0:
            raise invalid("version", "0 or more")
        return _report(self._reports.approve(request.study_instance_uid, request.version, request.actor or call.caller))

    def ListReports(self, request: pb.ListReportsRequest, _call: Call) -> pb.ListReportsResponse:
        """List reports."""
        size = page_size(request.page_size, 100, 1000)
        rows, token = self._reports.list(request.study_instance_uid, request.delivery, size, request.page_token)
        return pb.ListReportsResponse(reports=map(_report, rows), next_page_token=token)

    def SetReportDelivery(self, request: pb.SetReportDeliveryRequest, _call: Call) -> pb.SetReportDeliveryResponse:
        """Say how a report version fares."""
        self._reports.deliver(
            request.study_instance_uid, request.version, request.delivery, request.reason, request.control_id
        )
        return pb.SetReportDeliveryResponse()


class ReportSender:
    """Hands approved reports to the Connectivity Manager of their domain: the consumer of the outbox's topic.

    `manager` returns the calls of the one that serves a domain; None if none does.
    """

    def __init__(self, reports: Reports, orders: Orders, queries: Queries, manager: Callable[[str], Any]) -> None:
        self._reports = reports
        self._orders = orders
        self._queries = queries
        self._manager = manager

    def __call__(self, _number: int, uid: str, version: str) -> None:
        """Send one version; a domain that nobody serves gets none."""
        report = self._reports.one(uid, int(version))
        if report is None:
            return
        study = self._queries.study(uid, Viewer(include_held=True))
        manager = self._manager(study["domain"])
        if manager is None:
            self._reports.handed_over(uid, int(version), NOT_CONFIGURED, DOMAIN_UNKNOWN)
            return
        # Of the patient whom the study is shown as, whoever's the order is meanwhile.
        order = self._orders.order(study["order_id"], study["person"]) if study["order_id"] else None
        request = connectivity_pb2.SendReportRequest(
            report=_report(report), study=study_message(study), order=_order(order) if order is not None else None
        )
        try:
            answer = manager.SendReport(request, timeout=10.0)
        except RadmeshError as error:
            # No try again makes a report that cannot be said: somebody has to look. All else passes.
            invalid_report = error.reason == "HL7_REPORT_INVALID"
            self._reports.handed_over(uid, int(version), REFUSED if invalid_report else WAITING, error.reason)
            if not invalid_report:
                raise
        else:
            self._reports.handed_over(uid, int(version), WAITING, control_id=answer.control_id)


class UndoTeller:
    """Tells the Connectivity Manager of a domain which merge was undone: the consumer of the outbox's topic."""

    def __init__(self, merges: Merges, manager: Callable[[str], Any]) -> None:
        self._merges = merges
        self._manager = manager

    def __call__(self, _number: int, domain: str, payload: str) -> None:
        """Tell one; where nobody serves the domain it waits until somebody does."""
        manager = self._manager(domain)
        if manager is None:
            raise RadmeshError(DOMAIN_UNKNOWN, "no Connectivity Manager serves the domain")
        told = json.loads(payload)
        both = {name: pb.RisPatient(**told[name]) for name in ("prior", "surviving")}
        request = connectivity_pb2.UndoMergeRequest(domain=domain, merge=told["merge"], **both)
        manager.UndoMerge(request, timeout=10.0)
        self._merges.undone(domain, *(patient.patient_id for patient in both.values()))


def _job(row: Any) -> pb.Job:
    return pb.Job(
        id=row["id"],
        kind=row["kind"],
        key=row["key"],
        payload=row["payload"],
        state=row["state"],
        attempt=row["attempt"],
        owner=row["owner"],
        fence=row["fence"],
        lease_expire_time=_stamp(row["lease_until"]),
        due_time=_stamp(row["due_time"]),
        reason=row["reason"],
        message=row["message"],
    )


@checked()
class JobService:
    """database.v1.JobService."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    @staticmethod
    def _lease(duration: Any) -> timedelta:
        lease: timedelta = duration.ToTimedelta()
        if not timedelta(seconds=1) <= lease <= timedelta(hours=1):
            raise invalid("lease", "1 s to 1 h")
        return lease

    def EnqueueJob(self, request: pb.EnqueueJobRequest, _call: Call) -> pb.Job:
        """Add a job."""
        return _job(
            self._jobs.enqueue(
                request.kind, request.key, request.payload, request.delay.ToTimedelta(), request.max_attempts
            )
        )

    def LeaseJobs(self, request: pb.LeaseJobsRequest, call: Call) -> pb.LeaseJobsResponse:
        """Take jobs."""
        if not 1 <= request.count <= 100:
            raise invalid("count", "1 to 100")
        rows = self._jobs.lease(
            request.kinds, clean(request.owner or call.instance, 128), request.count, self._lease(request.lease)
        )
        return pb.LeaseJobsResponse(jobs=map(_job, rows))

    def RenewJob(self, request: pb.RenewJobRequest, _call: Call) -> pb.Job:
        """Prolong a lease."""
        return _job(self._jobs.renew(request.id, request.fence, self._lease(request.lease)))

    def FinishJob(self, request: pb.FinishJobRequest, _call: Call) -> pb.Job:
        """End a job."""
        return _job(
            self._jobs.finish(
                request.id,
                request.fence,
                request.state,
                request.retry_delay.ToTimedelta(),
                clean(request.reason),
                clean(request.message),
            )
        )

    def RetryJob(self, request: pb.RetryJobRequest, _call: Call) -> pb.Job:
        """Queue a job again."""
        return _job(self._jobs.retry(request.id, request.kind))

    def CancelJob(self, request: pb.CancelJobRequest, _call: Call) -> pb.Job:
        """End a job."""
        return _job(self._jobs.cancel(request.id, request.kind))

    def ListJobs(self, request: pb.ListJobsRequest, _call: Call) -> pb.ListJobsResponse:
        """List jobs."""
        rows, token = self._jobs.list(
            request.kind, request.state, page_size(request.page_size, 100, 1000), request.page_token
        )
        return pb.ListJobsResponse(jobs=map(_job, rows), next_page_token=token)


@checked()
class CurationService:
    """database.v1.CurationService."""

    def __init__(self, renditions: Renditions) -> None:
        self._renditions = renditions

    def RegisterRenditions(self, request: pb.RegisterRenditionsRequest, _call: Call) -> pb.RegisterRenditionsResponse:
        """Make pictures known."""
        if len(request.renditions) > 1000:
            raise invalid("renditions", "at most 1,000")
        self._renditions.register([self._rendition(rendition) for rendition in request.renditions])
        return pb.RegisterRenditionsResponse()

    @staticmethod
    def _rendition(r: pb.Rendition) -> Rendition:
        for field, value, most in (
            ("identity.sop_instance_uid", r.identity.sop_instance_uid, 64),
            ("identity.transfer_syntax_uid", r.identity.transfer_syntax_uid, 64),
            ("store_id", r.store_id, 64),
        ):
            if not 1 <= len(value) <= most:
                raise invalid(field, f"1 to {most} characters")
        for field, value, most in (
            ("reason", r.reason, 64),
            ("transfer_syntax_uid", r.transfer_syntax_uid, 64),
            ("photometric_interpretation", r.photometric_interpretation, 16),
        ):
            if len(value) > most:
                raise invalid(field, f"at most {most} characters")
        if len(r.identity.sha256) != 32:
            raise invalid("identity.sha256", "32 bytes")
        if not r.state:
            raise invalid("state", "needed")
        if r.state in (pb.RENDITION_STATE_ORIGINAL, pb.RENDITION_STATE_NONE) and not r.reason:
            raise invalid("reason", "needed for this state")
        if r.frame < 0 or r.number_of_frames < 0:
            raise invalid("frame, number_of_frames", "0 or more")
        return Rendition(
            store_id=r.store_id,
            sop_instance_uid=r.identity.sop_instance_uid,
            transfer_syntax_uid=r.identity.transfer_syntax_uid,
            sha256=r.identity.sha256,
            state=r.state,
            reason=r.reason,
            frame=r.frame,
            number_of_frames=r.number_of_frames,
            served_syntax_uid=r.transfer_syntax_uid,
            photometric_interpretation=r.photometric_interpretation,
            derived=r.derived,
            bytes=r.bytes,
        )

    def FindRenditions(self, request: pb.FindRenditionsRequest, _call: Call) -> pb.FindRenditionsResponse:
        """List the pictures of a study."""
        rows, token = self._renditions.find(
            request.study_instance_uid,
            series_instance_uid=request.series_instance_uid,
            sop_instance_uid=request.sop_instance_uid,
            viewer=Viewer(include_held=request.include_held),
            size=page_size(request.page_size, 1000, 5000),
            token=request.page_token,
        )
        return pb.FindRenditionsResponse(
            renditions=[
                pb.Rendition(
                    identity=common_pb2.ContentIdentity(
                        sop_instance_uid=row["sop_instance_uid"],
                        transfer_syntax_uid=row["transfer_syntax_uid"],
                        sha256=bytes(row["sha256"]),
                    ),
                    study_instance_uid=request.study_instance_uid,
                    series_instance_uid=row["series_instance_uid"],
                    store_id=row["store_id"],
                    state=row["state"],
                    reason=row["reason"],
                    frame=row["frame"],
                    number_of_frames=row["number_of_frames"],
                    transfer_syntax_uid=row["served_syntax_uid"],
                    photometric_interpretation=row["photometric_interpretation"],
                    derived=row["derived"],
                    bytes=row["bytes"],
                    target=row["target"],
                )
                for row in rows
            ],
            next_page_token=token,
        )

    def DropRenditions(self, request: pb.DropRenditionsRequest, _call: Call) -> pb.DropRenditionsResponse:
        """Forget what a web cache no longer has."""
        if not 1 <= len(request.store_id) <= 64:
            raise invalid("store_id", "1 to 64 characters")
        return pb.DropRenditionsResponse(dropped=self._renditions.drop(request.store_id, request.study_instance_uid))

    def FindUncurated(self, request: pb.FindUncuratedRequest, _call: Call) -> pb.FindUncuratedResponse:
        """List studies with something to be made."""
        uids, token = self._renditions.uncurated(page_size(request.page_size, 100, 1000), request.page_token)
        return pb.FindUncuratedResponse(study_instance_uids=uids, next_page_token=token)


@checked()
class FeedService:
    """database.v1.FeedService."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def Watch(self, request: pb.WatchRequest, call: Call) -> Iterator[pb.Change]:
        """Stream changes."""
        for change in self._feed.watch(request.from_revision, tuple(request.kinds), call.is_active):
            message = pb.Change(revision=change.revision, kind=change.kind, key=change.key)
            message.time.FromDatetime(change.time)
            yield message


def _user(row: Any) -> pb.User:
    return pb.User(
        name=row["name"],
        display_name=row["display_name"],
        role=row["role"],
        create_time=_stamp(row["create_time"]),
        last_sign_in_time=_stamp(row["last_sign_in_time"]),
    )


def _session(row: Any, token: str = "") -> pb.Session:
    return pb.Session(
        token=token,
        user=_user(row["user"]),
        expire_time=_stamp(row["expire_time"]),
        session_id=row["session_id"],
    )


@checked("AppendAudit")
class AccountService:
    """database.v1.AccountService."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def SignIn(self, request: pb.SignInRequest, _call: Call) -> pb.Session:
        """Check a password."""
        token, session = self._accounts.sign_in(request.name, request.password)
        return _session(session, token)

    def GetSession(self, request: pb.GetSessionRequest, _call: Call) -> pb.Session:
        """Return a token's session."""
        return _session(self._accounts.session(request.token))

    def SignOut(self, request: pb.SignOutRequest, _call: Call) -> pb.SignOutResponse:
        """End a session."""
        self._accounts.sign_out(request.token)
        return pb.SignOutResponse()

    def CreateUser(self, request: pb.CreateUserRequest, _call: Call) -> pb.User:
        """Add a user."""
        return _user(
            self._accounts.create(request.name, request.display_name, request.role or pb.ROLE_NONE, request.password)
        )

    def UpdateUser(self, request: pb.UpdateUserRequest, _call: Call) -> pb.User:
        """Change a user."""
        display_name = request.display_name if request.HasField("display_name") else None
        return _user(
            self._accounts.update(request.name, display_name=display_name, role=request.role, password=request.password)
        )

    def DeleteUser(self, request: pb.DeleteUserRequest, _call: Call) -> pb.DeleteUserResponse:
        """Remove a user."""
        self._accounts.delete(request.name)
        return pb.DeleteUserResponse()

    def ListUsers(self, request: pb.ListUsersRequest, _call: Call) -> pb.ListUsersResponse:
        """List users."""
        rows, token = self._accounts.users(page_size(request.page_size, 100, 1000), request.page_token)
        return pb.ListUsersResponse(users=map(_user, rows), next_page_token=token)

    def AppendAudit(self, request: pb.AppendAuditRequest, _call: Call) -> pb.AppendAuditResponse:
        """Add audit events."""
        if not 1 <= len(request.events) <= 1000:
            raise invalid("events", "1 to 1,000")
        self._accounts.append_audit(
            [
                {
                    "time": micros(e.time.ToDatetime(tzinfo=UTC)),
                    "action": clean(e.action, 64),
                    "actor": clean(e.actor, 128),
                    "source_address": clean(e.source_address, 64),
                    "outcome": clean(e.outcome, 64),
                    "object": clean(e.object, 128),
                    "detail": clean(e.detail, 4096),
                }
                for e in request.events
            ]
        )
        return pb.AppendAuditResponse()

    def ListAudit(self, request: pb.ListAuditRequest, _call: Call) -> pb.ListAuditResponse:
        """List audit events."""
        rows, token = self._accounts.audit(
            request.action,
            request.actor,
            request.object,
            page_size(request.page_size, 100, 1000),
            request.page_token,
        )
        return pb.ListAuditResponse(
            events=[
                pb.AuditEvent(
                    id=row["id"],
                    time=_stamp(row["time"]),
                    action=row["action"],
                    actor=row["actor"],
                    source_address=row["source_address"],
                    outcome=row["outcome"],
                    object=row["object"],
                    detail=row["detail"],
                )
                for row in rows
            ],
            next_page_token=token,
        )
