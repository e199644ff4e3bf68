"""The services: verification, reports, domains, and the message log."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.connectivity.v1 import connectivity_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.connectivity_manager.delivery import ASK, Delivery, control_id
from radmesh.connectivity_manager.intake import DEAD, IN, OUT, Intake
from radmesh.connectivity_manager.matching import Person, Policy, StudyKeys
from radmesh.connectivity_manager.orders import Orders
from radmesh.connectivity_manager.publishing import order_message
from radmesh.connectivity_manager.schema import messages, orders, reports
from radmesh.connectivity_manager.tls import OFF
from radmesh.dicom.stations import PATIENT_KEYS, STUDY_KEYS
from radmesh.hl7.build import ReportMessage
from radmesh.hl7.orders import Patient
from radmesh.runtime.clock import Clock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database

_PAGE_MOST: Final = 1000
_TOLD: Final = ("state", "reason", "untold")
_REPORTS = database_pb2.DESCRIPTOR.services_by_name["ReportService"]


class Domain:
    """One RIS domain, as this manager serves it."""

    def __init__(self, settings: Any, intake: Intake, delivery: Delivery, clock: Clock) -> None:
        self.settings = settings
        self.intake = intake
        self.delivery = delivery
        self._clock = clock
        self.port = 0

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.settings.name)

    @property
    def scheme(self) -> str:
        """Of the URL that its RIS sends to."""
        return "mllp" if self.settings.hl7_tls == OFF else "mllps"

    @property
    def available(self) -> bool:
        """Whether its feed is as fresh as it should be."""
        if not self.settings.feed_timeout:
            return True
        last: datetime | None = self.intake.last_message_at
        return last is not None and self._clock.now() - last <= timedelta(seconds=self.settings.feed_timeout)


class ConnectivityService:
    """Implements connectivity.v1.ConnectivityService."""

    def __init__(
        self, domains: Mapping[str, Domain], every: Orders, database: Database, instance: str, changed: Any
    ) -> None:
        self._domains = domains
        self._orders = every
        self._database = database
        self._instance = instance
        self._changed = changed

    def VerifyStudy(self, request: pb.VerifyStudyRequest, _call: Call) -> pb.VerifyStudyResponse:
        """Compare a study with the domain's orders."""
        domain = _domain(self._domains, request.domain)
        for field, value, allowed in (
            ("study_key", request.study_key, STUDY_KEYS),
            ("patient_key", request.patient_key, PATIENT_KEYS),
        ):
            if value and value not in allowed:
                raise RadmeshError("FIELD_INVALID", f"{field}: one of {', '.join(allowed)}", metadata={"field": field})
        if not domain.available:
            raise RadmeshError("RIS_UNAVAILABLE", "the domain's RIS was silent for longer than its feed_timeout")
        keys = request.keys
        study = StudyKeys(
            Person(
                keys.patient_id,
                keys.issuer_of_patient_id or domain.settings.issuer,
                keys.patient_name,
                keys.patient_birth_date,
                request.patient_sex,
            ),
            keys.study_instance_uid,
            keys.accession_number,
            request.study_date[:8],
            request.modality,
        )
        usual = Policy()
        policy = Policy(
            request.study_key or usual.study_key,
            request.patient_key or usual.patient_key,
            request.accession_identifies_patient,
        )
        verified = self._orders.verify(domain.name, study, policy)
        return pb.VerifyStudyResponse(
            outcome=verified.result.outcome.value,  # type: ignore[arg-type]
            orders=map(order_message, verified.orders),
            mismatched_keywords=verified.result.mismatched,
        )

    def SendReport(self, request: pb.SendReportRequest, _call: Call) -> pb.SendReportResponse:
        """Take a report version over."""
        domain = _domain(self._domains, request.study.domain or request.order.domain)
        report, study, order = request.report, request.study, request.order
        if not report.study_instance_uid or report.version < 1:
            raise RadmeshError("FIELD_INVALID", "report: needs a study and a version", metadata={"field": "report"})
        patient = order.patient if order.order_id else study
        settings = domain.settings
        values = ReportMessage(
            control_id=control_id(report.study_instance_uid, report.version),
            time=report.approve_time.ToDatetime(UTC),
            patient_id=patient.patient_id,
            issuer_of_patient_id=patient.issuer_of_patient_id,
            patient_name=patient.patient_name,
            patient_birth_date=patient.patient_birth_date,
            patient_sex=patient.patient_sex,
            study_instance_uid=report.study_instance_uid,
            text=report.text,
            status="F" if report.version == 1 else "A",
            sending=(settings.sending_application, settings.sending_facility),
            receiving=(settings.receiving_application, settings.receiving_facility),
            placer_order_number=order.placer_order_number,
            filler_order_number=order.filler_order_number,
            accession_number=order.accession_number or study.accession_number,
            requested_procedure_id=order.requested_procedure_id,
            procedure_code=order.procedure_code,
            procedure_code_scheme=order.procedure_code_scheme,
            procedure_description=order.procedure_description or study.study_description,
            study_time=(study.study_date + study.study_time.partition(".")[0])[:14],
            referring_physician_name=order.referring_physician_name or study.referring_physician_name,
            radiologist_id=report.approver,
            hl7_version=settings.hl7_version,
            charset=settings.charset,
        )
        return pb.SendReportResponse(control_id=domain.delivery.take_over(values, report.version))

    def UndoMerge(self, request: pb.UndoMergeRequest, _call: Call) -> pb.UndoMergeResponse:
        """Set a patient apart again."""
        domain = _domain(self._domains, request.domain)
        if not 1 <= len(request.merge) <= 64 or not request.prior.patient_id:
            raise RadmeshError("FIELD_INVALID", "merge: 1 to 64 characters; prior: a patient ID")
        prior = Patient(request.prior.patient_id, request.prior.issuer_of_patient_id)

        def work(c: sa.Connection) -> bool:
            self._database.serialise(c)
            return self._orders.undo_merge(c, domain.name, request.merge, prior)

        if self._database.write(work):
            self._changed()
        return pb.UndoMergeResponse()

    def ListDomains(self, _request: pb.ListDomainsRequest, _call: Call) -> pb.ListDomainsResponse:
        """Say how the domains are."""
        answer = pb.ListDomainsResponse()
        with self._database.read() as c:
            for domain in self._domains.values():
                entry = answer.domains.add(
                    name=domain.name,
                    manager=self._instance,
                    hl7_port=domain.port,
                    available=domain.available,
                    orders=_count(c, orders, orders.c.domain == domain.name),
                    messages=_count(c, messages, messages.c.domain == domain.name),
                    dead_letters=_count(
                        c,
                        messages,
                        messages.c.domain == domain.name,
                        messages.c.direction.in_((IN, OUT)),
                        messages.c.state == DEAD,
                    ),
                    reports_waiting=_count(c, reports, reports.c.domain == domain.name, reports.c.state == 1),
                )
                if domain.intake.last_message_at is not None:
                    entry.last_message_time.FromDatetime(domain.intake.last_message_at)
        return answer


