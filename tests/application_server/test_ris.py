"""The door to the RIS: who may what, what is audited, and several Connectivity Managers as one."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_support import refused
from hypothesis import given
from hypothesis import strategies as st

from radmesh.api.connectivity.v1 import connectivity_pb2 as hl7
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.application_server.audit import Audit
from radmesh.application_server.ris import Manager, RisService, domains_of, managers_of
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Person

UID = "1.2.3"


@dataclass
class Log:
    """One manager's message log, newest first, as MessageService pages it."""

    name: str
    messages: list[hl7.Message] = field(default_factory=list)
    silent: bool = False

    def append(self, seconds: int) -> None:
        message = hl7.Message(id=len(self.messages) + 1, manager=self.name)
        message.time.seconds = max([seconds, *(m.time.seconds for m in self.messages[-1:])])
        self.messages.append(message)

    def ListMessages(self, request: hl7.ListMessagesRequest, timeout: float = 0) -> hl7.ListMessagesResponse:
        if self.silent:
            raise RadmeshError("PEER_UNAVAILABLE", "no")
        below = int(request.page_token or len(self.messages) + 1)
        found = [m for m in reversed(self.messages) if m.id < below]
        page = found[: request.page_size]
        token = str(page[-1].id) if len(found) > len(page) else ""
        return hl7.ListMessagesResponse(messages=page, next_page_token=token)

    def GetMessage(self, request: hl7.GetMessageRequest) -> hl7.Message:
        return next(m for m in self.messages if m.id == request.id)

    def ReplayMessage(self, request: hl7.ReplayMessageRequest) -> hl7.Message:
        return hl7.Message(id=request.id, manager=self.name, reason=request.actor)

    def ListDomains(self, request: hl7.ListDomainsRequest, timeout: float = 0) -> hl7.ListDomainsResponse:
        if self.silent:
            raise RadmeshError("PEER_UNAVAILABLE", "no")
        return hl7.ListDomainsResponse(domains=[hl7.Domain(name=f"of-{self.name}", manager=self.name, available=True)])

    def manager(self) -> Manager:
        return Manager(self.name, self, self)


class Mesh:
    """What the door asks, with a study that is held and one that is not."""

    def __init__(self, *logs: Log, domains: dict[str, str] | None = None) -> None:
        self.events: list[database_pb2.AuditEvent] = []
        self.asked: list[Any] = []
        self.door = RisService(
            queries=self,
            studies=self,
            orders=self,
            reports=self,
            holds=self,
            managers=[log.manager() for log in logs],
            domains=domains or {},
            audit=Audit(self, ManualClock()),
        )

    def AppendAudit(self, request: Any) -> None:
        self.events += request.events

    def audited(self) -> list[tuple[str, str, str, str]]:
        return [(e.action, e.actor, e.outcome, e.object) for e in self.events]

    def _asked(self, request: Any) -> None:
        self.asked.append(type(request).FromString(request.SerializeToString()))

    def GetStudy(self, request: database_pb2.GetStudyRequest) -> database_pb2.StudyDetail:
        if request.study_instance_uid != UID and not request.include_held:
            raise RadmeshError("STUDY_NOT_FOUND", "none")
        return database_pb2.StudyDetail()

    def FindStudies(self, request: database_pb2.FindStudiesRequest) -> database_pb2.FindStudiesResponse:
        uids = [uid for uid in request.study_instance_uids if uid == UID or request.include_held]
        return database_pb2.FindStudiesResponse(studies=[database_pb2.Study(study_instance_uid=uid) for uid in uids])

    def ListAdmissions(self, request: Any) -> database_pb2.ListAdmissionsResponse:
        self._asked(request)
        return database_pb2.ListAdmissionsResponse(next_page_token="more")

    def ReleaseHold(self, request: gateway_pb2.ReleaseHoldRequest, timeout: float) -> gateway_pb2.ReleaseHoldResponse:
        self._asked(request)
        if request.study_instance_uid != UID:
            raise RadmeshError("STUDY_NOT_FOUND", "none")
        return gateway_pb2.ReleaseHoldResponse()

    def FindOrders(self, request: Any) -> database_pb2.FindOrdersResponse:
        self._asked(request)
        return database_pb2.FindOrdersResponse()

    def ListMerges(self, request: Any) -> database_pb2.ListMergesResponse:
        self._asked(request)
        return database_pb2.ListMergesResponse()

    def UndoMerge(self, request: Any) -> database_pb2.Merge:
        self._asked(request)
        return database_pb2.Merge(id=request.id)

    def SaveReport(self, request: Any) -> database_pb2.Report:
        self._asked(request)
        return database_pb2.Report(study_instance_uid=request.study_instance_uid)

    ApproveReport = SaveReport

    def ListReports(self, request: database_pb2.ListReportsRequest) -> database_pb2.ListReportsResponse:
        self._asked(request)
        uids = [request.study_instance_uid] if request.study_instance_uid else [UID, "held", UID]
        return database_pb2.ListReportsResponse(
            reports=[database_pb2.Report(study_instance_uid=uid) for uid in uids], next_page_token="more"
        )


