"""The clients' door: parse, ask the mesh with the caller's eyes, audit, answer."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2, routing_pb2, stations_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.proxy.v1 import proxy_pb2
from radmesh.application_server.audit import Audit
from radmesh.application_server.intake import Intake
from radmesh.application_server.objects import copies
from radmesh.application_server.ris import may_reconcile
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, Person, roles_of
from radmesh.transfer.codec import Bulk
from radmesh.transfer.reader import read_object
from radmesh_native.crc32c import crc32c

CHUNK_MAX: Final = 1_048_560
_ARCHIVES: Final = archive_pb2.DESCRIPTOR.services_by_name["ArchiveService"]
_STATUS: Final = common_pb2.DESCRIPTOR.services_by_name["StatusService"]
# Kind of job that gateway proxies do; with an hour between the last tries, most of a day.
_SEND: Final = "send"
_SEND_ATTEMPTS: Final = 24
_STATUS_SECONDS: Final = 2.0
_STUDIES: Final = pb.DESCRIPTOR.services_by_name["StudyService"].methods_by_name
_STORERS: Final = roles_of(_STUDIES["StoreInstances"])
_READERS: Final = roles_of(_STUDIES["ReadInstance"])


def _person(call: Call) -> Person:
    assert call.person is not None
    return call.person


class SessionService:
    """application.v1.SessionService."""

    def __init__(self, accounts: Any, sessions: SessionCache, audit: Audit) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._audit = audit

    def SignIn(self, request: pb.SignInRequest, call: Call) -> database_pb2.Session:
        """Check a password, audited either way."""
        name = request.name.strip().lower()[:64]
        try:
            session: database_pb2.Session = self._accounts.SignIn(
                database_pb2.SignInRequest(name=request.name, password=request.password, source_address=call.peer)
            )
        except RadmeshError as error:
            self._audit.record("SIGN_IN", call, actor=name, outcome=error.reason)
            raise
        self._audit.record("SIGN_IN", call, actor=session.user.name)
        return session

    def GetSession(self, _request: pb.GetSessionRequest, call: Call) -> database_pb2.Session:
        """Say who the caller is."""
        session: database_pb2.Session = self._accounts.GetSession(
            database_pb2.GetSessionRequest(token=_person(call).token)
        )
        return session

    def SignOut(self, _request: pb.SignOutRequest, call: Call) -> pb.SignOutResponse:
        """End the session."""
        self._accounts.SignOut(database_pb2.SignOutRequest(token=_person(call).token))
        self._sessions.forget(_person(call).token)
        self._audit.record("SIGN_OUT", call)
        return pb.SignOutResponse()


class StudyService:
    """application.v1.StudyService."""

    def __init__(
        self,
        context: Context,
        queries: Any,
        studies: Any,
        registry: Any,
        audit: Audit,
        sessions: SessionCache,
        sender: Callable[[], Any],
        jobs: Any,
        stations: Any,
    ) -> None:
        self._context = context
        self._jobs = jobs
        self._stations = stations
        self._queries = queries
        self._studies = studies
        self._registry = registry
        self._audit = audit
        self._sessions = sessions
        self._sender = sender

    @staticmethod
    def _eyes(request: Any, call: Call) -> Any:
        """A person is no station, and sees what is held only with the right `reconcile`."""
        request.viewer_station = ""
        request.include_held = may_reconcile(_person(call))
        return request

    def _see(self, request: database_pb2.GetStudyRequest, call: Call) -> database_pb2.StudyDetail:
        """Return a study if the caller may see it: who may not, may not see its history either."""
        eyes = self._eyes(request, call)
        uid = request.study_instance_uid
        answer: database_pb2.StudyDetail = self._audit.seen(
            "STUDY_SHOW", call, uid, lambda: self._queries.GetStudy(eyes)
        )
        return answer

    def FindStudies(self, request: database_pb2.FindStudiesRequest, call: Call) -> database_pb2.FindStudiesResponse:
        """Find studies."""
        eyes = self._eyes(request, call)
        if not request.page_token:
            self._audit.query("STUDY_QUERY", call, eyes)
        answer: database_pb2.FindStudiesResponse = self._queries.FindStudies(eyes)
        return answer

    def GetStudy(self, request: database_pb2.GetStudyRequest, call: Call) -> database_pb2.StudyDetail:
        """Return a study."""
        return self._see(request, call)

    def FindInstances(
        self, request: database_pb2.FindInstancesRequest, call: Call
    ) -> database_pb2.FindInstancesResponse:
        """List instances."""
        eyes = self._eyes(request, call)
        uid = request.study_instance_uid
        answer: database_pb2.FindInstancesResponse = self._audit.seen(
            "STUDY_SHOW", call, uid, lambda: self._queries.FindInstances(eyes)
        )
        return answer

    def ListHistory(self, request: database_pb2.ListHistoryRequest, call: Call) -> database_pb2.ListHistoryResponse:
        """List moves of a study's status."""
        self._see(database_pb2.GetStudyRequest(study_instance_uid=request.study_instance_uid), call)
        answer: database_pb2.ListHistoryResponse = self._studies.ListHistory(request)
        return answer

    def ListCorrections(
        self, request: database_pb2.ListCorrectionsRequest, call: Call
    ) -> database_pb2.ListCorrectionsResponse:
        """List corrections of a study's demographics."""
        self._see(database_pb2.GetStudyRequest(study_instance_uid=request.study_instance_uid), call)
        answer: database_pb2.ListCorrectionsResponse = self._studies.ListCorrections(request)
        return answer

    def ReadInstance(self, request: pb.ReadInstanceRequest, call: Call) -> Iterator[Bulk[pb.ReadInstanceResponse]]:
        """Stream the data set of an instance."""
        wanted = database_pb2.FindInstancesRequest(
            study_instance_uid=request.study_instance_uid,
            sop_instance_uid=request.sop_instance_uid,
            include_variants=True,
        )
        found = self._queries.FindInstances(self._eyes(wanted, call)).instances
        instance = next(
            (i for i in found if (i.identity.sha256 == request.sha256 if request.sha256 else i.current)), None
        )
        if instance is None:
            raise RadmeshError("INSTANCE_NOT_FOUND", "the study has no such instance")
        self._audit.access("STUDY_READ", call, request.study_instance_uid)
        locations = copies(self._context, instance)
        offset = request.offset
        if instance.length == offset:
            yield Bulk(pb.ReadInstanceResponse(instance=instance, offset=offset))
            return
        fields = pb.ReadInstanceResponse(instance=instance, offset=offset)
        permit = self._sessions.permit(_person(call), _READERS)
        with read_object(locations, offset, request.length) as reader:
            fields.residence = reader.residence  # type: ignore[assignment]
            for data in reader:
                permit.check()
                fields.crc32c = crc32c(data)
                yield Bulk(fields, data)
                offset += len(data)
                fields = pb.ReadInstanceResponse(offset=offset)

    def StoreInstances(
        self, requests: Iterator[Bulk[pb.StoreInstancesRequest]], call: Call
    ) -> Iterator[pb.StoreInstancesResponse]:
        """Store objects, one after another."""
        person = _person(call)
        sender = self._sender()
        intake = Intake(sender, f"user:{person.name}", call.peer, self._registry)
        permit = self._sessions.permit(person, _STORERS)
        try:
            for first in requests:
                permit.check()
                yield self._store(intake, first, requests, call)
        finally:
            sender.close()

    def _store(
        self, intake: Intake, first: Bulk[Any], requests: Iterator[Bulk[Any]], call: Call
    ) -> pb.StoreInstancesResponse:
        label, syntax = first.fields.label[:256], first.fields.transfer_syntax_uid
        ended = False
        broken: RadmeshError | None = None

        def chunks() -> Iterator[bytes]:
            nonlocal ended, broken
            message = first
            while True:
                if len(message.data) > CHUNK_MAX:
                    broken = RadmeshError("CHUNK_TOO_LARGE", f"a message has at most {CHUNK_MAX} bytes of data")
                elif message is not first and message.fields.transfer_syntax_uid:
                    # Whoever gave up one object and began another must not have both stored as one.
                    broken = RadmeshError("TRANSFER_INVALID", "an object began before the one before it had ended")
                if broken:
                    raise broken
                # Set before the data is handed out: whoever stops there must not wait for another message.
                ended = message.fields.last
                if message.data:
                    yield bytes(message.data)
                if ended:
                    return
                following = next(requests, None)
                if following is None:
                    broken = RadmeshError("TRANSFER_INVALID", "the stream ended within an object")
                    raise broken
                message = following

        source = chunks()
        try:
            stored = intake.store(syntax, source)
        except RadmeshError as error:
            while not (ended or broken):
                # What is left of the object is passed over: the stream goes on with the next.
                next(source, None)
            if broken:
                raise
            return pb.StoreInstancesResponse(label=label, outcome=error.reason, message=error.message)
        self._audit.access("STUDY_STORE", call, stored.study_instance_uid)
        return pb.StoreInstancesResponse(
            label=label,
            study_instance_uid=stored.study_instance_uid,
            identity=common_pb2.ContentIdentity(
                sop_instance_uid=stored.sop_instance_uid, transfer_syntax_uid=syntax, sha256=stored.sha256
            ),
            outcome=stored.outcome,
            registered=intake.registered([stored.object]),
        )

    def EvictStudy(self, request: pb.EvictStudyRequest, call: Call) -> pb.EvictStudyResponse:
        """Drop the cache copies of a study."""
        uid = request.study_instance_uid
        self._audit.record("STUDY_EVICT", call, object_id=uid)
        self._queries.GetStudy(database_pb2.GetStudyRequest(study_instance_uid=uid, include_held=True))
        freed = 0
        for store in self._registry.ListStores(database_pb2.ListStoresRequest()).stores:
            if store.kind != common_pb2.STORE_KIND_ARCHIVE or not store.alive:
                continue
            archive = self._context.client(_ARCHIVES, store.target)
            try:
                freed += archive.EvictStudy(archive_pb2.EvictStudyRequest(study_instance_uid=uid), timeout=60.0).bytes
            except RadmeshError as error:
                if error.reason != "STUDY_NOT_FOUND":
                    raise
        return pb.EvictStudyResponse(bytes=freed)

    def SendStudy(self, request: pb.SendStudyRequest, call: Call) -> database_pb2.Job:
        """Have a study sent to a station."""
        uid, title = request.study_instance_uid, request.station.strip()
        self._audit.record("STUDY_SEND", call, object_id=uid, detail={"station": title[:16]})
        # What is held leaves for nobody, whoever asks.
        self._queries.GetStudy(database_pb2.GetStudyRequest(study_instance_uid=uid))
        known = self._stations.ListStations(stations_pb2.ListStationsRequest()).stations
        if not any(station.ae_title.strip() == title and station.port for station in known):
            raise RadmeshError("STATION_NOT_FOUND", "no station of that AE title has a host and a port to send to")
        payload = json.dumps({"study": uid, "station": title, "by": _person(call).name})
        job: database_pb2.Job = self._jobs.EnqueueJob(
            database_pb2.EnqueueJobRequest(
                kind=_SEND, key=f"{title}/{uid}", payload=payload, max_attempts=_SEND_ATTEMPTS
            )
        )
        return job

    def ListSends(self, request: pb.ListSendsRequest, _call: Call) -> database_pb2.ListJobsResponse:
        """List what was, is and will be sent."""
        answer: database_pb2.ListJobsResponse = self._jobs.ListJobs(
            database_pb2.ListJobsRequest(
                kind=_SEND, state=request.state, page_size=request.page_size, page_token=request.page_token
            )
        )
        return answer

    def RetrySend(self, request: pb.RetrySendRequest, call: Call) -> database_pb2.Job:
        """Have a send that failed tried again."""
        self._audit.record("SEND_RETRY", call, object_id=str(request.id))
        job: database_pb2.Job = self._jobs.RetryJob(database_pb2.RetryJobRequest(id=request.id, kind=_SEND))
        return job

    def CancelSend(self, request: pb.CancelSendRequest, call: Call) -> database_pb2.Job:
        """End a send."""
        self._audit.record("SEND_CANCEL", call, object_id=str(request.id))
        job: database_pb2.Job = self._jobs.CancelJob(database_pb2.CancelJobRequest(id=request.id, kind=_SEND))
        return job


