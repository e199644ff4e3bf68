"""Between the door's messages and the client's dataclasses."""

import json
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from radmesh.api.common.v1 import common_pb2
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2, routing_pb2, stations_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.client import model
from radmesh.runtime.errors import RadmeshError


def time_of(stamp: Timestamp) -> datetime | None:
    """Return the time, or None if it was never set."""
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None


def enum_name(enum: Any, value: int, prefix: str) -> str:
    """Return the value's name without its prefix; empty if unspecified or unknown to this version."""
    name: str = enum.Name(value) if value in enum.values() else ""
    short = name.removeprefix(prefix)
    return "" if short == "UNSPECIFIED" else short


def enum_value(enum: Any, prefix: str, name: str, field: str) -> Any:
    """Return the enum's value of a short name, such as "administrator"; empty = unspecified.

    Raises:
        RadmeshError: FIELD_INVALID, naming the choices.
    """
    if not name:
        return 0
    try:
        return enum.Value(prefix + name.upper().replace("-", "_"))
    except ValueError:
        choices = ", ".join(
            key.removeprefix(prefix).lower() for key, _ in enum.items() if not key.endswith("_UNSPECIFIED")
        )
        raise RadmeshError("FIELD_INVALID", f"{field} is one of: {choices}", metadata={"field": field}) from None


def date_range(text: str, field: str) -> tuple[str, str]:
    """Return the first and last date of "20240131", "20240101-20240131", "-20240131" or "20240101-"; empty = open.

    Raises:
        RadmeshError: FIELD_INVALID: it is none, or there is no such day.
    """
    first, dash, last = text.partition("-")
    for value in filter(None, (first, last)):
        try:
            if len(value) != 8 or not value.isdecimal():
                raise ValueError
            date(int(value[:4]), int(value[4:6]), int(value[6:]))
        except ValueError:
            rule = f"{value!r} is no date: YYYYMMDD, or a range such as 20240101-20240131"
            raise RadmeshError("FIELD_INVALID", f"{field}: {rule}", metadata={"field": field}) from None
    return first, last if dash else first


def study(m: database_pb2.Study) -> model.Study:
    """Convert a study."""
    return model.Study(
        study_instance_uid=m.study_instance_uid,
        patient_id=m.patient_id,
        issuer_of_patient_id=m.issuer_of_patient_id,
        patient_name=m.patient_name,
        patient_birth_date=m.patient_birth_date,
        patient_sex=m.patient_sex,
        accession_number=m.accession_number,
        study_date=m.study_date,
        study_time=m.study_time,
        study_id=m.study_id,
        study_description=m.study_description,
        referring_physician_name=m.referring_physician_name,
        modalities=tuple(m.modalities),
        series_count=m.series_count,
        instance_count=m.instance_count,
        bytes=m.bytes,
        verification=enum_name(common_pb2.VerificationState, m.verification, "VERIFICATION_STATE_"),
        verification_reason=m.verification_reason,
        acquisition=enum_name(database_pb2.AcquisitionState, m.acquisition, "ACQUISITION_STATE_"),
        reading=enum_name(database_pb2.ReadingState, m.reading, "READING_STATE_"),
        domain=m.domain,
        stations=tuple(m.stations),
        defective_count=m.defective_count,
        variant_count=m.variant_count,
        corrected=m.corrected,
        version=m.version,
        last_receive_time=time_of(m.last_receive_time),
        order_id=m.order_id,
        report_version=m.report_version,
        curated_count=m.curated_count,
    )


def study_detail(m: database_pb2.StudyDetail) -> model.StudyDetail:
    """Convert a study with its series."""
    return model.StudyDetail(
        study=study(m.study),
        series=tuple(
            model.Series(
                series_instance_uid=s.series_instance_uid,
                modality=s.modality,
                series_number=s.series_number,
                series_description=s.series_description,
                body_part_examined=s.body_part_examined,
                series_date=s.series_date,
                series_time=s.series_time,
                manufacturer=s.manufacturer,
                instance_count=s.instance_count,
            )
            for s in m.series
        ),
    )


