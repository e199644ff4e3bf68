"""A Connectivity Manager as it is wired, in this process or in one of its own, beside a Database Server that listens.

Told      in the Database Server's place: a real server that remembers what it is told
World     managers in this process
Process   a manager in a process of its own, which can be made to die at any statement
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hl7_partners import free_port
from mllp_support import RawPeer
from transfer_support import Mesh
from waiting import wait_for

from radmesh.api.connectivity.v1 import connectivity_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.connectivity_manager.config import Section
from radmesh.connectivity_manager.module import module
from radmesh.mesh import sections
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Server

DATABASE = "database-server"
MANAGER = "connectivity-manager-0"
_SERVICES = database_pb2.DESCRIPTOR.services_by_name
_OWN = pb.DESCRIPTOR.services_by_name
SUPPORT = Path(__file__).parent


class Told:
    """What the Database Server is told, as it takes it: events without gaps, each once. A stop forgets nothing.

    `before` and `after` are called with the name of a call, before it takes effect and before it is answered.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._server: Server | None = None
        self._lock = threading.Lock()
        self.last: dict[str, tuple[bytes, int]] = {}
        self.events: list[database_pb2.RisEvent] = []
        self.deliveries: list[tuple[str, int, int, str, str]] = []
        self.calls = 0
        self.before: Callable[[str], None] = lambda _name: None
        self.after: Callable[[str], None] = lambda _name: None
        self.refuse: RadmeshError | None = None

    def start(self) -> "Told":
        self._server = self._mesh.context(DATABASE).server(max_connection_age=None)
        for name in ("OrderService", "ReportService"):
            self._server.add(_SERVICES[name], self)
        self._server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            Mesh.cut_off(self._server)
            self._server = None

    @property
    def kinds(self) -> list[str]:
        """What the events are about, without the states of domains."""
        found = (event.WhichOneof("event") for event in self.events)
        return [kind for kind in found if kind != "domain_state"]

    @property
    def accessions(self) -> list[str]:
        """Accession numbers of the orders, in the order in which they were told."""
        return [event.order.accession_number for event in self.events if event.HasField("order")]

    def delivered(self, study: str, version: int = 1) -> list[tuple[int, str]]:
        """(DeliveryState, reason) of a report version, as it was told."""
        return [
            (state, reason) for uid, number, state, reason, _ in self.deliveries if (uid, number) == (study, version)
        ]

    # -- OrderService, ReportService

    def ApplyRisEvents(self, request: database_pb2.ApplyRisEventsRequest, _call: Any) -> Any:
        self.calls += 1
        self.before("ApplyRisEvents")
        if self.refuse is not None:
            raise self.refuse
        with self._lock:
            epoch, last = self.last.get(request.manager, (b"", 0))
            last = last if epoch == request.manager_epoch else 0
            for event in request.events:
                if event.sequence <= last:
                    continue
                if event.sequence != last + 1:
                    raise RadmeshError("EVENT_GAP", f"event {last + 1} is expected")
                self.events.append(event)
                last = event.sequence
            self.last[request.manager] = (request.manager_epoch, last)
        self.after("ApplyRisEvents")
        return database_pb2.ApplyRisEventsResponse(sequence=last)

    def SetReportDelivery(self, request: database_pb2.SetReportDeliveryRequest, _call: Any) -> Any:
        self.before("SetReportDelivery")
        if request.study_instance_uid.startswith("2.25.404"):
            raise RadmeshError("REPORT_NOT_FOUND", "there is no such report")
        self.deliveries.append(
            (request.study_instance_uid, request.version, request.delivery, request.reason, request.control_id)
        )
        self.after("SetReportDelivery")
        return database_pb2.SetReportDeliveryResponse()

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)

        def refuse(_request: Any, _call: Any) -> Any:
            raise RadmeshError("INTERNAL", "this is no Database Server")

        return refuse


def _patiently(call: Any, request: Any, timeout: float = 10.0) -> Any:
    """Ask until somebody is there: what was started a moment ago may not be reached yet."""
    for _ in range(300):
        try:
            return call(request, timeout=timeout)
        except RadmeshError as error:
            if error.reason != "PEER_UNAVAILABLE":
                raise
            threading.Event().wait(0.05)
    raise AssertionError("nobody answered")


class _Calls:
    """Calls to a manager, as the components make them."""

    mesh: Mesh
    _verifying: dict[int, Any]

    def _client(self, caller: str, service: str, number: int) -> Any:
        target = self.mesh.addresses[f"connectivity-manager-{number}"]
        return self.mesh.context(caller).client(_OWN[service], target)

    def verify(self, domain: str = "default", number: int = 0, timeout: float = 5.0, **keys: Any) -> Any:
        """VerifyStudy, as the Network Gateway asks."""
        if not hasattr(self, "_verifying"):
            self._verifying = {}
        if number not in self._verifying:
            self._verifying[number] = self._client("network-gateway", "ConnectivityService", number)
        request = pb.VerifyStudyRequest(domain=domain)
        for name, value in keys.items():
            setattr(request.keys if name in request.keys.DESCRIPTOR.fields_by_name else request, name, value)
        return _patiently(self._verifying[number].VerifyStudy, request, timeout)

    def domains(self, number: int = 0) -> dict[str, Any]:
        """ListDomains, by name."""
        client = self._client("network-gateway", "ConnectivityService", number)
        answer = _patiently(client.ListDomains, pb.ListDomainsRequest())
        return {domain.name: domain for domain in answer.domains}

    def send_report(self, study: str, version: int = 1, text: str = "Text.", **more: str) -> str:
        """SendReport, as the Database Server's outbox does: until it is answered. Return MSH-10.

        `more` are fields of the study.
        """
        request = report_request(study, version, text, **more)
        client = self._client(DATABASE, "ConnectivityService", 0)
        return str(_patiently(client.SendReport, request).control_id)

    def messages(self, **wanted: Any) -> list[Any]:
        """The log, newest first."""
        service = self._client("application-server", "MessageService", 0)
        return list(_patiently(service.ListMessages, pb.ListMessagesRequest(page_size=1000, **wanted)).messages)

    def message(self, key: int) -> Any:
        """A message with its bytes."""
        service = self._client("application-server", "MessageService", 0)
        return _patiently(service.GetMessage, pb.GetMessageRequest(id=key))

    def replay(self, key: int) -> Any:
        """ReplayMessage."""
        service = self._client("application-server", "MessageService", 0)
        return _patiently(service.ReplayMessage, pb.ReplayMessageRequest(id=key, actor="rad"))