class MessageService:
    """Implements connectivity.v1.MessageService."""

    def __init__(self, domains: Mapping[str, Domain], database: Database, context: Context, changed: Any) -> None:
        self._domains = domains
        self._database = database
        self._context = context
        self._changed = changed

    def ListMessages(self, request: pb.ListMessagesRequest, _call: Call) -> pb.ListMessagesResponse:
        """List messages, newest first."""
        size = request.page_size or 100
        if not 1 <= size <= _PAGE_MOST or (request.page_token and not request.page_token.isdecimal()):
            raise RadmeshError("FIELD_INVALID", f"page_size: 1 to {_PAGE_MOST}; page_token: of the last answer")
        columns = [c for c in messages.c if c.name not in ("raw", "ack")]
        query = sa.select(*columns, sa.func.length(messages.c.raw).label("length"))
        for column, value in (
            (messages.c.domain, request.domain),
            (messages.c.direction, request.direction),
            (messages.c.state, request.state),
            (messages.c.type, request.type),
        ):
            if value:
                query = query.where(column == value)
        if request.page_token:
            query = query.where(messages.c.id < int(request.page_token[:18]))
        with self._database.read() as c:
            rows = c.execute(query.order_by(messages.c.id.desc()).limit(size + 1)).all()
        more = len(rows) > size
        return pb.ListMessagesResponse(
            messages=[self._message(row) for row in rows[:size]],
            next_page_token=str(rows[size - 1].id) if more else "",
        )

    def GetMessage(self, request: pb.GetMessageRequest, _call: Call) -> pb.Message:
        """Return a message with its bytes."""
        with self._database.read() as c:
            return self._whole(c, request.id)

    def ReplayMessage(self, request: pb.ReplayMessageRequest, _call: Call) -> pb.Message:
        """Let a dead letter take effect."""

        def work(c: sa.Connection) -> pb.Message:
            row = self._row(c, request.id)
            if row.state != DEAD:
                raise RadmeshError("MESSAGE_NOT_DEAD", "only a message that had no effect can be replayed")
            domain = _domain(self._domains, row.domain)
            if row.direction == IN:
                domain.intake.replay(c, row)
            else:
                domain.delivery.again(c, row.id)
            return self._whole(c, request.id)

        answer = self._database.write(work)
        self._changed()
        self._context.log.info("message replayed", number=request.id, state=int(answer.state))
        return answer

    def _row(self, c: sa.Connection, key: int) -> Any:
        row = c.execute(sa.select(messages).where(messages.c.id == min(key, 1 << 62))).first()
        if row is None:
            raise RadmeshError("MESSAGE_NOT_FOUND", "there is no such message: 'radmesh hl7 messages' lists them")
        return row

    def _whole(self, c: sa.Connection, key: int) -> pb.Message:
        row = self._row(c, key)
        message = self._message(row, len(row.raw))
        message.raw, message.ack = bytes(row.raw), bytes(row.ack)
        return message

    def _message(self, row: Any, length: int | None = None) -> pb.Message:
        message = pb.Message(
            id=row.id,
            domain=row.domain,
            direction=row.direction,
            state=row.state,
            type=row.type,
            control_id=row.control_id,
            sending_application=row.sending_application,
            sending_facility=row.sending_facility,
            ack_code=row.ack_code,
            reason=row.reason,
            error=row.error,
            attempts=row.attempts,
            replays=row.replays,
            length=row.length if length is None else length,
            manager=self._context.instance,
        )
        message.time.FromMicroseconds(row.time)
        return message


