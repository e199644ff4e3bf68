"""The gRPC edge of the gateway proxy: parse, call, answer."""

import time

from radmesh.api.proxy.v1 import proxy_pb2 as pb
from radmesh.dicom.stations import Stations
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION_SOP_CLASS
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target

_CONNECT_SECONDS = 5.0
_RESPONSE_SECONDS = 5.0


class EdgeService:
    """proxy.v1.EdgeService."""

    def __init__(self, config: Section, context: Context, stations: Stations) -> None:
        self._config = config
        self._context = context
        self._stations = stations

    def EchoStation(self, request: pb.EchoStationRequest, _call: Call) -> pb.EchoStationResponse:
        """Call a station, and do a C-ECHO."""
        station = self._stations.lookup(request.ae_title)
        if station is None:
            raise RadmeshError("STATION_NOT_FOUND", "no station of that AE title has a host: set one")
        target = Target(
            station.host,
            station.port,
            station.ae_title,
            self._config.ae_title,
            connect_seconds=_CONNECT_SECONDS,
            response_seconds=_RESPONSE_SECONDS,
            max_pdu=self._config.max_pdu,
            tls=dialer_of(station, self._config, self._context),
        )
        began = time.monotonic()
        context = ProposedContext(1, VERIFICATION_SOP_CLASS, (IMPLICIT_VR_LITTLE_ENDIAN,))
        with Requestor(target, [context]) as requestor:
            status = requestor.echo().status
        return pb.EchoStationResponse(status=status, seconds=time.monotonic() - began)
