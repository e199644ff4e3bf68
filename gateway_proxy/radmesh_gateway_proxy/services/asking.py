"""Storage Commitment Push Model, SCU (PS3.4 annex J): stations are asked whether they store what they were sent.

The request goes out on an association of its own, as a job of the Database Server; what the station reports comes on
one that it opens, with us in the role of the SCU, on whatever process takes it.
"""

from datetime import timedelta
from typing import Final

from radmesh.api.database.v1 import commitment_pb2, database_pb2
from radmesh.dicom.identifier import Identifier, read_data_set, write_element
from radmesh.dicom.stations import Stations
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, is_valid_uid
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Command, Element, Outcome, Status, us
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.services.commitment import (
    BYTES_MOST,
    REFERENCED,
    REFERENCED_SOP_CLASS,
    REFERENCED_SOP_INSTANCE,
    REFERENCES_MOST,
    SOP_CLASS,
    SOP_INSTANCE,
    TRANSACTION_UID,
    later,
)
from radmesh_gateway_proxy.services.exchange import Exchange, RefusalError
from radmesh_gateway_proxy.services.registry import UNCOMPRESSED

OPTION: Final = "commit"
"""Of a station: it is asked."""
_SERVICE: Final = commitment_pb2.DESCRIPTOR.services_by_name["StationCommitmentService"]
_JOBS: Final = database_pb2.DESCRIPTOR.services_by_name["JobService"]
_KIND: Final = "commitment-ask"
_LEASE: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 1.0
# A station that was asked, and has not answered for so long, is asked again.
_ANSWER_SECONDS: Final = 3600.0
STATUSES: Final = (
    (Status.SUCCESS, "what the station says is kept"),
    (Status.INVALID_ARGUMENT_VALUE, "it cannot be read, or the station was asked nothing with the Transaction UID"),
    (Status.RESOURCE_LIMITATION, "it cannot be kept now: send it again"),
)


def reported(exchange: Exchange) -> Outcome:
    """Answer an N-EVENT-REPORT."""
    data = exchange.identifier(BYTES_MOST, too_long=Status.RESOURCE_LIMITATION)
    implicit = exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        said = read_data_set(data, implicit=implicit, most=BYTES_MOST, keys_most=4 * REFERENCES_MOST)
    except RadmeshError as error:
        raise RefusalError(Outcome(Status.INVALID_ARGUMENT_VALUE, error.message[:64])) from None
    transaction_uid = said.value(TRANSACTION_UID)
    items = next((key.items for key in said.keys if key.tag == REFERENCED), ())
    stored = [Identifier(item.items).value(REFERENCED_SOP_INSTANCE) for item in items]
    if not is_valid_uid(transaction_uid) or not all(map(is_valid_uid, stored)) or len(stored) > REFERENCES_MOST:
        return Outcome(Status.INVALID_ARGUMENT_VALUE, "a UID is missing or none", _tag(TRANSACTION_UID))
    request = commitment_pb2.ReportStationCommitmentRequest(
        station=exchange.peer.calling_ae_title,
        transaction_uid=transaction_uid,
        stored_sop_instance_uids=stored,
    )
    try:
        exchange.mesh.context.client(_SERVICE, "database-server").ReportStationCommitment(request)
    except RadmeshError as error:
        exchange.log.warning("commitment report not taken", reason=error.reason, text=error.message)
        if error.reason == "TRANSACTION_NOT_FOUND":
            return Outcome(
                Status.INVALID_ARGUMENT_VALUE, f"{error.reason}: {error.message}"[:64], _tag(TRANSACTION_UID)
            )
        return Outcome(Status.RESOURCE_LIMITATION, f"{error.reason}: {error.message}"[:64])
    exchange.log.info("commitment told", calling_ae_title=exchange.peer.calling_ae_title, stored=len(stored))
    event = exchange.request.number(Element.EVENT_TYPE_ID)
    return Outcome(Status.SUCCESS, elements={} if event is None else {int(Element.EVENT_TYPE_ID): us(event)})