class Teller:
    """A worker that tells the Database Server how reports fare."""

    def __init__(self, database: Database, context: Context) -> None:
        self._database = database
        self._client = context.client(_REPORTS, "database-server")
        self._worker: Worker = context.worker("report-states", self._step, most_pause=5.0)

    def start(self) -> None:
        """Begin with what an earlier process left."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        self._worker.stop(grace)

    def wake(self) -> None:
        """Something changed."""
        self._worker.wake()

    def _step(self) -> float:
        with self._database.read() as c:
            rows = c.execute(
                sa.select(reports, messages.c.control_id)
                .join(messages, messages.c.id == reports.c.message)
                .where(reports.c.untold > 0)
                .order_by(reports.c.id)
                .limit(100)
            ).all()
        for row in rows:
            try:
                self._client.SetReportDelivery(
                    database_pb2.SetReportDeliveryRequest(
                        study_instance_uid=row.study_instance_uid,
                        version=row.version,
                        delivery=database_pb2.DELIVERY_STATE_WAITING if row.untold == ASK else row.state,
                        reason=row.reason,
                        control_id=row.control_id,
                    ),
                    timeout=5.0,
                )
            except RadmeshError as error:
                # A database from an older backup does not know it: there is nobody to tell.
                if error.reason != "REPORT_NOT_FOUND":
                    raise
            same = sa.and_(reports.c.id == row.id, *(reports.c[n] == getattr(row, n) for n in _TOLD))
            told = sa.update(reports).where(same).values(untold=0)
            self._database.write(lambda c, told=told: c.execute(told))  # type: ignore[misc] # bound now
        return 0.0 if len(rows) == 100 else 1.0


def _domain(domains: Mapping[str, Domain], name: str) -> Domain:
    found = domains.get(name)
    if found is None:
        raise RadmeshError("DOMAIN_UNKNOWN", "this Connectivity Manager does not serve the domain")
    return found


def _count(c: sa.Connection, table: sa.Table, *conditions: Any) -> int:
    return int(c.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar_one())