def call(role: str = "administrator", name: str = "jo") -> Any:
    return SimpleNamespace(person=Person(name, role, "s1", "t"), peer="192.0.2.1")


# -- who, and the audit


def test_lists_are_audited_once_for_all_their_pages():
    mesh = Mesh(Log("connectivity-manager-0"))
    for list_them, request, about in (
        (mesh.door.ListAdmissions, database_pb2.ListAdmissionsRequest(study_instance_uid=UID), UID),
        (mesh.door.FindOrders, database_pb2.FindOrdersRequest(), ""),
        (mesh.door.ListMerges, database_pb2.ListMergesRequest(), ""),
        (mesh.door.ListReports, database_pb2.ListReportsRequest(), ""),
        (mesh.door.ListMessages, hl7.ListMessagesRequest(domain="clinic"), "clinic"),
    ):
        mesh.events.clear()
        list_them(request, call())
        request.page_token = "" if request.DESCRIPTOR.name == "ListMessagesRequest" else "more"
        if request.page_token:
            list_them(request, call())
        assert [(e.object, e.actor, e.outcome) for e in mesh.events] == [(about, "jo", "SUCCESS")], list_them


def test_the_caller_is_the_actor_whatever_the_request_says():
    mesh = Mesh(Log("connectivity-manager-0"))
    mesh.door.ReleaseHold(gateway_pb2.ReleaseHoldRequest(study_instance_uid=UID, actor="somebody"), call())
    mesh.door.UndoMerge(database_pb2.UndoMergeRequest(id=3, actor="somebody"), call())
    mesh.door.SaveReport(database_pb2.SaveReportRequest(study_instance_uid=UID, actor="somebody"), call("radiologist"))
    mesh.door.ApproveReport(database_pb2.ApproveReportRequest(study_instance_uid=UID, actor="x"), call("radiologist"))
    assert [request.actor for request in mesh.asked] == ["jo"] * 4
    assert mesh.door.ReplayMessage(hl7.ReplayMessageRequest(id=7, actor="somebody"), call()).reason == "jo"
    assert mesh.audited() == [
        ("HOLD_RELEASE", "jo", "SUCCESS", UID),
        ("MERGE_UNDO", "jo", "SUCCESS", "3"),
        ("REPORT_WRITE", "jo", "SUCCESS", UID),
        ("REPORT_APPROVE", "jo", "SUCCESS", UID),
        ("HL7_REPLAY", "jo", "SUCCESS", "connectivity-manager-0/7"),
    ]


def test_only_an_administrator_overrides_and_who_tries_is_in_the_audit():
    mesh = Mesh()
    request = gateway_pb2.ReleaseHoldRequest(study_instance_uid=UID, override=True, override_reason="the RIS is gone")
    with refused("ROLE_REFUSED"):
        mesh.door.ReleaseHold(request, call("technologist"))
    assert mesh.asked == []
    mesh.door.ReleaseHold(request, call("administrator"))
    assert [(e.action, e.outcome) for e in mesh.events] == [
        ("HOLD_RELEASE", "ROLE_REFUSED"),
        ("HOLD_RELEASE", "SUCCESS"),
    ]
    assert all('"reason": "the RIS is gone"' in e.detail for e in mesh.events)
    mesh.door.ReleaseHold(gateway_pb2.ReleaseHoldRequest(study_instance_uid=UID), call("technologist"))


def test_what_fails_is_audited_with_its_reason():
    mesh = Mesh()
    with refused("STUDY_NOT_FOUND"):
        mesh.door.ReleaseHold(gateway_pb2.ReleaseHoldRequest(study_instance_uid="9"), call())
    assert mesh.audited() == [("HOLD_RELEASE", "jo", "STUDY_NOT_FOUND", "9")]


def test_reports_of_a_held_study_are_not_there_for_who_may_not_see_it():
    mesh = Mesh()
    for ask, request in (
        (mesh.door.ListReports, database_pb2.ListReportsRequest(study_instance_uid="held")),
        (mesh.door.SaveReport, database_pb2.SaveReportRequest(study_instance_uid="held")),
        (mesh.door.ApproveReport, database_pb2.ApproveReportRequest(study_instance_uid="held")),
    ):
        with refused("STUDY_NOT_FOUND"):
            ask(request, call("radiologist"))
    assert mesh.asked == []
    listed = mesh.door.ListReports(database_pb2.ListReportsRequest(), call("radiologist"))
    assert [r.study_instance_uid for r in listed.reports] == [UID, UID]
    assert listed.next_page_token == "more"
    listed = mesh.door.ListReports(database_pb2.ListReportsRequest(), call("technologist"))
    assert [r.study_instance_uid for r in listed.reports] == [UID, "held", UID]


# -- several managers