def instance(m: database_pb2.Instance) -> model.Instance:
    """Convert an instance."""
    return model.Instance(
        sop_instance_uid=m.identity.sop_instance_uid,
        sop_class_uid=m.sop_class_uid,
        series_instance_uid=m.series_instance_uid,
        transfer_syntax_uid=m.identity.transfer_syntax_uid,
        sha256=m.identity.sha256.hex(),
        length=m.length,
        instance_number=m.instance_number,
        rows=m.rows,
        columns=m.columns,
        number_of_frames=m.number_of_frames,
        current=m.current,
        variant=enum_name(database_pb2.VariantKind, m.variant, "VARIANT_KIND_"),
        defect=m.defect,
        verification=enum_name(common_pb2.VerificationState, m.verification, "VERIFICATION_STATE_"),
        calling_ae_title=m.calling_ae_title,
        remarks=tuple(m.remarks),
        locations=tuple(
            model.Location(
                store_id=location.object.store_id,
                residence=enum_name(common_pb2.Residence, location.residence, "RESIDENCE_"),
                generation=location.object.generation,
                sequence=location.object.sequence,
            )
            for location in m.locations
        ),
    )


def picture(m: database_pb2.Rendition, frames: Iterable[curator_pb2.Frame]) -> model.Picture:
    """Convert a rendition, and its frames."""
    return model.Picture(
        sop_instance_uid=m.identity.sop_instance_uid,
        series_instance_uid=m.series_instance_uid,
        sha256=m.identity.sha256.hex(),
        state=enum_name(database_pb2.RenditionState, m.state, "RENDITION_STATE_"),
        reason=m.reason,
        frame=m.frame,
        transfer_syntax_uid=m.transfer_syntax_uid,
        photometric_interpretation=m.photometric_interpretation,
        derived=m.derived,
        bytes=m.bytes,
        frames=tuple(model.FrameSize(frame.size, tuple(frame.resolution_offsets)) for frame in frames),
    )


def correction(m: database_pb2.Correction) -> model.Correction:
    """Convert a correction."""
    return model.Correction(
        keyword=m.keyword,
        original_value=m.original_value,
        value=m.value,
        source=m.source,
        actor=m.actor,
        time=m.time.ToDatetime(tzinfo=UTC),
    )


def history_entry(m: database_pb2.HistoryEntry) -> model.HistoryEntry:
    """Convert a move of a study's status."""
    return model.HistoryEntry(
        axis=m.axis,
        before=getattr(m, "from"),
        after=m.to,
        reason=m.reason,
        actor=m.actor,
        time=m.time.ToDatetime(tzinfo=UTC),
    )


def user(m: database_pb2.User) -> model.User:
    """Convert a user."""
    return model.User(
        name=m.name,
        display_name=m.display_name,
        role=enum_name(database_pb2.Role, m.role, "ROLE_").lower(),
        last_sign_in_time=time_of(m.last_sign_in_time),
    )


def sending(m: database_pb2.Job) -> model.Sending:
    """Convert a job of SendStudy."""
    payload = json.loads(m.payload or "{}")
    return model.Sending(
        id=m.id,
        study_instance_uid=str(payload.get("study", "")),
        station=str(payload.get("station", "")),
        state=enum_name(database_pb2.JobState, m.state, "JOB_STATE_"),
        attempt=m.attempt,
        due_time=time_of(m.due_time),
        reason=m.reason,
        message=m.message,
        by=str(payload.get("by", "")),
        routes=tuple(map(str, payload.get("routes", ()))),
    )


def station(m: stations_pb2.Station) -> model.Station:
    """Convert a station."""
    values: dict[str, Any] = {field.name: getattr(m, field.name) for field in m.DESCRIPTOR.fields}
    for name in ("addresses", "grants", "transfer_syntaxes", "options"):
        values[name] = tuple(values[name])
    return model.Station(**values | {"update_time": time_of(m.update_time)})