def report_request(study: str, version: int = 1, text: str = "Text.", **more: str) -> Any:
    """An approved report with its study, of which `more` are fields."""
    fields: Any = {
        "patient_id": "P1",
        "patient_name": "Doe^John",
        "accession_number": "A1",
        "domain": "default",
        **more,
    }
    request = pb.SendReportRequest(
        report=database_pb2.Report(study_instance_uid=study, version=version, text=text, approver="rad"),
        study=database_pb2.Study(
            study_instance_uid=study, study_date="20260102", study_time="030405.123", **fields
        ),
    )  # fmt: skip
    request.report.approve_time.FromSeconds(1767400000)
    return request


class World(_Calls):
    """Managers in this process; `told` stands where the Database Server is."""

    def __init__(self, folder: Path, *domains: sections.Domain, clock: Clock | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.mesh = Mesh(folder, "unix", clock)
        self.mesh.addresses[DATABASE] = self.mesh.listen(DATABASE)
        self.mesh.settings["domains"] = domains or (sections.Domain(name="default"),)
        self.told = Told(self.mesh).start()
        self.running: dict[str, Any] = {}
        self.contexts: dict[str, Any] = {}

    def start(self, number: int = 0, **settings: Any) -> Any:
        instance = f"connectivity-manager-{number}"
        self.mesh.addresses[instance] = self.mesh.addresses["connectivity-manager"] = self.mesh.listen(instance)
        context = self.contexts[instance] = self.mesh.context(instance)
        made = module(Section(**{"hl7_port": 0, "ack_timeout": 1.0, **settings}), context)
        made.start()
        self.running[instance] = made
        return made

    def stop(self, number: int = 0) -> None:
        instance = f"connectivity-manager-{number}"
        self.running.pop(instance).stop(3.0)
        self.contexts[instance].channels.close()

    def port(self, domain: str = "default") -> int:
        """Where a domain's RIS sends to."""
        return next(int(made._domains[domain].port) for made in self.running.values() if domain in made._domains)

    def peer(self, domain: str = "default") -> RawPeer:
        """A connection of a RIS."""
        return RawPeer(self.port(domain))

    def tell(self, raw: bytes, domain: str = "default") -> bytes:
        """Send a message over a connection of its own; return the answer."""
        with self.peer(domain) as peer:
            answer = peer.ask(raw)
        assert answer is not None
        return answer

    def alarms(self, number: int = 0) -> dict[str, str]:
        """The alarms of a manager."""
        status = self.contexts[f"connectivity-manager-{number}"].status
        return {reason: text for reason, text, _ in status.alarms()}

    def close(self) -> None:
        for instance in list(self.running):
            self.stop(int(instance.rpartition("-")[2]))
        self.told.stop()
        self.mesh.close()


class Process(_Calls):
    """A manager in a process of its own, with its own `Told` in this one.

    Args:
        folder: of the cluster.
        domains: TOML of [[domains]] and their keys; empty = the default one.
    """

    def __init__(self, folder: Path, domains: str = "") -> None:
        self.mesh = Mesh(folder, "unix")
        self.mesh.addresses[DATABASE] = self.mesh.listen(DATABASE)
        self.mesh.addresses[MANAGER] = f"unix:{folder}/run/{MANAGER}.sock"
        self.told = Told(self.mesh).start()
        self.folder = folder
        self.hl7_port = free_port()
        self._config = folder / "radmesh.toml"
        self._config.write_text(
            f'[mesh]\naddresses = {{ "{DATABASE}" = "{self.mesh.addresses[DATABASE]}" }}\n'
            f"[connectivity]\nhl7_port = {self.hl7_port}\nack_timeout = 2\n{domains}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, dies: Sequence[str] = ()) -> None:
        """Start it; `dies` are "<when> <beginning of a statement>", see `dying.py`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        with (self.folder / "out.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, SUPPORT / "dying.py", json.dumps(list(dies)), "serve"),
                    *("--target=connectivity-manager-0", "--data", self.folder, "--config", self._config),
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        wait_for(self._listens, 60)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None or self.process.returncode == -signal.SIGKILL, self.log()
        if self.process.returncode:
            return True
        with contextlib.suppress(OSError), RawPeer(self.hl7_port):
            return True
        return False

    def tell(self, raw: bytes) -> bytes | None:
        """Send a message over a connection of its own; return the answer, None if the process died instead."""
        with RawPeer(self.hl7_port) as peer:
            return peer.ask(raw)

    def died(self) -> None:
        """Wait for the death that was asked for."""
        assert self.process is not None
        assert self.process.wait(60) == -signal.SIGKILL, (self.folder / "out.log").read_text()[-2000:]
        self.process = None

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.died()

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "out.log").read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.told.stop()
        self.mesh.close()
