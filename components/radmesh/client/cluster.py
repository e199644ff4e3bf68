"""The Python client of a radmesh cluster."""

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import grpc
from grpc_status import rpc_status

from radmesh.api.application.v1 import application_pb2, application_pb2_grpc
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2, routing_pb2, stations_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.proxy.v1 import proxy_pb2
from radmesh.client import convert, model
from radmesh.client.connection import open_channel, target_of
from radmesh.client.images import ImageCalls
from radmesh.client.local import LocalArchives
from radmesh.client.patience import RETRY_SECONDS, may_repeat
from radmesh.client.ris import RisCalls
from radmesh.dicom import part10
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import from_rpc_error

_DEADLINE = 30.0
# Protobuf copies a message several times; below 256 KiB glibc keeps the buffers instead of returning them each time.
_CHUNK = 128 * 1024
_RETRY_SECONDS = RETRY_SECONDS


class Cluster(RisCalls, ImageCalls):
    """A signed-in connection to a cluster's door.

    Every method raises `RadmeshError`: `reason` says what went wrong (docs/errors.md lists all), the message what to
    do. Methods may be called from several threads.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        user: str,
        password: str,
        target: str = "the cluster",
        ca_certificate: bytes | None = None,
        remote: bool = False,
    ) -> None:
        """Sign in over `channel`, which this object owns from now on; errors call the other side `target`.

        `ca_certificate` is whom archives are believed by; `remote`: they are not asked, and pictures are read in place
        of objects where they will do.
        """
        self._channel = channel
        self._remote = remote
        self._sessions = application_pb2_grpc.SessionServiceStub(channel)
        self._studies = application_pb2_grpc.StudyServiceStub(channel)
        self._images = application_pb2_grpc.ImageServiceStub(channel)
        self._ris = application_pb2_grpc.RisServiceStub(channel)
        self._administration = application_pb2_grpc.AdministrationServiceStub(channel)
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._closed = False
        try:
            session = self._unary(self._sessions.SignIn, application_pb2.SignInRequest(name=user, password=password))
        except RadmeshError as error:
            channel.close()
            cause: Any = error.__cause__
            if error.reason == "PEER_UNAVAILABLE" and isinstance(cause, grpc.Call) and not rpc_status.from_call(cause):
                raise RadmeshError("CLUSTER_UNREACHABLE", _why_unreachable(target, cause.details())) from error
            raise
        except BaseException:
            channel.close()
            raise
        self.user = convert.user(session.user)
        self._metadata = (("authorization", f"Bearer {session.token}"),)
        self._archives = LocalArchives(self._read_grant, target, ca_certificate)

    @classmethod
    def connect(cls, target: str, *, user: str, password: str, ca_certificate: bytes | None = None) -> Self:
        """Connect to `target` ("host:port") and sign in.

        Beyond loopback the door speaks TLS only: give `ca_certificate` (PEM), the cluster's own authority as
        `ca_certificate` of its ready.json names it, or the one that signed the certificate the door was given.

        Raises:
            RadmeshError: CLUSTER_UNREACHABLE, PASSWORD_WRONG, TOO_MANY_ATTEMPTS, FIELD_INVALID.
        """
        channel = open_channel(target, ca_certificate, "application-server")
        return cls(channel, user=user, password=password, target=target, ca_certificate=ca_certificate)

    @classmethod
    def remote(cls, url: str, *, user: str, password: str, ca_certificate: bytes | None = None) -> Self:
        """Connect from afar to the door at `url` ("grpcs://host:port"): frames come from the web cache.

        Where the door speaks TLS, `ca_certificate` is needed as for `connect`.

        Raises:
            RadmeshError: as `connect`.
        """
        target = target_of(url)
        if url.startswith("grpcs://") and ca_certificate is None:
            raise RadmeshError(
                "FIELD_INVALID", "give the authority of its certificate", metadata={"field": "ca_certificate"}
            )
        channel = open_channel(target, ca_certificate, "application-server")
        return cls(channel, user=user, password=password, target=target, remote=True)

    @classmethod
    def local(cls, data: str | Path | None = None, *, user: str = "admin", password: str | None = None) -> Self:
        """Connect to the cluster that `radmesh up` runs on this machine.

        Args:
            data: its data directory; default RADMESH_DATA, else ./radmesh-data.
            user: user name.
            password: default RADMESH_PASSWORD, else RADMESH_ADMIN_PASSWORD, else what DIR/admin-password says.

        Raises:
            RadmeshError: CLUSTER_NOT_RUNNING if there is no ready.json, and as `connect`.
        """
        folder = Path(data or os.environ.get("RADMESH_DATA") or "radmesh-data")
        try:
            ready = json.loads((folder / "ready.json").read_bytes())
            scheme, _, target = str(ready["urls"]["grpc"]).partition("://")
            if not target:
                raise ValueError("not an address")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RadmeshError(
                "CLUSTER_NOT_RUNNING",
                f"no cluster is ready in {folder}: 'radmesh up --data {folder}' starts one, --cluster names another",
            ) from error
        if password is None:
            password = os.environ.get("RADMESH_PASSWORD") or os.environ.get("RADMESH_ADMIN_PASSWORD")
        if password is None:
            with suppress(OSError):
                password = (folder / "admin-password").read_text().strip()
        if password is None:
            raise RadmeshError("PASSWORD_MISSING", "give a password: --password-file, or RADMESH_PASSWORD")
        certificate = None
        with suppress(OSError, KeyError):
            certificate = Path(ready["ca_certificate"]).read_bytes()
        channel = open_channel(target, certificate if scheme == "grpcs" else None, "application-server")
        return cls(channel, user=user, password=password, target=target, ca_certificate=certificate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sign out and close the connection; what other threads do with it ends."""
        if self._closed:
            return
        self._closed = True
        self._archives.close()
        with suppress(RadmeshError):
            self._unary(self._sessions.SignOut, application_pb2.SignOutRequest(), timeout=2.0)
        self._channel.close()

    def _check_open(self) -> None:
        """Signing out takes its time: what other threads do must not go on meanwhile.

        Raises:
            RadmeshError: CANCELLED.
        """
        if self._closed:
            raise RadmeshError("CANCELLED", "the connection was closed")

    # -- finding ------------------------------------------------------------------------------------------------------

    def find(
        self,
        *,
        patient_id: str = "",
        issuer_of_patient_id: str = "",
        patient_name: str = "",
        accession_number: str = "",
        study_instance_uids: Iterable[str] = (),
        study_date: str = "",
        modalities: Iterable[str] = (),
        study_description: str = "",
        verification: str = "",
        reading: str = "",
        limit: int = 0,
    ) -> Iterator[model.Study]:
        """Yield studies, newest first, page by page.

        `*` and `?` are wildcards; names match without regard to case. `study_date` is a DICOM date or range:
        "20240101", "20240101-20240131", "-20240131", "20240101-". `limit` 0 = all.

        Raises:
            RadmeshError: FIELD_INVALID, SESSION_EXPIRED, ROLE_REFUSED, PEER_UNAVAILABLE.
        """
        first, last = convert.date_range(study_date, "study_date")
        request = database_pb2.FindStudiesRequest(
            patient_id=patient_id,
            issuer_of_patient_id=issuer_of_patient_id,
            patient_name=patient_name,
            accession_number=accession_number,
            study_instance_uids=study_instance_uids,
            study_date_from=first,
            study_date_to=last,
            modalities=modalities,
            study_description=study_description,
            verification=convert.enum_value(
                common_pb2.VerificationState, "VERIFICATION_STATE_", verification, "verification"
            ),
            reading=convert.enum_value(database_pb2.ReadingState, "READING_STATE_", reading, "reading"),
            page_size=min(limit, 1000) if limit else 500,
        )
        found = 0
        while True:
            page = self._unary(self._studies.FindStudies, request)
            for message in page.studies:
                yield convert.study(message)
                found += 1
                if found == limit:
                    return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def study(self, study_instance_uid: str) -> model.StudyDetail:
        """Return a study with its series.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        request = database_pb2.GetStudyRequest(study_instance_uid=study_instance_uid)
        return convert.study_detail(self._unary(self._studies.GetStudy, request))

    def instances(
        self,
        study_instance_uid: str,
        *,
        series_instance_uid: str = "",
        sop_instance_uid: str = "",
        variants: bool = False,
    ) -> Iterator[model.Instance]:
        """Yield instances of a study, ordered by series, number and UID; `variants`: also those kept beside them.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        request = database_pb2.FindInstancesRequest(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            sop_instance_uid=sop_instance_uid,
            include_variants=variants,
        )
        while True:
            page = self._unary(self._studies.FindInstances, request)
            yield from map(convert.instance, page.instances)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def corrections(self, study_instance_uid: str) -> list[model.Correction]:
        """Return the corrections of a study's demographics that are in force, by keyword.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        request = database_pb2.ListCorrectionsRequest(study_instance_uid=study_instance_uid)
        found: list[model.Correction] = []
        while True:
            page = self._unary(self._studies.ListCorrections, request)
            found += [convert.correction(message) for message in page.corrections if message.in_force]
            if not page.next_page_token:
                return sorted(found, key=lambda correction: correction.keyword)
            request.page_token = page.next_page_token

    def history(self, study_instance_uid: str) -> list[model.HistoryEntry]:
        """Return every move of a study's status, oldest first.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        request = database_pb2.ListHistoryRequest(study_instance_uid=study_instance_uid)
        return list(
            self._listed(self._studies.ListHistory, request, lambda page: map(convert.history_entry, page.entries), 0)
        )

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, study_instance_uid: str, instance: model.Instance) -> Iterator[bytes]:
        """Yield the data set bytes of an instance as it was stored; goes on where it was cut, and checks the digest.

        They come from the archive itself where it serves clients on the spot, else through the door.

        Raises:
            RadmeshError: INSTANCE_NOT_FOUND, OBJECT_CORRUPT, PEER_UNAVAILABLE.
        """
        digest = hashlib.sha256()
        offset = 0
        if not self._remote:
            for data in self._archives.read(study_instance_uid, instance):
                self._check_open()
                digest.update(data)
                offset += len(data)
                yield data
        deadline = time.monotonic() + _RETRY_SECONDS
        while not offset or offset < instance.length:
            self._check_open()
            request = application_pb2.ReadInstanceRequest(
                study_instance_uid=study_instance_uid,
                sop_instance_uid=instance.sop_instance_uid,
                sha256=bytes.fromhex(instance.sha256),
                offset=offset,
            )
            try:
                for message in self._studies.ReadInstance(request, metadata=self._metadata, timeout=3600.0):
                    self._check_open()
                    digest.update(message.data)
                    offset += len(message.data)
                    deadline = time.monotonic() + _RETRY_SECONDS
                    yield message.data
                break
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if not may_repeat(failure, deadline):
                    raise failure from None
        if offset != instance.length or digest.hexdigest() != instance.sha256:
            raise RadmeshError("OBJECT_CORRUPT", "the bytes received are not the bytes stored: fetch again")

    def fetch(
        self,
        study_instance_uid: str,
        instance: model.Instance,
        path: Path,
        *,
        corrections: Sequence[model.Correction] = (),
        received: Callable[[int], object] | None = None,
    ) -> tuple[str, ...]:
        """Write an instance to `path` as a DICOM Part 10 file; return the keywords whose values were corrected in it.

        Without `corrections`, and where none of them changes anything, its data set is what was stored, byte by byte.
        The file appears when it is whole. `received` is told the length of every piece that comes.

        Raises:
            RadmeshError: as `read`, and FILE_NOT_WRITTEN, CORRECTION_NOT_APPLIED.
        """
        changed: tuple[str, ...] = ()
        partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        meta = part10.preamble_and_meta(
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            source_ae_title=instance.calling_ae_title,
        )
        try:
            with partial.open("wb") as file:
                file.write(meta)
                for data in self.read(study_instance_uid, instance):
                    file.write(data)
                    if received:
                        received(len(data))
            if corrections:
                from radmesh.client import overlay  # noqa: PLC0415 - brings pydicom

                changed = overlay.apply(partial, corrections)
            partial.replace(path)
        except OSError as error:
            raise RadmeshError("FILE_NOT_WRITTEN", f"cannot write {path}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return changed

    def _read_grant(self, study_instance_uid: str) -> application_pb2.ReadGrant:
        request = application_pb2.GetReadGrantRequest(study_instance_uid=study_instance_uid)
        grant: application_pb2.ReadGrant = self._unary(self._images.GetReadGrant, request, timeout=5.0)
        return grant

    # -- storing ------------------------------------------------------------------------------------------------------

    def store(
        self, paths: Iterable[Path], *, sent: Callable[[int], object] | None = None
    ) -> Iterator[model.StoreResult]:
        """Store DICOM files; yield a result for each, in order.

        `sent` is told how many bytes of the files were handed over, in all; it is called by another thread.

        An object is answered after it is durable. A file that cannot be read, and an object that is refused, give a
        result with the reason; the rest goes on. A cut connection is taken up again for 10 s: sending
        twice stores once.

        Raises:
            RadmeshError: SESSION_EXPIRED, ROLE_REFUSED, PEER_UNAVAILABLE.
        """
        waiting = deque(paths)
        answered = 0
        deadline = time.monotonic() + _RETRY_SECONDS
        while waiting:
            try:
                for result in self._store_once(list(waiting), answered, sent or (lambda _count: None)):
                    with suppress(OSError):
                        answered += waiting[0].stat().st_size
                    waiting.popleft()
                    deadline = time.monotonic() + _RETRY_SECONDS
                    yield result
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if not may_repeat(failure, deadline):
                    raise failure from None

    def _store_once(
        self, paths: list[Path], answered: int, sent: Callable[[int], object]
    ) -> Iterator[model.StoreResult]:
        """Send files over one stream; yield results in order, as far as the stream lives."""
        failed: dict[int, model.StoreResult] = {}
        cut = False
        count = answered

        def requests() -> Iterator[application_pb2.StoreInstancesRequest]:
            nonlocal cut, count
            for number, path in enumerate(paths):
                begun = False
                try:
                    for request in _file_requests(str(number), path):
                        yield request
                        begun = True
                        count += len(request.data)
                        sent(count)
                except RadmeshError as error:
                    failed[number] = model.StoreResult(str(path), error.reason, error.message)
                except OSError as error:
                    failed[number] = model.StoreResult(str(path), "FILE_UNREADABLE", error.strerror or str(error))
                    if begun:
                        # Half of it is on its way, and only the end of the stream makes the cluster forget it.
                        cut = True
                        return

        responses = self._studies.StoreInstances(requests(), metadata=self._metadata)
        following = 0
        try:
            for answer in responses:
                number = int(answer.label)
                # A file that could not be read was never sent: its result stands where its answer would.
                while following < number:
                    yield failed[following]
                    following += 1
                following = number + 1
                yield model.StoreResult(
                    path=str(paths[number]),
                    outcome=answer.outcome,
                    message=answer.message,
                    study_instance_uid=answer.study_instance_uid,
                    sop_instance_uid=answer.identity.sop_instance_uid,
                    transfer_syntax_uid=answer.identity.transfer_syntax_uid,
                    sha256=answer.identity.sha256.hex(),
                    registered=answer.registered,
                )
        except grpc.RpcError as error:
            if not cut or from_rpc_error(error).reason != "TRANSFER_INVALID":
                raise
        while following < len(paths):
            if following not in failed:
                if cut:
                    return
                raise RadmeshError(
                    "PEER_UNAVAILABLE", "the cluster closed the stream before it had answered: try again"
                )
            yield failed[following]
            following += 1

    # -- administering ------------------------------------------------------------------------------------------------

    def evict(self, study_instance_uid: str) -> int:
        """Drop the cache copy of a study that is wholly in the permanent tier; return the bytes given back.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, NOT_PERMANENT.
        """
        request = application_pb2.EvictStudyRequest(study_instance_uid=study_instance_uid)
        freed: int = self._unary(self._studies.EvictStudy, request).bytes
        return freed

    def send(self, study_instance_uid: str, station: str) -> model.Sending:
        """Have a study sent to the station of an AE title; return at once, with what is to be done.

        Raises:
            RadmeshError: STUDY_NOT_FOUND (also if it is held), STATION_NOT_FOUND.
        """
        request = application_pb2.SendStudyRequest(study_instance_uid=study_instance_uid, station=station)
        return convert.sending(self._unary(self._studies.SendStudy, request))

    def sendings(self) -> Iterator[model.Sending]:
        """Yield what was sent, is being sent and will be, newest first."""
        request = application_pb2.ListSendsRequest(page_size=500)
        while True:
            page = self._unary(self._studies.ListSends, request)
            yield from map(convert.sending, page.jobs)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def retry_send(self, job: int) -> model.Sending:
        """Have a job of `sendings` that FAILED tried again.

        Raises:
            RadmeshError: JOB_NOT_FOUND, JOB_NOT_FAILED.
        """
        return convert.sending(self._unary(self._studies.RetrySend, application_pb2.RetrySendRequest(id=job)))

    def cancel_send(self, job: int) -> model.Sending:
        """End a job of `sendings`; what was sent of it stays sent.

        Raises:
            RadmeshError: JOB_NOT_FOUND, JOB_ENDED.
        """
        return convert.sending(self._unary(self._studies.CancelSend, application_pb2.CancelSendRequest(id=job)))

    def status(self) -> model.ClusterStatus:
        """Return what every component and every store says of itself."""
        return convert.cluster_status(
            self._unary(self._administration.GetClusterStatus, application_pb2.GetClusterStatusRequest())
        )

    def users(self) -> list[model.User]:
        """Return the users, by name."""
        request = database_pb2.ListUsersRequest(page_size=500)
        users: list[model.User] = []
        while True:
            page = self._unary(self._administration.ListUsers, request)
            users += map(convert.user, page.users)
            if not page.next_page_token:
                return users
            request.page_token = page.next_page_token

    def stations(self) -> list[model.Station]:
        """Return the DICOM nodes outside, by name."""
        answer = self._unary(self._administration.ListStations, stations_pb2.ListStationsRequest())
        return [convert.station(station) for station in answer.stations]

    def set_station(self, station: model.Station) -> model.Station:
        """Add a station, or replace the one of its name if that still has its `version`; 0 = whatever it is.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        request = stations_pb2.SetStationRequest(
            station=convert.station_message(station), expected_version=station.version
        )
        return convert.station(self._unary(self._administration.SetStation, request))

    def delete_station(self, name: str) -> None:
        """Remove a station, also one of the configuration.

        Raises:
            RadmeshError: STATION_NOT_FOUND.
        """
        self._unary(self._administration.DeleteStation, stations_pb2.DeleteStationRequest(name=name))

    def echo_station(self, ae_title: str) -> tuple[int, float]:
        """Have the gateway proxy call a station and do a C-ECHO; return its status (0 = success) and the seconds.

        Raises:
            RadmeshError: STATION_NOT_FOUND, STATION_UNREACHABLE, STATION_REFUSED, STATION_ABORTED, STATION_SILENT.
        """
        answer = self._unary(self._administration.EchoStation, proxy_pb2.EchoStationRequest(ae_title=ae_title))
        return answer.status, answer.seconds

    def routes(self) -> list[model.Route]:
        """Return the rules by which studies leave by themselves, by name."""
        answer = self._unary(self._administration.ListRoutes, routing_pb2.ListRoutesRequest())
        return [convert.route(route) for route in answer.routes]

    def set_route(self, route: model.Route) -> model.Route:
        """Add a route, or replace the one of its name if that still has its `version`; 0 = whatever it is.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        request = routing_pb2.SetRouteRequest(route=convert.route_message(route), expected_version=route.version)
        return convert.route(self._unary(self._administration.SetRoute, request))

    def delete_route(self, name: str) -> None:
        """Remove a route, also one of the configuration.

        Raises:
            RadmeshError: ROUTE_NOT_FOUND.
        """
        self._unary(self._administration.DeleteRoute, routing_pb2.DeleteRouteRequest(name=name))

    def test_routes(self, study_instance_uid: str) -> list[model.RouteTest]:
        """Return which routes would fire for a study now, and why others would not; nothing is sent.

        Raises:
            RadmeshError: STUDY_NOT_FOUND (also if all of it is held).
        """
        request = gateway_pb2.TestRoutesRequest(study_instance_uid=study_instance_uid)
        return [convert.route_test(test) for test in self._unary(self._administration.TestRoutes, request).tests]

    def create_user(self, name: str, *, password: str, role: str, display_name: str = "") -> model.User:
        """Add a user.

        Raises:
            RadmeshError: USER_EXISTS, PASSWORD_WEAK, FIELD_INVALID.
        """
        request = database_pb2.CreateUserRequest(
            name=name,
            display_name=display_name,
            role=convert.enum_value(database_pb2.Role, "ROLE_", role, "role"),
            password=password,
        )
        return convert.user(self._unary(self._administration.CreateUser, request))

    def update_user(
        self, name: str, *, password: str = "", role: str = "", display_name: str | None = None
    ) -> model.User:
        """Change a user; what is not given stays.

        Raises:
            RadmeshError: USER_NOT_FOUND, PASSWORD_WEAK, LAST_ADMINISTRATOR, FIELD_INVALID.
        """
        request = database_pb2.UpdateUserRequest(
            name=name,
            display_name=display_name,
            role=convert.enum_value(database_pb2.Role, "ROLE_", role, "role"),
            password=password,
        )
        return convert.user(self._unary(self._administration.UpdateUser, request))

    def delete_user(self, name: str) -> None:
        """Remove a user.

        Raises:
            RadmeshError: USER_NOT_FOUND, LAST_ADMINISTRATOR.
        """
        self._unary(self._administration.DeleteUser, database_pb2.DeleteUserRequest(name=name))

    def audit(
        self,
        *,
        action: str = "",
        actor: str = "",
        object: str = "",  # noqa: A002 - the name of the field
        limit: int = 0,
    ) -> Iterator[model.AuditEvent]:
        """Yield audit events, newest first."""
        request = database_pb2.ListAuditRequest(
            action=action, actor=actor, object=object, page_size=min(limit, 1000) if limit else 500
        )
        found = 0
        while True:
            page = self._unary(self._administration.ListAudit, request)
            for event in page.events:
                yield convert.audit_event(event)
                found += 1
                if found == limit:
                    return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def rejects(self) -> Iterator[model.Reject]:
        """Yield what could not be stored as DICOM, newest first."""
        request = gateway_pb2.ListRejectsRequest(page_size=500)
        while True:
            page = self._unary(self._administration.ListRejects, request)
            yield from map(convert.reject, page.rejects)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def read_reject(self, identifier: str, file: BinaryIO) -> int:
        """Write the bytes of a reject to `file`; return their number.

        Raises:
            RadmeshError: REJECT_NOT_FOUND.
        """
        size = 0
        request = gateway_pb2.ReadRejectRequest(id=identifier)
        try:
            for message in self._administration.ReadReject(request, metadata=self._metadata, timeout=600.0):
                size += file.write(message.data)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return size

    def delete_reject(self, identifier: str) -> None:
        """Remove a reject.

        Raises:
            RadmeshError: REJECT_NOT_FOUND.
        """
        self._unary(self._administration.DeleteReject, gateway_pb2.DeleteRejectRequest(id=identifier))

    def _unary(self, method: Any, request: Any, timeout: float = _DEADLINE) -> Any:
        deadline = time.monotonic() + min(timeout, _RETRY_SECONDS)
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=timeout)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                # A call that was not let in has not begun: it may be made again, whatever it does.
                if failure.reason != "TOO_MANY_CALLS" or not may_repeat(failure, deadline):
                    raise failure from error


