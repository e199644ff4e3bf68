"""The door to what stands between a study and its RIS: orders, holds, merges, reports, HL7 messages."""

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.application_server.audit import Audit
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, Person, roles_of
from radmesh.runtime.security import component_of

_RIS: Final = pb.DESCRIPTOR.services_by_name["RisService"].methods_by_name
_CONNECTIVITY: Final = connectivity_pb2.DESCRIPTOR.services_by_name
_MANAGER: Final = "connectivity-manager"
_MANAGER_SECONDS: Final = 5.0
# Every admission of a study is verified anew, and a RIS has seconds to answer for each.
_RELEASE_SECONDS: Final = 60.0
_PAGE: Final = 100
_MOST: Final = 1000


_RECONCILERS: Final = roles_of(_RIS["ListAdmissions"])


def may_reconcile(person: Person) -> bool:
    """Whether the person has the right `reconcile`: sees what is held, and decides about it."""
    return person.role in _RECONCILERS


def _person(call: Call) -> Person:
    assert call.person is not None
    return call.person


@dataclass(frozen=True, slots=True)
class Manager:
    """One Connectivity Manager: its instance name, and the calls of its two services."""

    name: str
    connectivity: Any
    messages: Any


def managers_of(context: Context) -> list[Manager]:
    """Return the Connectivity Managers that have an address, by name.

    An instance is also reached under its component's name, and is there once.
    """
    by_target = {}
    for name, target in context.addresses.items():
        if component_of(name) == _MANAGER and (name != _MANAGER or target not in by_target):
            by_target[target] = name
    return [
        Manager(
            name,
            context.client(_CONNECTIVITY["ConnectivityService"], target),
            context.client(_CONNECTIVITY["MessageService"], target),
        )
        for target, name in sorted(by_target.items(), key=lambda pair: pair[1])
    ]


def domains_of(context: Context) -> dict[str, str]:
    """Return the configured domains, each with the instance name of its Connectivity Manager; with none, `default`."""
    configured = context.settings.get("domains", ())
    return {domain.name: f"{_MANAGER}-{domain.manager}" for domain in configured} or {"default": f"{_MANAGER}-0"}


