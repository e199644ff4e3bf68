"""Database, archive and gateway as they are wired, and managers with orders that a test writes down."""

import json
from pathlib import Path
from typing import Any

from component_mesh import Components, Item, item
from connectivity_support import code
from database_support import uid
from manager_support import Manager
from mllp_support import RawPeer
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2 as db
from radmesh.api.gateway.v1 import gateway_pb2 as gw
from radmesh.connectivity_manager import config as manager_config
from radmesh.connectivity_manager import module as manager_module
from radmesh.dicom.stations import Station
from radmesh.mesh.sections import Domain
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import Ticket

EPOCH = b"e" * 16
STATIONS = (
    Station("REQUIRED", verification="required"),
    Station("OFF", verification="off"),
    Station("CAREFUL", on_ris_unavailable="hold"),
    Station("BOTH", domain="by-object"),
    Station("TOWN", domain="town"),
)
DOMAINS = (Domain("default"), Domain("town", issuer="TOWN", accession_pattern="T.*", manager=1))


class World:
    """One database, one archive, one gateway, a manager for each of two domains."""

    def __init__(self, folder: Path) -> None:
        self.mesh = Components(folder)
        self.mesh.mesh.settings.update(stations=STATIONS, domains=DOMAINS)
        self.manager = Manager(self.mesh.mesh).start()
        self.town = Manager(self.mesh.mesh, 1, ("town",)).start()
        self.mesh.database()
        self.mesh.archive()
        self.gateway()
        self.sequences: dict[str, int] = {}

    def gateway(self, **settings: Any) -> None:
        self.mesh.gateway(**{"verify_again": 3600.0, **settings})

    def client(self, caller: str, service: str) -> Any:
        return self.mesh.client(caller, db, service, "database-server")

    # -- what comes in

    def admit(self, one: Item) -> Ticket:
        return self.mesh.admit(one.key, header=one.queryable, address=one.header.source_address)

    def send(self, *items: Item) -> None:
        self.mesh.send(*items, by="gateway")

    def event(
        self, *events: dict[str, Any], domain: str = "default", manager: str = "connectivity-manager-0", **one: Any
    ) -> None:
        """What a manager tells the database: one event, or some at once."""
        news = []
        for event in events or (one,):
            self.sequences[manager] = self.sequences.get(manager, 0) + 1
            news.append(db.RisEvent(sequence=self.sequences[manager], domain=domain, **event))
        request = db.ApplyRisEventsRequest(manager=manager, manager_epoch=EPOCH, events=news)
        self.client(manager, "OrderService").ApplyRisEvents(request, timeout=30.0)

    def order(self, *orders: db.Order) -> None:
        """Orders come: to the manager, and by it to the database."""
        for one in orders:
            self.manager.orders = [o for o in self.manager.orders if o.order_id != one.order_id] + [one]
            self.event(order=one)

    # -- what became of it

    def admissions(self, study: object = "", **filters: Any) -> list[db.Admission]:
        request = db.ListAdmissionsRequest(
            study_instance_uid=uid("study", study) if study != "" else "", page_size=1000, **filters
        )
        return list(self.client("network-gateway", "StudyService").ListAdmissions(request, timeout=30.0).admissions)

    def is_(self, study: object, state: int, reason: str = "", admissions: int = 1) -> bool:
        try:
            found = self.admissions(study)
        except RadmeshError as error:
            assert error.transient  # it was started a moment ago
            return False
        return len(found) >= admissions and any((a.verification, a.reason) == (state, reason) for a in found)

    def wait(self, study: object, state: int, reason: str = "") -> None:
        try:
            wait_for(lambda: self.is_(study, state, reason))
        except AssertionError:
            raise AssertionError([(a.verification, a.reason) for a in self.admissions(study)]) from None

    def moves(self, study: object) -> list[tuple[str, str, str]]:
        """The history of the verification axis."""
        request = db.ListHistoryRequest(study_instance_uid=uid("study", study))
        entries = self.client("network-gateway", "StudyService").ListHistory(request, timeout=30.0).entries
        return [(getattr(e, "from"), e.to, e.reason) for e in entries if e.axis == "verification"]

    def shown(self, study: object) -> db.Study:
        request = db.GetStudyRequest(study_instance_uid=uid("study", study))
        detail = self.client("application-server", "QueryService").GetStudy(request, timeout=30.0)
        found: db.Study = detail.study
        return found

    def visible(self, study: object) -> bool:
        try:
            self.shown(study)
        except RadmeshError as error:
            assert error.reason == "STUDY_NOT_FOUND"
            return False
        return True

    def release(self, study: object, **fields: Any) -> list[db.Admission]:
        holds = self.mesh.client("application-server", gw, "HoldService", "network-gateway")
        request = gw.ReleaseHoldRequest(study_instance_uid=uid("study", study), actor="jane", **fields)
        return list(holds.ReleaseHold(request, timeout=60.0).admissions)

    def audit(self, action: str) -> list[tuple[str, str, dict[str, Any]]]:
        accounts = self.client("application-server", "AccountService")
        events = accounts.ListAudit(db.ListAuditRequest(action=action), timeout=30.0).events
        return [(e.actor, e.object, json.loads(e.detail)) for e in events]

    def close(self) -> None:
        self.manager.stop()
        self.town.stop()
        self.mesh.close()


def study(name: object, station: str = "CT1", accession: str = "A1", patient: str = "P1", **more: Any) -> Item:
    return item(name, 1, station=station, AccessionNumber=accession, PatientID=patient, StudyDate="20260101", **more)


class Hospital:
    """The manager of the domain `default` as it is wired, with a RIS that sends HL7."""

    def __init__(self, world: World) -> None:
        world.manager.stop()
        self._world = world
        self.start()

    def start(self) -> None:
        context = self._world.mesh.mesh.context("connectivity-manager-0")
        self.manager = manager_module.module(manager_config.Section(hl7_port=0), context)
        self.manager.start()
        self._ris = RawPeer(int(self.manager.endpoints()["hl7"].rpartition(":")[2]))

    def say(self, *messages: bytes) -> None:
        for message in messages:
            answer = self._ris.ask(message)
            assert code(answer) == "AA", answer

    def stop(self) -> None:
        self._ris.close()
        self.manager.stop(1.0)