def _why_unreachable(target: str, details: str | None) -> str:
    """Return why there is no connection, from what gRPC says of it."""
    for sign, why in (
        ("refused", "nothing listens there: is the cluster running, and is this its clients' port?"),
        ("resolving", "there is no host of that name"),
        ("Hostname", "its certificate does not name this host: use a name that it has"),
        ("CERTIFICATE_VERIFY", "its certificate is not of this authority: --ca names the cluster's own"),
        ("andshake", "it does not speak TLS, as the door on loopback does not: leave --ca away"),
        ("HTTP/2", "what listens there is not the clients' port"),
        ("Socket closed", "it ends connections without TLS: give --ca, as beyond loopback"),
    ):
        if sign in (details or ""):
            return f"cannot connect to {target}: {why}"
    return f"{target} does not answer: is the cluster running, and does the network let you there?"


def _file_requests(label: str, path: Path) -> Iterator[application_pb2.StoreInstancesRequest]:
    """Cut a DICOM file into requests; its preamble and group 0002 stay behind."""
    if path.exists() and not path.is_file():
        # A pipe would be waited for without end.
        raise RadmeshError("FILE_UNREADABLE", "this is no file")
    with path.open("rb") as file:
        transfer_syntax_uid = part10.seek_data_set(file)
        data = file.read(_CHUNK)
        first = True
        while True:
            following = file.read(_CHUNK)
            yield application_pb2.StoreInstancesRequest(
                transfer_syntax_uid=transfer_syntax_uid if first else "",
                label=label if first else "",
                last=not following,
                data=data,
            )
            if not following:
                return
            data, first = following, False