class RisService:
    """application.v1.RisService."""

    def __init__(
        self,
        *,
        queries: Any,
        studies: Any,
        orders: Any,
        reports: Any,
        holds: Any,
        managers: Sequence[Manager],
        domains: Mapping[str, str],
        audit: Audit,
    ) -> None:
        """Wire.

        Args:
            queries: database.v1.QueryService.
            studies: database.v1.StudyService.
            orders: database.v1.OrderService.
            reports: database.v1.ReportService.
            holds: gateway.v1.HoldService.
            managers: the Connectivity Managers.
            domains: name of each configured domain -> instance name of its manager.
            audit: where accesses are written.
        """
        self._queries = queries
        self._studies = studies
        self._orders = orders
        self._reports = reports
        self._holds = holds
        self._managers = {manager.name: manager for manager in managers}
        self._domains = domains
        self._audit = audit

    # -- holds --------------------------------------------------------------------------------------------------------

    def ListAdmissions(
        self, request: database_pb2.ListAdmissionsRequest, call: Call
    ) -> database_pb2.ListAdmissionsResponse:
        """List what is held, pending or unverified."""
        self._audit_list("HOLD_LIST", request, call, request.study_instance_uid)
        answer: database_pb2.ListAdmissionsResponse = self._studies.ListAdmissions(request)
        return answer

    def ReleaseHold(self, request: gateway_pb2.ReleaseHoldRequest, call: Call) -> gateway_pb2.ReleaseHoldResponse:
        """Verify again, or let a person take the responsibility."""
        person = _person(call)
        request.actor = person.name
        detail: dict[str, object] = {}
        if request.override:
            detail = {"override": True, "reason": request.override_reason[:512]}
        if request.admission_key:
            detail["admission_key"] = request.admission_key.hex()[:64]

        def release() -> gateway_pb2.ReleaseHoldResponse:
            if request.override and person.role != "administrator":
                raise RadmeshError("ROLE_REFUSED", f"the role {person.role} may verify again, and not override")
            released: gateway_pb2.ReleaseHoldResponse = self._holds.ReleaseHold(request, timeout=_RELEASE_SECONDS)
            return released

        answer: gateway_pb2.ReleaseHoldResponse = self._act(
            "HOLD_RELEASE", request.study_instance_uid, call, release, detail
        )
        return answer

    # -- orders and merges --------------------------------------------------------------------------------------------

    def FindOrders(self, request: database_pb2.FindOrdersRequest, call: Call) -> database_pb2.FindOrdersResponse:
        """Find orders."""
        self._audit_list("ORDER_QUERY", request, call)
        answer: database_pb2.FindOrdersResponse = self._orders.FindOrders(request)
        return answer

    def ListMerges(self, request: database_pb2.ListMergesRequest, call: Call) -> database_pb2.ListMergesResponse:
        """List merges of patients."""
        self._audit_list("MERGE_LIST", request, call)
        answer: database_pb2.ListMergesResponse = self._orders.ListMerges(request)
        return answer

    def UndoMerge(self, request: database_pb2.UndoMergeRequest, call: Call) -> database_pb2.Merge:
        """Give the studies back that a merge moved."""
        request.actor = _person(call).name
        answer: database_pb2.Merge = self._act(
            "MERGE_UNDO", str(request.id), call, lambda: self._orders.UndoMerge(request)
        )
        return answer

    # -- reports ------------------------------------------------------------------------------------------------------

    def SaveReport(self, request: database_pb2.SaveReportRequest, call: Call) -> database_pb2.Report:
        """Write the draft."""
        request.actor = _person(call).name
        return self._report("REPORT_WRITE", request, call, lambda: self._reports.SaveReport(request))

    def ApproveReport(self, request: database_pb2.ApproveReportRequest, call: Call) -> database_pb2.Report:
        """Approve the draft, which sends it."""
        request.actor = _person(call).name
        return self._report("REPORT_APPROVE", request, call, lambda: self._reports.ApproveReport(request))

    def _report(self, action: str, request: Any, call: Call, act: Callable[[], Any]) -> database_pb2.Report:
        uid = request.study_instance_uid

        def seen() -> Any:
            self._see(uid, call)
            return act()

        answer: database_pb2.Report = self._act(action, uid, call, seen)
        return answer

    def ListReports(self, request: database_pb2.ListReportsRequest, call: Call) -> database_pb2.ListReportsResponse:
        """List reports of studies that the caller may see."""
        uid = request.study_instance_uid
        if uid:
            self._see(uid, call)
            self._audit.access("REPORT_SHOW", call, uid)
            answer: database_pb2.ListReportsResponse = self._reports.ListReports(request)
            return answer
        self._audit_list("REPORT_LIST", request, call)
        request.page_size = _page_size(request.page_size)
        found: database_pb2.ListReportsResponse = self._reports.ListReports(request)
        visible = self._visible({report.study_instance_uid for report in found.reports}, call)
        return database_pb2.ListReportsResponse(
            reports=[report for report in found.reports if report.study_instance_uid in visible],
            next_page_token=found.next_page_token,
        )

    def _see(self, study_instance_uid: str, call: Call) -> None:
        """Return if the caller may see the study.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        self._queries.GetStudy(
            database_pb2.GetStudyRequest(
                study_instance_uid=study_instance_uid, include_held=may_reconcile(_person(call))
            )
        )

    def _visible(self, studies: set[str], call: Call) -> set[str]:
        """Return those of `studies`, at most 1,000, that the caller may see."""
        if not studies:
            return set()
        request = database_pb2.FindStudiesRequest(
            study_instance_uids=sorted(studies), include_held=may_reconcile(_person(call)), page_size=_MOST
        )
        return {study.study_instance_uid for study in self._queries.FindStudies(request).studies}

    # -- HL7 ----------------------------------------------------------------------------------------------------------

    def ListDomains(
        self, request: connectivity_pb2.ListDomainsRequest, _call: Call
    ) -> connectivity_pb2.ListDomainsResponse:
        """Ask every Connectivity Manager; a domain whose manager does not answer is not available."""
        domains: dict[str, connectivity_pb2.Domain] = {}
        for manager in self._managers.values():
            try:
                answer = manager.connectivity.ListDomains(request, timeout=_MANAGER_SECONDS)
            except RadmeshError as error:
                if not error.transient:
                    raise
                continue
            domains |= {domain.name: domain for domain in answer.domains}
        for name, where in self._domains.items():
            domains.setdefault(name, connectivity_pb2.Domain(name=name, manager=where))
        return connectivity_pb2.ListDomainsResponse(domains=[domains[name] for name in sorted(domains)])

    def ListMessages(
        self, request: connectivity_pb2.ListMessagesRequest, call: Call
    ) -> connectivity_pb2.ListMessagesResponse:
        """List the messages of all Connectivity Managers, newest first."""
        self._audit_list("HL7_LIST", request, call, request.domain)
        size = _page_size(request.page_size)
        positions = _positions(request.page_token)
        only = self._managers.get(self._domains.get(request.domain, ""))
        managers = [
            manager
            for manager in ([only] if only else self._managers.values())
            if not request.page_token or manager.name in positions
        ]
        after: dict[str, Position] = {}
        streams = [_newest_first(manager, request, positions.get(manager.name, _START), after) for manager in managers]
        merged = heapq.merge(*streams, key=lambda item: (item[1].time.seconds, item[1].time.nanos), reverse=True)
        taken: list[connectivity_pb2.Message] = []
        for name, message, position in merged:
            if len(taken) == size:
                token = json.dumps(after)
                return connectivity_pb2.ListMessagesResponse(messages=taken, next_page_token=token)
            taken.append(message)
            after[name] = position
        return connectivity_pb2.ListMessagesResponse(messages=taken)

    def GetMessage(self, request: connectivity_pb2.GetMessageRequest, call: Call) -> connectivity_pb2.Message:
        """Return a message with its bytes: they are a patient's."""
        manager = self._manager(request.manager)
        self._audit.record("HL7_READ", call, object_id=f"{manager.name}/{request.id}")
        answer: connectivity_pb2.Message = manager.messages.GetMessage(request)
        return answer

    def ReplayMessage(self, request: connectivity_pb2.ReplayMessageRequest, call: Call) -> connectivity_pb2.Message:
        """Let a dead letter take effect again."""
        request.actor = _person(call).name
        manager = self._manager(request.manager)
        answer: connectivity_pb2.Message = self._act(
            "HL7_REPLAY", f"{manager.name}/{request.id}", call, lambda: manager.messages.ReplayMessage(request)
        )
        return answer

    def _manager(self, name: str) -> Manager:
        if not self._managers:
            raise RadmeshError("COMPONENT_UNKNOWN", "this cluster has no Connectivity Manager")
        if not name and len(self._managers) == 1:
            return next(iter(self._managers.values()))
        if name not in self._managers:
            raise RadmeshError(
                "FIELD_INVALID", f"manager is one of: {', '.join(self._managers)}", metadata={"field": "manager"}
            )
        return self._managers[name]

    # -- the audit ----------------------------------------------------------------------------------------------------

    def _audit_list(self, action: str, request: Any, call: Call, about: str = "") -> None:
        """Write that a list was asked for, once for all its pages."""
        if not request.page_token:
            self._audit.record(action, call, object_id=about)

    def _act(
        self, action: str, about: str, call: Call, act: Callable[[], Any], detail: dict[str, object] | None = None
    ) -> Any:
        """Do what changes something, and write how it went."""
        try:
            answer = act()
        except RadmeshError as error:
            self._audit.record(action, call, outcome=error.reason, object_id=about, detail=detail)
            raise
        self._audit.record(action, call, object_id=about, detail=detail)
        return answer


