"""Storage Commitment Push Model, SCP (PS3.4 annex J): requests here, reports on the same association or a new one.

The request is durable in the Database Server before it is answered. A job there leads to the report, however often this
process, or the cluster, starts anew until the station has it.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from radmesh.api.database.v1 import commitment_pb2, database_pb2
from radmesh.dicom.identifier import Identifier, Key, read_data_set, write_element
from radmesh.dicom.stations import Station, Stations
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, is_valid_uid
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Command, Element, Outcome, Response, Status, encode_request, us
from radmesh_gateway_proxy.pdus import ProposedContext, RoleSelection
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.services.exchange import Exchange, RefusalError
from radmesh_gateway_proxy.services.registry import UNCOMPRESSED

COMMITMENT_SOP_CLASSES: Final = {"1.2.840.10008.1.20.1": "Storage Commitment Push Model"}
SOP_CLASS: Final = "1.2.840.10008.1.20.1"
SOP_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
_RETRIEVE_AE_TITLE: Final = 0x00080054
REFERENCED_SOP_CLASS: Final = 0x00081150
REFERENCED_SOP_INSTANCE: Final = 0x00081155
TRANSACTION_UID: Final = 0x00081195
_FAILURE_REASON: Final = 0x00081197
_FAILED: Final = 0x00081198
REFERENCED: Final = 0x00081199
_ACTION_TYPE: Final = 1
_ALL_STORED, _SOME_NOT = 1, 2  # Event Type ID
REFERENCES_MOST: Final = 20_000
BYTES_MOST: Final = 4 << 20
STATUSES: Final = (
    (Status.PROCESSING_FAILURE, "an open request with the Transaction UID names other objects"),
    (Status.NO_SUCH_OBJECT_INSTANCE, "the SOP Instance is not the well-known one"),
    (Status.INVALID_ARGUMENT_VALUE, "nothing is asked about, or a UID is missing or none"),
    (Status.NO_SUCH_ACTION, "the Action Type is not 1"),
    (Status.RESOURCE_LIMITATION, f"it cannot be kept now, or asks about more than {REFERENCES_MOST} objects"),
)
_SERVICE: Final = commitment_pb2.DESCRIPTOR.services_by_name["CommitmentService"]
_JOBS: Final = database_pb2.DESCRIPTOR.services_by_name["JobService"]
_KIND: Final = "commitment"
# For so long an association waits for the stores to tell, where it is the one that the report goes out on.
_SAME_PATIENCE: Final = 6.0
_SAME_PAUSE: Final = 0.25
_LEASE: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 1.0
_WORKERS: Final = 2


def commit(exchange: Exchange) -> Outcome:
    """Answer an N-ACTION."""
    request = exchange.request
    if request.affected_sop_instance_uid != SOP_INSTANCE:
        return Outcome(Status.NO_SUCH_OBJECT_INSTANCE, "the SOP Instance is not the well-known one", (0, 0x1001))
    if request.number(Element.ACTION_TYPE_ID) != _ACTION_TYPE:
        return Outcome(Status.NO_SUCH_ACTION, "the one Action Type is 1", (0, int(Element.ACTION_TYPE_ID)))
    transaction_uid, references = _requested(exchange)
    message = commitment_pb2.RequestCommitmentRequest(
        station=exchange.peer.calling_ae_title,
        called_ae_title=exchange.peer.called_ae_title,
        transaction_uid=transaction_uid,
        references=[
            commitment_pb2.CommitmentReference(sop_class_uid=sop_class, sop_instance_uid=uid)
            for sop_class, uid in references
        ],
    )
    database = exchange.mesh.context.client(_SERVICE, "database-server")
    try:
        database.RequestCommitment(message)
    except RadmeshError as error:
        exchange.log.warning("commitment not taken", reason=error.reason, text=error.message)
        transient = error.definition.transient
        status = Status.RESOURCE_LIMITATION if transient else Status.PROCESSING_FAILURE
        return Outcome(status, f"{error.reason}: {error.message}"[:64])
    here = not _is_called(exchange.mesh.destination(exchange.peer.calling_ae_title))
    return Outcome(
        Status.SUCCESS,
        elements={int(Element.ACTION_TYPE_ID): us(_ACTION_TYPE)},
        then=(lambda: _report_here(exchange, database, transaction_uid)) if here else None,
    )


def _requested(exchange: Exchange) -> tuple[str, list[tuple[str, str]]]:
    """Return the Transaction UID, and SOP Class and Instance UID of what is asked about.

    Raises:
        RefusalError: they cannot be had.
    """
    data = exchange.identifier(BYTES_MOST, too_long=Status.RESOURCE_LIMITATION)
    implicit = exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        information = read_data_set(data, implicit=implicit, most=BYTES_MOST, keys_most=4 * REFERENCES_MOST)
    except RadmeshError as error:
        raise RefusalError(Outcome(Status.INVALID_ARGUMENT_VALUE, error.message[:64])) from None
    transaction_uid = information.value(TRANSACTION_UID)
    if not is_valid_uid(transaction_uid):
        raise _refusal("no Transaction UID", TRANSACTION_UID)
    items = next((key.items for key in information.keys if key.tag == REFERENCED), ())
    references = [_reference(item) for item in items]
    if not references:
        raise _refusal("nothing is asked about", REFERENCED)
    if len(references) > REFERENCES_MOST:
        raise RefusalError(Outcome(Status.RESOURCE_LIMITATION, f"at most {REFERENCES_MOST} objects a transaction"))
    return transaction_uid, references


def _reference(item: Key) -> tuple[str, str]:
    within = Identifier(item.items)
    pair = within.value(REFERENCED_SOP_CLASS), within.value(REFERENCED_SOP_INSTANCE)
    for uid, tag in zip(pair, (REFERENCED_SOP_CLASS, REFERENCED_SOP_INSTANCE), strict=True):
        if not is_valid_uid(uid):
            raise _refusal("an item has no such UID", tag)
    return pair


def _refusal(comment: str, tag: int) -> RefusalError:
    return RefusalError(Outcome(Status.INVALID_ARGUMENT_VALUE, comment, (tag >> 16, tag & 0xFFFF)))


def _is_called(station: Station | None) -> bool:
    """Whether a station gets its reports on an association to it."""
    return station is not None and station.commit_report != "same"


def report_of(
    transaction_uid: str, references: Sequence[commitment_pb2.CommitmentReference], ae_title: str, *, implicit: bool
) -> tuple[int, bytes]:
    """Return Event Type ID and Event Information of a report (PS3.4 table J.3-2), Little Endian."""
    stored, failed = [], []
    for each in references:
        item: list[Any] = [
            (REFERENCED_SOP_CLASS, "UI", each.sop_class_uid),
            (REFERENCED_SOP_INSTANCE, "UI", each.sop_instance_uid),
        ]
        if each.failure_reason:
            failed.append([*item, (_FAILURE_REASON, "US", int(each.failure_reason))])
        else:
            stored.append(item)
    elements: list[Any] = [(_RETRIEVE_AE_TITLE, "AE", ae_title)] if stored else []
    elements.append((TRANSACTION_UID, "UI", transaction_uid))
    elements += [(tag, "SQ", items) for tag, items in ((_FAILED, failed), (REFERENCED, stored)) if items]
    data = b"".join(write_element(element, implicit=implicit, codec="ascii") for element in elements)
    return _SOME_NOT if failed else _ALL_STORED, data


def _report_here(exchange: Exchange, database: Any, transaction_uid: str) -> None:
    """Report on the association that asked: this transaction, and what else its station has not heard of."""
    station = exchange.peer.calling_ae_title
    until = time.monotonic() + _SAME_PATIENCE
    open_ = database.ListCommitments(commitment_pb2.ListCommitmentsRequest(station=station)).transaction_uids
    for uid in (transaction_uid, *(each for each in open_ if each != transaction_uid)):
        asked = commitment_pb2.EvaluateCommitmentRequest(station=station, transaction_uid=uid)
        found = database.EvaluateCommitment(asked)
        while not found.decided and uid == transaction_uid and time.monotonic() < until:
            time.sleep(_SAME_PAUSE)
            found = database.EvaluateCommitment(asked)
        if found.decided and not found.finished:
            _ask(exchange, database, uid, found)


def _ask(exchange: Exchange, database: Any, transaction_uid: str, found: Any) -> None:
    context = exchange.context
    event, data = report_of(
        transaction_uid,
        found.references,
        found.called_ae_title,
        implicit=context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN,
    )

    def command(message_id: int) -> bytes:
        return encode_request(
            Command.N_EVENT_REPORT,
            message_id,
            SOP_CLASS,
            SOP_INSTANCE,
            has_data_set=True,
            elements={int(Element.EVENT_TYPE_ID): us(event)},
        )

    def answered(response: Response) -> None:
        if response.status == Status.SUCCESS:
            database.FinishCommitment(
                commitment_pb2.FinishCommitmentRequest(
                    station=exchange.peer.calling_ae_title, transaction_uid=transaction_uid, version=found.version
                )
            )
        exchange.log.info("commitment reported", association="same", status=f"0x{response.status:04X}", event=event)

    exchange.line.ask(context.context_id, command, data, answered)


class Reporter:
    """Works off the jobs of Storage Commitment: reports go to the stations that take associations.

    Args:
        config: of the edge.
        context: of the gateway proxy.
        stations: where stations are.
    """

    def __init__(self, config: Section, context: Context, stations: Stations) -> None:
        self._config = config
        self._context = context
        self._stations = stations
        self._log = context.log
        self._owner = context.instance
        self._database = context.client(_SERVICE, "database-server")
        self._jobs = context.client(_JOBS, "database-server")
        # More than one, so that a station that is silent keeps no other waiting.
        self._workers = [context.worker(f"commitment-{n}", self._step) for n in range(_WORKERS)]

    def start(self) -> None:
        """Begin."""
        for worker in self._workers:
            worker.start()

    def stop(self, grace: float) -> None:
        """End; what is not done is done later, or elsewhere."""
        for worker in self._workers:
            worker.stop(grace)

    def _step(self) -> float:
        request = database_pb2.LeaseJobsRequest(kinds=[_KIND], owner=self._owner, count=1)
        request.lease.FromTimedelta(_LEASE)
        taken = self._jobs.LeaseJobs(request).jobs
        for job in taken:
            self._finish(job, *self._done(job))
        return 0.0 if taken else _POLL_SECONDS

    def _finish(self, job: database_pb2.Job, again: float, reason: str, message: str) -> None:
        request = database_pb2.FinishJobRequest(
            id=job.id,
            fence=job.fence,
            state=database_pb2.JOB_STATE_QUEUED if again else database_pb2.JOB_STATE_SUCCEEDED,
            reason=reason,
            message=message,
        )
        request.retry_delay.FromTimedelta(timedelta(seconds=again))
        self._jobs.FinishJob(request)

    def _done(self, job: database_pb2.Job) -> tuple[float, str, str]:
        """Do a job; return after how many seconds it is to be tried again (0 = it is done), and why."""
        # A UID has no space, an AE title may.
        station, transaction_uid, version = job.key.rsplit(" ", 2)
        asked = commitment_pb2.EvaluateCommitmentRequest(station=station, transaction_uid=transaction_uid)
        try:
            found = self._database.EvaluateCommitment(asked)
            if found.finished or found.version != int(version):
                return 0.0, "", ""  # a request that came again has a job of its own
            if not found.decided:
                return later(job.attempt, 1.0, 60.0), "REGISTRATION_LATE", "not every store has told what it has"
            known = self._stations.lookup(station)
            if known is None or not _is_called(known):
                # It hears of it when it asks again.
                return later(job.attempt, 5.0, 600.0), "STATION_UNKNOWN", "the station has no host: set one, or wait"
            self._report(known, transaction_uid, found)
        except RadmeshError as error:
            if error.reason == "TRANSACTION_NOT_FOUND":
                return 0.0, "", ""
            self._log.warning("commitment not reported", station=station, reason=error.reason, text=error.message)
            return later(job.attempt, 2.0, 600.0), error.reason, error.message
        self._database.FinishCommitment(
            commitment_pb2.FinishCommitmentRequest(
                station=station, transaction_uid=transaction_uid, version=found.version
            )
        )
        return 0.0, "", ""

    def _report(self, station: Station, transaction_uid: str, found: Any) -> None:
        """Report on an association of ours, on which we have the SCP role.

        Raises:
            RadmeshError: as Requestor's; STATION_REFUSED where the station does not take it.
        """
        calling = found.called_ae_title or self._config.ae_title
        target = Target(
            station.host,
            station.port,
            station.ae_title,
            calling,
            max_pdu=self._config.max_pdu,
            tls=dialer_of(station, self._config, self._context),
        )
        proposed = [ProposedContext(1, SOP_CLASS, UNCOMPRESSED)]
        roles = [RoleSelection(SOP_CLASS, scu=False, scp=True)]
        with Requestor(target, proposed, roles=roles) as requestor:
            context = requestor.context_of(SOP_CLASS)
            if context is None:
                raise RadmeshError("STATION_REFUSED", "the station does not accept Storage Commitment with us as SCP")
            implicit = context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
            event, data = report_of(transaction_uid, found.references, calling, implicit=implicit)
            response, _ = requestor.request(
                context,
                Command.N_EVENT_REPORT,
                SOP_CLASS,
                SOP_INSTANCE,
                data_set=data,
                elements={int(Element.EVENT_TYPE_ID): us(event)},
            )
        self._log.info("commitment reported", association="new", status=f"0x{response.status:04X}", event=event)
        if response.status != Status.SUCCESS:
            raise RadmeshError("STATION_REFUSED", f"the station answers the report with 0x{response.status:04X}")


def later(attempt: int, first: float, most: float) -> float:
    """Seconds until the next try, of which each is twice as far as the one before."""
    return float(min(first * 2 ** min(max(attempt, 1) - 1, 20), most))