def test_a_manager_is_one_whatever_names_it_has():
    made = []
    context: Any = SimpleNamespace(
        addresses={
            "archive-server": "unix:/a",
            "connectivity-manager": "unix:/c0",
            "connectivity-manager-1": "unix:/c1",
            "connectivity-manager-0": "unix:/c0",
        },
        client=lambda service, target: made.append((service.name, target)),
        settings={"domains": (SimpleNamespace(name="clinic", manager=1),)},
    )
    assert [m.name for m in managers_of(context)] == ["connectivity-manager-0", "connectivity-manager-1"]
    assert made[0] == ("ConnectivityService", "unix:/c0")
    assert domains_of(context) == {"clinic": "connectivity-manager-1"}
    context.addresses = {"connectivity-manager": "dns:///cm:7000"}
    context.settings = {}
    assert [m.name for m in managers_of(context)] == ["connectivity-manager"]
    assert domains_of(context) == {"default": "connectivity-manager-0"}


@given(
    times=st.lists(st.lists(st.integers(0, 20), max_size=12), min_size=1, max_size=3),
    size=st.integers(1, 5),
    later=st.lists(st.integers(0, 2), max_size=4),
)
def test_pages_of_several_logs_have_each_message_once_newest_first(times, size, later):
    logs = [Log(f"connectivity-manager-{n}") for n in range(len(times))]
    for log, seconds in zip(logs, times, strict=True):
        for second in sorted(seconds):
            log.append(second)
    before = [(m.manager, m.id) for log in logs for m in log.messages]
    mesh = Mesh(*logs)
    request = hl7.ListMessagesRequest(page_size=size)
    found: list[hl7.Message] = []
    coming = iter(later)
    while True:
        page = mesh.door.ListMessages(request, call())
        assert len(page.messages) <= size
        found += page.messages
        if not page.next_page_token:
            break
        assert len(page.messages) == size
        request.page_token = page.next_page_token
        # What comes in while somebody turns pages is on none of them.
        number = next(coming, None)
        if number is not None:
            logs[number % len(logs)].append(30)
    assert sorted((m.manager, m.id) for m in found) == sorted(before)
    seconds = [m.time.seconds for m in found]
    assert seconds == sorted(seconds, reverse=True)


def test_a_page_token_of_somewhere_else_is_refused():
    mesh = Mesh(Log("connectivity-manager-0"))
    for token in ("x", "[]", "{", '{"a": 1}', '{"a": [1]}', '{"a": ["", "b"]}', "[" * 100_000):
        with refused("FIELD_INVALID"):
            mesh.door.ListMessages(hl7.ListMessagesRequest(page_token=token), call())
    with refused("FIELD_INVALID"):
        mesh.door.ListMessages(hl7.ListMessagesRequest(page_size=-1), call())


def test_a_silent_manager_is_named_and_keeps_nobody_from_the_others():
    logs = [Log("connectivity-manager-0"), Log("connectivity-manager-1", silent=True)]
    logs[0].append(1)
    domains = {"clinic": "connectivity-manager-0", "town": "connectivity-manager-1"}
    mesh = Mesh(*logs, domains=domains)
    with pytest.raises(RadmeshError, match="connectivity-manager-1 does not answer") as failure:
        mesh.door.ListMessages(hl7.ListMessagesRequest(), call())
    assert failure.value.reason == "PEER_UNAVAILABLE"
    assert len(mesh.door.ListMessages(hl7.ListMessagesRequest(domain="clinic"), call()).messages) == 1
    listed = mesh.door.ListDomains(hl7.ListDomainsRequest(), call()).domains
    assert [(d.name, d.manager, d.available) for d in listed] == [
        ("clinic", "connectivity-manager-0", False),
        ("of-connectivity-manager-0", "connectivity-manager-0", True),
        ("town", "connectivity-manager-1", False),
    ]


def test_which_manager_has_a_message():
    logs = [Log("connectivity-manager-0"), Log("connectivity-manager-1")]
    for log in logs:
        log.append(1)
    mesh = Mesh(*logs)
    with refused("FIELD_INVALID"):
        mesh.door.GetMessage(hl7.GetMessageRequest(id=1), call())
    with refused("FIELD_INVALID"):
        mesh.door.GetMessage(hl7.GetMessageRequest(id=1, manager="connectivity-manager-2"), call())
    assert mesh.events == []
    got = mesh.door.GetMessage(hl7.GetMessageRequest(id=1, manager="connectivity-manager-1"), call())
    assert got.manager == "connectivity-manager-1"
    assert mesh.audited() == [("HL7_READ", "jo", "SUCCESS", "connectivity-manager-1/1")]
    assert Mesh(logs[0]).door.GetMessage(hl7.GetMessageRequest(id=1), call()).manager == "connectivity-manager-0"
    with refused("COMPONENT_UNKNOWN"):
        Mesh().door.GetMessage(hl7.GetMessageRequest(id=1), call())