def _tag(tag: int) -> tuple[int, int]:
    return tag >> 16, tag & 0xFFFF


class Asker:
    """Asks stations, as jobs say.

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
        self._database = context.client(_SERVICE, "database-server")
        self._jobs = context.client(_JOBS, "database-server")
        self._worker = context.worker("commitment-ask", self._step)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End; what is not done is done later, or elsewhere."""
        self._worker.stop(grace)

    def _step(self) -> float:
        request = database_pb2.LeaseJobsRequest(kinds=[_KIND], count=1)
        request.lease.FromTimedelta(_LEASE)
        taken = self._jobs.LeaseJobs(request).jobs
        for job in taken:
            again, reason, message = self._done(job)
            finish = database_pb2.FinishJobRequest(
                id=job.id,
                fence=job.fence,
                state=database_pb2.JOB_STATE_QUEUED if again else database_pb2.JOB_STATE_SUCCEEDED,
                reason=reason,
                message=message,
            )
            finish.retry_delay.FromTimedelta(timedelta(seconds=again))
            self._jobs.FinishJob(finish)
        return 0.0 if taken else _POLL_SECONDS

    def _done(self, job: database_pb2.Job) -> tuple[float, str, str]:
        """Ask; return after how many seconds to ask again (0 = the station has answered), and why."""
        try:
            asked = self._database.GetStationCommitment(
                commitment_pb2.GetStationCommitmentRequest(transaction_uid=job.key)
            )
            if asked.finished or not asked.references:
                return 0.0, "", ""
            self._ask(job.key, asked)
        except RadmeshError as error:
            if error.reason == "TRANSACTION_NOT_FOUND":
                return 0.0, "", ""
            self._log.warning("commitment not asked for", job=job.id, reason=error.reason, text=error.message)
            return later(job.attempt, 5.0, 3600.0), error.reason, error.message
        return _ANSWER_SECONDS, "STATION_SILENT", "the station has not answered yet"

    def _ask(self, transaction_uid: str, asked: commitment_pb2.StationCommitment) -> None:
        """Ask a station.

        Raises:
            RadmeshError: as Requestor's; STATION_NOT_FOUND, STATION_REFUSED.
        """
        station = self._stations.lookup(asked.station)
        if station is None:
            raise RadmeshError("STATION_NOT_FOUND", f"no station {asked.station} has a host and a port")
        target = Target(
            station.host,
            station.port,
            station.ae_title.strip(),
            self._config.ae_title,
            max_pdu=self._config.max_pdu,
            tls=dialer_of(station, self._config, self._context),
        )
        with Requestor(target, [ProposedContext(1, SOP_CLASS, UNCOMPRESSED)]) as requestor:
            context = requestor.context_of(SOP_CLASS)
            if context is None:
                raise RadmeshError("STATION_REFUSED", "the station does not accept Storage Commitment")
            response, _ = requestor.request(
                context,
                Command.N_ACTION,
                SOP_CLASS,
                SOP_INSTANCE,
                data_set=action(transaction_uid, asked, implicit=context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN),
                elements={int(Element.ACTION_TYPE_ID): us(1)},
                requested=True,
            )
        self._log.info("commitment asked for", ae_title=asked.station, status=f"0x{response.status:04X}")
        if response.status != Status.SUCCESS:
            raise RadmeshError("STATION_REFUSED", f"the station answers the request with 0x{response.status:04X}")


def action(transaction_uid: str, asked: commitment_pb2.StationCommitment, *, implicit: bool) -> bytes:
    """Return the Action Information of a request (PS3.4 table J.3-1), Little Endian."""
    items = [
        [(REFERENCED_SOP_CLASS, "UI", each.sop_class_uid), (REFERENCED_SOP_INSTANCE, "UI", each.sop_instance_uid)]
        for each in asked.references
    ]
    elements = ((TRANSACTION_UID, "UI", transaction_uid), (REFERENCED, "SQ", items))
    return b"".join(write_element(element, implicit=implicit, codec="ascii") for element in elements)