def station_message(station: model.Station) -> stations_pb2.Station:
    """Return a station as it is set."""
    values: dict[str, Any] = {f.name: getattr(station, f.name) for f in fields(station)}
    return stations_pb2.Station(
        **{name: value for name, value in values.items() if name not in ("edited", "version", "update_time")}
    )


_ROUTE_LISTS: Final = ("destinations", "stations", "modalities", "verification", "reading")


def route(m: routing_pb2.Route) -> model.Route:
    """Convert a route."""
    lists: dict[str, Any] = {name: tuple(getattr(m, name)) for name in _ROUTE_LISTS}
    return model.Route(
        name=m.name,
        **lists,
        window=m.window,
        key_images=m.key_images,
        enabled=not m.disabled,
        edited=m.edited,
        version=m.version,
        update_time=time_of(m.update_time),
    )


def route_message(route: model.Route) -> routing_pb2.Route:
    """Return a route as it is set."""
    return routing_pb2.Route(
        name=route.name,
        **{name: getattr(route, name) for name in _ROUTE_LISTS},
        window=route.window,
        key_images=route.key_images,
        disabled=not route.enabled,
    )


def route_test(m: gateway_pb2.RouteTest) -> model.RouteTest:
    """Convert what was found out of a route."""
    places = tuple(model.Destination(d.station, d.known, d.undelivered) for d in m.destinations)
    return model.RouteTest(m.route, not m.reason, m.reason, places)


def reject(m: Any) -> model.Reject:
    """Convert a gateway.v1.Reject."""
    return model.Reject(
        id=m.id,
        receive_time=m.receive_time.ToDatetime(tzinfo=UTC),
        calling_ae_title=m.calling_ae_title,
        source_address=m.source_address,
        reason=m.reason,
        tag=m.tag,
        message=m.message,
        transfer_syntax_uid=m.transfer_syntax_uid,
        sop_class_uid=m.sop_class_uid,
        sop_instance_uid=m.sop_instance_uid,
        length=m.length,
        cut=m.cut,
    )


def audit_event(m: database_pb2.AuditEvent) -> model.AuditEvent:
    """Convert an audit event."""
    return model.AuditEvent(
        id=m.id,
        time=m.time.ToDatetime(tzinfo=UTC),
        action=m.action,
        actor=m.actor,
        source_address=m.source_address,
        outcome=m.outcome,
        object=m.object,
        detail=m.detail,
    )


def ris_patient(m: database_pb2.RisPatient) -> model.RisPatient:
    """Convert a patient of a RIS."""
    return model.RisPatient(
        patient_id=m.patient_id,
        issuer_of_patient_id=m.issuer_of_patient_id,
        patient_name=m.patient_name,
        patient_birth_date=m.patient_birth_date,
        patient_sex=m.patient_sex,
    )


def order(m: database_pb2.Order) -> model.Order:
    """Convert an order."""
    return model.Order(
        order_id=m.order_id,
        domain=m.domain,
        accession_number=m.accession_number,
        placer_order_number=m.placer_order_number,
        filler_order_number=m.filler_order_number,
        study_instance_uid=m.study_instance_uid,
        patient=ris_patient(m.patient),
        status=enum_name(database_pb2.OrderStatus, m.status, "ORDER_STATUS_"),
        scheduled_time=m.scheduled_time,
        modality=m.modality,
        station_ae_title=m.station_ae_title,
        procedure_code=m.procedure_code,
        procedure_description=m.procedure_description,
        requested_procedure_id=m.requested_procedure_id,
        referring_physician_name=m.referring_physician_name,
        update_time=time_of(m.update_time),
    )


