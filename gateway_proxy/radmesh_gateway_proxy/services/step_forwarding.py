"""Modality Performed Procedure Step, SCU (PS3.4 F.7): what modalities say of a step is told to stations, in order.

Each message is a job; one that was refused ends those behind it, for they would make no sense.
"""

import json
from datetime import timedelta
from io import BytesIO
from typing import Final

from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from radmesh.api.database.v1 import database_pb2
from radmesh.api.database.v1 import procedure_step_pb2 as pb
from radmesh.dicom.stations import Stations
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Command, Element, Status, us
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.services.commitment import later
from radmesh_gateway_proxy.services.procedure_step import MAY_NO_LONGER_BE_UPDATED
from radmesh_gateway_proxy.services.registry import UNCOMPRESSED

_SOP_CLASS: Final = "1.2.840.10008.3.1.2.3.3"
_KIND: Final = "mpps"
_LEASE: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 1.0
# While the message before it is on its way.
_TURN_SECONDS: Final = 1.0
_STEPS: Final = pb.DESCRIPTOR.services_by_name["ProcedureStepService"]
_JOBS: Final = database_pb2.DESCRIPTOR.services_by_name["JobService"]
_QUEUED, _FAILED = database_pb2.JOB_STATE_QUEUED, database_pb2.JOB_STATE_FAILED
_UNDER_WAY: Final = (_QUEUED, database_pb2.JOB_STATE_LEASED)


class Forwarder:
    """Forwards messages, as jobs say.

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
        self._steps = context.client(_STEPS, "database-server")
        self._jobs = context.client(_JOBS, "database-server")
        self._worker = context.worker("mpps-forward", self._step)

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
            finish = database_pb2.FinishJobRequest(id=job.id, fence=job.fence, state=database_pb2.JOB_STATE_SUCCEEDED)
            try:
                if not self._forward(job):
                    finish.state = _QUEUED
                    finish.retry_delay.FromTimedelta(timedelta(seconds=later(job.attempt, _TURN_SECONDS, 600.0)))
            except RadmeshError as error:
                refused = error.reason == "STATION_REFUSED_OBJECT"
                finish.state = _FAILED if refused else _QUEUED
                finish.reason, finish.message = error.reason, error.message
                finish.retry_delay.FromTimedelta(timedelta(seconds=later(job.attempt, 2.0, 600.0)))
                self._log.warning("procedure step not forwarded", job=job.id, reason=error.reason, text=error.message)
            self._jobs.FinishJob(finish)
        return 0.0 if taken else _POLL_SECONDS

    def _forward(self, job: database_pb2.Job) -> bool:
        """Forward a message; return False if it is not its turn yet.

        Raises:
            RadmeshError: as Requestor's; STATION_NOT_FOUND, STATION_REFUSED, STATION_REFUSED_OBJECT, STATION_FULL.
        """
        payload = json.loads(job.payload)
        title, uid, number = str(payload["station"]), str(payload["step"]), int(payload["number"])
        message = self._steps.GetProcedureStepMessage(
            pb.GetProcedureStepMessageRequest(sop_instance_uid=uid, number=number, forward_to=title)
        )
        if message.before in _UNDER_WAY:
            return False
        if message.before == _FAILED:
            raise RadmeshError("STATION_REFUSED_OBJECT", "the station did not take the message before this one")
        station = self._stations.lookup(title)
        if station is None:
            raise RadmeshError("STATION_NOT_FOUND", f"no station {title} has a host and a port")
        target = Target(
            station.host,
            station.port,
            station.ae_title.strip(),
            self._config.ae_title,
            max_pdu=self._config.max_pdu,
            tls=dialer_of(station, self._config, self._context),
        )
        # As it came, where the station takes that.
        syntaxes = sorted(UNCOMPRESSED, key=lambda syntax: syntax != message.transfer_syntax_uid)
        contexts = [ProposedContext(2 * n + 1, _SOP_CLASS, (syntax,)) for n, syntax in enumerate(syntaxes)]
        with Requestor(target, contexts) as requestor:
            context = requestor.context_of(_SOP_CLASS, syntaxes)
            if context is None:
                raise RadmeshError("STATION_REFUSED", "the station does not accept Modality Performed Procedure Step")
            data = message.data_set
            if context.transfer_syntax != message.transfer_syntax_uid:
                data = _recoded(data, implicit=message.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN)
            command = Command.N_CREATE if number == 1 else Command.N_SET
            response, _ = requestor.request(
                context, command, _SOP_CLASS, uid, data_set=data, requested=command == Command.N_SET
            )
        self._log.info("procedure step forwarded", ae_title=title, number=number, status=f"0x{response.status:04X}")
        ended = response.elements.get(int(Element.ERROR_ID)) == us(MAY_NO_LONGER_BE_UPDATED)
        again = job.attempt > 1 and (ended or response.status == Status.DUPLICATE_SOP_INSTANCE)
        if response.status == Status.RESOURCE_LIMITATION:
            raise RadmeshError("STATION_FULL", f"the station answers 0x{response.status:04X}")
        # Who answered a try whose answer was lost has it, and says that it is there, or has ended.
        if response.status not in (Status.SUCCESS, 0x0107, 0x0116) and not again:
            raise RadmeshError("STATION_REFUSED_OBJECT", f"the station answers 0x{response.status:04X}")
        return True


def _recoded(data: bytes, *, implicit: bool) -> bytes:
    """Return a data set in the other of the two transfer syntaxes.

    Raises:
        RadmeshError: TRANSCODING_FAILED.
    """
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, not implicit
    try:
        write_dataset(file, read_dataset(BytesIO(data), is_implicit_VR=implicit, is_little_endian=True))
    except Exception as error:  # noqa: BLE001 - whatever a modality has said ends as a reason
        raise RadmeshError("TRANSCODING_FAILED", f"the message cannot be re-encoded ({type(error).__name__})") from None
    return bytes(file.getvalue())
