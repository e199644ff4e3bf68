"""Instance Availability Notification, SCU (PS3.4 annex R): stations are told of studies that are complete."""

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.identifier import write_element
from radmesh.dicom.stations import Stations
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Command, Status
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.services.commitment import later
from radmesh_gateway_proxy.services.registry import UNCOMPRESSED

SOP_CLASS: Final = "1.2.840.10008.5.1.4.33"
_PROCEDURE_STEP: Final = "1.2.840.10008.3.1.2.3.3"
_SERVICES: Final = database_pb2.DESCRIPTOR.services_by_name
_KIND: Final = "availability"
_LEASE: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 2.0


class Notifier:
    """Tells stations, as jobs say.

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
        self._queries = context.client(_SERVICES["QueryService"], "database-server")
        self._jobs = context.client(_SERVICES["JobService"], "database-server")
        self._worker = context.worker("availability", self._step)

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
                self._tell(job)
            except RadmeshError as error:
                self._log.warning("availability not told", job=job.id, reason=error.reason, text=error.message)
                finish.state, finish.reason, finish.message = database_pb2.JOB_STATE_QUEUED, error.reason, error.message
                finish.retry_delay.FromTimedelta(timedelta(seconds=later(job.attempt, 5.0, 3600.0)))
            self._jobs.FinishJob(finish)
        return 0.0 if taken else _POLL_SECONDS

    def _tell(self, job: database_pb2.Job) -> None:
        """Tell a station of a study.

        Raises:
            RadmeshError: as Requestor's; STATION_NOT_FOUND, STATION_REFUSED.
        """
        payload = json.loads(job.payload)
        study, title = str(payload["study"]), str(payload["station"])
        station = self._stations.lookup(title)
        if station is None:
            raise RadmeshError("STATION_NOT_FOUND", f"no station {title} has a host and a port")
        try:
            instances = list(self._instances(study))
        except RadmeshError as error:
            if error.reason != "STUDY_NOT_FOUND":
                raise
            return  # it is held meanwhile, and comes up again when it is not
        target = Target(
            station.host,
            station.port,
            station.ae_title.strip(),
            self._config.ae_title,
            max_pdu=self._config.max_pdu,
            tls=dialer_of(station, self._config, self._context),
        )
        # The same with each try: a station that has it already says so.
        uid = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, job.key).int}"
        with Requestor(target, [ProposedContext(1, SOP_CLASS, UNCOMPRESSED)]) as requestor:
            context = requestor.context_of(SOP_CLASS)
            if context is None:
                raise RadmeshError("STATION_REFUSED", "the station does not accept Instance Availability Notification")
            implicit = context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
            told = notification(study, payload.get("steps", ()), instances, self._config.ae_title, implicit=implicit)
            response, _ = requestor.request(context, Command.N_CREATE, SOP_CLASS, uid, data_set=told)
        self._log.info("availability told", ae_title=title, status=f"0x{response.status:04X}", instances=len(instances))
        if response.status not in (Status.SUCCESS, Status.DUPLICATE_SOP_INSTANCE):
            raise RadmeshError("STATION_REFUSED", f"the station answers with 0x{response.status:04X}")

    def _instances(self, study: str) -> Iterable[database_pb2.Instance]:
        request = database_pb2.FindInstancesRequest(study_instance_uid=study, page_size=5000)
        while True:
            answer = self._queries.FindInstances(request)
            yield from answer.instances
            request.page_token = answer.next_page_token
            if not request.page_token:
                return


def notification(
    study: str,
    steps: Sequence[str],
    instances: Iterable[database_pb2.Instance],
    ae_title: str,
    *,
    implicit: bool,
) -> bytes:
    """Return the attributes of a notification (PS3.4 table R.3.2-1), Little Endian."""
    of_series: dict[str, list[Any]] = {}
    for each in instances:
        of_series.setdefault(each.series_instance_uid, []).append(
            [
                (0x00080054, "AE", ae_title),
                (0x00080056, "CS", "ONLINE"),
                (0x00081150, "UI", each.sop_class_uid),
                (0x00081155, "UI", each.identity.sop_instance_uid),
            ]
        )
    elements: tuple[Any, ...] = (
        # Performed Workitem Code Sequence is of type 2, and not known.
        (
            0x00081111,
            "SQ",
            [[(0x00081150, "UI", _PROCEDURE_STEP), (0x00081155, "UI", uid), (0x00404019, "SQ", [])] for uid in steps],
        ),
        (0x00081115, "SQ", [[(0x00081199, "SQ", items), (0x0020000E, "UI", uid)] for uid, items in of_series.items()]),
        (0x0020000D, "UI", study),
    )
    return b"".join(write_element(element, implicit=implicit, codec="ascii") for element in elements)