# Where a list goes on at one manager: the token of a page, and the id below which it goes on (0 = any). Ids fall in the
# list, so that what comes in meanwhile is passed over.
Position = tuple[str, int]
_START: Final[Position] = ("", 0)


def _page_size(asked: int) -> int:
    """Return how many to list.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if asked < 0:
        raise RadmeshError("FIELD_INVALID", "page_size: 0 or more", metadata={"field": "page_size"})
    return min(asked or _PAGE, _MOST)


def _positions(token: str) -> dict[str, Position]:
    """Return where a list goes on, by manager.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if not token:
        return {}
    try:
        return {str(name): (str(page), int(last)) for name, (page, last) in json.loads(token).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RadmeshError(
            "FIELD_INVALID", "the page token is not of an answer", metadata={"field": "page_token"}
        ) from None


def _newest_first(
    manager: Manager, request: connectivity_pb2.ListMessagesRequest, position: Position, after: dict[str, Position]
) -> Iterator[tuple[str, connectivity_pb2.Message, Position]]:
    """Yield a manager's messages from `position` on, each with the position behind it.

    In `after` is noted where its first one is, for a list that ends before that is taken; a log without any is not.

    Raises:
        RadmeshError: the manager does not answer.
    """
    page, below = position
    asked = connectivity_pb2.ListMessagesRequest()
    asked.CopyFrom(request)
    asked.page_size = _page_size(request.page_size)
    while True:
        asked.page_token = page
        try:
            answer = manager.messages.ListMessages(asked, timeout=_MANAGER_SECONDS)
        except RadmeshError as error:
            if not error.transient:
                raise
            text = f"{manager.name} does not answer: try again, or ask for a domain of another"
            raise RadmeshError(error.reason, text) from error
        for message in answer.messages:
            if not below or message.id < below:
                after.setdefault(manager.name, (page, message.id + 1))
                yield manager.name, message, (page, message.id)
        if not answer.next_page_token:
            return
        page = answer.next_page_token
