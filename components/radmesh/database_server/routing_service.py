"""The gRPC edge of routing: parse, call, answer."""

from typing import Any, Final

from radmesh.api.database.v1 import routing_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.entries import Entry
from radmesh.database_server.queries import page_size
from radmesh.database_server.routing import Routing
from radmesh.database_server.service import study_message
from radmesh.dicom.routes import Route
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import time_of

_LISTS: Final = ("destinations", "stations", "modalities", "verification", "reading")


def route_of(message: pb.Route) -> Route:
    """Return the route of a message.

    Raises:
        ValueError: a value is not allowed.
    """
    values: dict[str, Any] = {name: tuple(getattr(message, name)) for name in _LISTS}
    if not values["verification"]:
        del values["verification"]
    return Route(
        message.name,
        **values,
        window=message.window,
        key_images=message.key_images,
        enabled=not message.disabled,
    )


def _message(entry: Entry[Route]) -> pb.Route:
    route = entry.value
    message = pb.Route(
        name=route.name,
        **{name: getattr(route, name) for name in _LISTS},
        window=route.window,
        key_images=route.key_images,
        disabled=not route.enabled,
        edited=entry.edited,
        version=entry.version,
    )
    message.update_time.FromDatetime(time_of(entry.update_time))
    return message


@checked()
class RouteService:
    """database.v1.RouteService."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def ListRoutes(self, request: pb.ListRoutesRequest, _call: Call) -> pb.ListRoutesResponse:
        """List the routes, unless the caller knows them."""
        version = self._routing.routes.version()
        if request.known_version and request.known_version == version:
            return pb.ListRoutesResponse(version=version, unchanged=True)
        return pb.ListRoutesResponse(version=version, routes=map(_message, self._routing.routes.list()))

    def SetRoute(self, request: pb.SetRouteRequest, _call: Call) -> pb.Route:
        """Add or replace a route."""
        try:
            route = route_of(request.route)
        except ValueError as error:
            raise invalid("route", str(error)) from None
        return _message(self._routing.put(route, request.expected_version))

    def DeleteRoute(self, request: pb.DeleteRouteRequest, _call: Call) -> pb.DeleteRouteResponse:
        """Remove a route."""
        self._routing.routes.remove(request.name)
        return pb.DeleteRouteResponse()

    def GetRoutingFacts(self, request: pb.GetRoutingFactsRequest, _call: Call) -> pb.RoutingFacts:
        """Say what routes are compared with."""
        if len(request.stations) > 256:
            raise invalid("stations", "at most 256")
        facts = self._routing.facts(request.study_instance_uid, request.stations)
        return pb.RoutingFacts(
            study=study_message(facts.study),
            steps_ended=facts.steps_ended,
            key_objects=facts.key_objects,
            undelivered=facts.undelivered,
        )

    def QueueSend(self, request: pb.QueueSendRequest, _call: Call) -> pb.QueueSendResponse:
        """Make a job that sends."""
        _station(request.station)
        if not 1 <= request.max_attempts <= 1000:
            raise invalid("max_attempts", "1 to 1,000")
        if len(request.routes) > 256:
            raise invalid("routes", "at most 256")
        job = self._routing.queue_send(
            request.study_instance_uid,
            request.station,
            request.routes,
            key_images=request.key_images,
            max_attempts=request.max_attempts,
        )
        return pb.QueueSendResponse(job_id=job)

    def QueueAvailability(self, request: pb.QueueAvailabilityRequest, _call: Call) -> pb.QueueAvailabilityResponse:
        """Make jobs that tell stations of a study."""
        return pb.QueueAvailabilityResponse(jobs=self._routing.queue_availability(request.study_instance_uid))

    def ListDeliveries(self, request: pb.ListDeliveriesRequest, _call: Call) -> pb.ListDeliveriesResponse:
        """List what a station is not to be sent again."""
        _station(request.station)
        size = page_size(request.page_size, 1000, 5000)
        uids, token = self._routing.delivered(request.study_instance_uid, request.station, size, request.page_token)
        return pb.ListDeliveriesResponse(sop_instance_uids=uids, next_page_token=token)

    def RecordDeliveries(self, request: pb.RecordDeliveriesRequest, _call: Call) -> pb.RecordDeliveriesResponse:
        """Keep what became of instances."""
        _station(request.station)
        if not 1 <= len(request.sop_instance_uids) <= 1000:
            raise invalid("sop_instance_uids", "1 to 1,000")
        if request.state not in (pb.SENT_STATE_SENT, pb.SENT_STATE_FAILED):
            raise invalid("state", "SENT or FAILED")
        self._routing.record(
            request.study_instance_uid,
            request.station,
            request.state,
            request.sop_instance_uids,
            request.job_id,
        )
        return pb.RecordDeliveriesResponse()


def _station(title: str) -> None:
    if not 1 <= len(title) <= 16:
        raise invalid("station", "1 to 16 characters")