def admission(m: database_pb2.Admission) -> model.Admission:
    """Convert an admission."""
    key = m.admission_key
    return model.Admission(
        admission_key=m.admission_key_digest.hex(),
        study_instance_uid=key.study_instance_uid,
        station=key.station,
        source_address=m.source_address,
        patient_id=key.patient_id,
        issuer_of_patient_id=key.issuer_of_patient_id,
        patient_name=key.patient_name,
        patient_birth_date=key.patient_birth_date,
        patient_sex=m.patient_sex,
        accession_number=key.accession_number,
        study_date=m.study_date,
        modalities=tuple(m.modalities),
        study_description=m.study_description,
        instance_count=m.instance_count,
        verification=enum_name(common_pb2.VerificationState, m.verification, "VERIFICATION_STATE_"),
        reason=m.reason,
        mismatched_keywords=tuple(m.mismatched_keywords),
        domain=m.domain,
        order_id=m.order_id,
        receive_time=time_of(m.receive_time),
        update_time=time_of(m.update_time),
    )


def merge(m: database_pb2.Merge) -> model.Merge:
    """Convert a merge of patients."""
    return model.Merge(
        id=m.id,
        domain=m.domain,
        prior=ris_patient(m.prior),
        surviving=ris_patient(m.surviving),
        study_count=m.study_count,
        time=time_of(m.time),
        undo_time=time_of(m.undo_time),
        undo_actor=m.undo_actor,
    )


def report(m: database_pb2.Report) -> model.Report:
    """Convert a report."""
    return model.Report(
        study_instance_uid=m.study_instance_uid,
        version=m.version,
        state=enum_name(database_pb2.ReportState, m.state, "REPORT_STATE_"),
        text=m.text,
        author=m.author,
        approver=m.approver,
        update_time=time_of(m.update_time),
        approve_time=time_of(m.approve_time),
        delivery=enum_name(database_pb2.DeliveryState, m.delivery, "DELIVERY_STATE_"),
        delivery_reason=m.delivery_reason,
        control_id=m.control_id,
    )


def domain(m: connectivity_pb2.Domain) -> model.Domain:
    """Convert a RIS domain."""
    return model.Domain(
        name=m.name,
        manager=m.manager,
        hl7_port=m.hl7_port,
        available=m.available,
        last_message_time=time_of(m.last_message_time),
        orders=m.orders,
        messages=m.messages,
        dead_letters=m.dead_letters,
        reports_waiting=m.reports_waiting,
    )


def message(m: connectivity_pb2.Message) -> model.Message:
    """Convert an HL7 message."""
    return model.Message(
        id=m.id,
        manager=m.manager,
        domain=m.domain,
        direction=enum_name(connectivity_pb2.MessageDirection, m.direction, "MESSAGE_DIRECTION_"),
        state=enum_name(connectivity_pb2.MessageState, m.state, "MESSAGE_STATE_"),
        type=m.type,
        control_id=m.control_id,
        sending_application=m.sending_application,
        sending_facility=m.sending_facility,
        time=time_of(m.time),
        ack_code=m.ack_code,
        reason=m.reason,
        error=m.error,
        attempts=m.attempts,
        replays=m.replays,
        length=m.length,
        raw=m.raw,
        ack=m.ack,
    )


def cluster_status(m: Any) -> model.ClusterStatus:
    """Convert an application.v1.ClusterStatus."""
    answered = tuple(
        model.ComponentStatus(
            component=c.component,
            instance=c.instance,
            state=c.state,
            version=c.version,
            pid=c.pid,
            start_time=time_of(c.start_time),
            figures=dict(c.figures),
            alarms=tuple(model.Alarm(a.reason, a.message, time_of(a.since)) for a in c.alarms),
        )
        for c in m.components
    )
    silent = tuple(
        model.ComponentStatus(
            component=name,
            instance=name,
            state="UNREACHABLE",
            alarms=(model.Alarm(reason, "did not answer"),),
        )
        for name, reason in sorted(m.unreachable.items())
    )
    return model.ClusterStatus(
        time=m.time.ToDatetime(tzinfo=UTC),
        components=answered + silent,
        stores=tuple(
            model.StoreStatus(
                store_id=s.store_id,
                kind=enum_name(common_pb2.StoreKind, s.kind, "STORE_KIND_"),
                alive=s.alive,
                accepting=s.accepting,
                free_bytes=s.free_bytes,
                unregistered=s.unregistered,
                heartbeat_time=time_of(s.heartbeat_time),
            )
            for s in m.stores
        ),
    )