class AdministrationService:
    """application.v1.AdministrationService."""

    def __init__(
        self,
        context: Context,
        accounts: Any,
        registry: Any,
        rejects: Any,
        stations: Any,
        routes: Any,
        routing: Any,
        edge: Callable[[], Any],
        audit: Audit,
        instances: Mapping[str, str],
    ) -> None:
        self._context = context
        self._accounts = accounts
        self._registry = registry
        self._rejects = rejects
        self._stations = stations
        self._routes = routes
        self._routing = routing
        self._edge = edge
        self._audit = audit
        self._instances = instances

    def _change(self, action: str, name: str, call: Call, change: Callable[[], Any], detail: dict[str, object]) -> Any:
        try:
            answer = change()
        except RadmeshError as error:
            self._audit.record(action, call, outcome=error.reason, object_id=name, detail=detail)
            raise
        self._audit.record(action, call, object_id=name, detail=detail)
        return answer

    def CreateUser(self, request: database_pb2.CreateUserRequest, call: Call) -> database_pb2.User:
        """Add a user."""
        request.actor = _person(call).name
        user: database_pb2.User = self._change(
            "USER_CREATE", request.name, call, lambda: self._accounts.CreateUser(request), {"role": request.role}
        )
        return user

    def UpdateUser(self, request: database_pb2.UpdateUserRequest, call: Call) -> database_pb2.User:
        """Change a user."""
        request.actor = _person(call).name
        detail: dict[str, object] = {"role": request.role, "password": bool(request.password)}
        user: database_pb2.User = self._change(
            "USER_UPDATE", request.name, call, lambda: self._accounts.UpdateUser(request), detail
        )
        return user

    def DeleteUser(self, request: database_pb2.DeleteUserRequest, call: Call) -> database_pb2.DeleteUserResponse:
        """Remove a user."""
        request.actor = _person(call).name
        answer: database_pb2.DeleteUserResponse = self._change(
            "USER_DELETE", request.name, call, lambda: self._accounts.DeleteUser(request), {}
        )
        return answer

    def ListUsers(self, request: database_pb2.ListUsersRequest, _call: Call) -> database_pb2.ListUsersResponse:
        """List users."""
        answer: database_pb2.ListUsersResponse = self._accounts.ListUsers(request)
        return answer

    def ListAudit(self, request: database_pb2.ListAuditRequest, call: Call) -> database_pb2.ListAuditResponse:
        """List audit events; that is audited too."""
        if not request.page_token:
            self._audit.record("AUDIT_READ", call)
        answer: database_pb2.ListAuditResponse = self._accounts.ListAudit(request)
        return answer

    def ListRejects(self, request: gateway_pb2.ListRejectsRequest, _call: Call) -> gateway_pb2.ListRejectsResponse:
        """List rejects."""
        answer: gateway_pb2.ListRejectsResponse = self._rejects.ListRejects(request)
        return answer

    def ReadReject(self, request: gateway_pb2.ReadRejectRequest, call: Call) -> Iterator[Any]:
        """Return the bytes of a reject: they may be a patient's."""
        self._audit.record("REJECT_READ", call, object_id=request.id)
        yield from self._rejects.ReadReject(request)

    def DeleteReject(self, request: gateway_pb2.DeleteRejectRequest, call: Call) -> gateway_pb2.DeleteRejectResponse:
        """Remove a reject."""
        answer: gateway_pb2.DeleteRejectResponse = self._change(
            "REJECT_DELETE", request.id, call, lambda: self._rejects.DeleteReject(request), {}
        )
        return answer

    def ListStations(self, request: stations_pb2.ListStationsRequest, _call: Call) -> stations_pb2.ListStationsResponse:
        """List the stations."""
        answer: stations_pb2.ListStationsResponse = self._stations.ListStations(request)
        return answer

    def SetStation(self, request: stations_pb2.SetStationRequest, call: Call) -> stations_pb2.Station:
        """Add or replace a station."""
        request.actor = _person(call).name
        station = request.station
        detail: dict[str, object] = {"ae_title": station.ae_title[:16], "grants": sorted(station.grants)[:8]}
        name = (station.name or station.ae_title)[:64]
        changed: stations_pb2.Station = self._change(
            "STATION_SET", name, call, lambda: self._stations.SetStation(request), detail
        )
        return changed

    def DeleteStation(
        self, request: stations_pb2.DeleteStationRequest, call: Call
    ) -> stations_pb2.DeleteStationResponse:
        """Remove a station."""
        request.actor = _person(call).name
        answer: stations_pb2.DeleteStationResponse = self._change(
            "STATION_DELETE", request.name[:64], call, lambda: self._stations.DeleteStation(request), {}
        )
        return answer

    def EchoStation(self, request: proxy_pb2.EchoStationRequest, call: Call) -> proxy_pb2.EchoStationResponse:
        """Have a station called."""
        answer: proxy_pb2.EchoStationResponse = self._change(
            "STATION_ECHO", request.ae_title[:64], call, lambda: self._edge().EchoStation(request, timeout=30.0), {}
        )
        return answer

    def ListRoutes(self, request: routing_pb2.ListRoutesRequest, _call: Call) -> routing_pb2.ListRoutesResponse:
        """List the routes."""
        answer: routing_pb2.ListRoutesResponse = self._routes.ListRoutes(request)
        return answer

    def SetRoute(self, request: routing_pb2.SetRouteRequest, call: Call) -> routing_pb2.Route:
        """Add or replace a route."""
        request.actor = _person(call).name
        detail: dict[str, object] = {"destinations": [place[:16] for place in request.route.destinations[:16]]}
        changed: routing_pb2.Route = self._change(
            "ROUTE_SET", request.route.name[:64], call, lambda: self._routes.SetRoute(request), detail
        )
        return changed

    def DeleteRoute(self, request: routing_pb2.DeleteRouteRequest, call: Call) -> routing_pb2.DeleteRouteResponse:
        """Remove a route."""
        request.actor = _person(call).name
        answer: routing_pb2.DeleteRouteResponse = self._change(
            "ROUTE_DELETE", request.name[:64], call, lambda: self._routes.DeleteRoute(request), {}
        )
        return answer

    def TestRoutes(self, request: gateway_pb2.TestRoutesRequest, call: Call) -> gateway_pb2.TestRoutesResponse:
        """Say which routes would fire for a study."""
        self._audit.record("ROUTE_TEST", call, object_id=request.study_instance_uid)
        answer: gateway_pb2.TestRoutesResponse = self._routing.TestRoutes(request)
        return answer

    def GetClusterStatus(self, _request: pb.GetClusterStatusRequest, _call: Call) -> pb.ClusterStatus:
        """Ask every component."""
        answer = pb.ClusterStatus()
        answer.time.FromDatetime(self._context.clock.now())
        for instance, target in self._instances.items():
            try:
                client = self._context.client(_STATUS, target)
                answer.components.append(client.GetStatus(common_pb2.GetStatusRequest(), timeout=_STATUS_SECONDS))
            except RadmeshError as error:
                answer.unreachable[instance] = error.reason
        try:
            answer.stores.extend(
                self._registry.ListStores(database_pb2.ListStoresRequest(), timeout=_STATUS_SECONDS).stores
            )
        except RadmeshError as error:
            answer.unreachable.setdefault("database-server", error.reason)
        return answer
