"""What a Cluster says of orders, holds, merges, reports and HL7 messages."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from radmesh.api.application.v1 import application_pb2_grpc
from radmesh.api.common.v1 import common_pb2
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.client import convert, model
from radmesh.runtime.errors import RadmeshError

# A RIS is asked for every admission of a study.
_RELEASE_SECONDS = 90.0
_PAGE = 500
T = TypeVar("T")


class RisCalls:
    """The part of `Cluster` that stands between studies and their RIS."""

    _ris: application_pb2_grpc.RisServiceStub

    def _unary(self, method: Any, request: Any, timeout: float = 30.0) -> Any:
        raise NotImplementedError

    # -- orders and holds ---------------------------------------------------------------------------------------------

    def orders(
        self,
        *,
        order_id: str = "",
        domain: str = "",
        accession_number: str = "",
        patient_id: str = "",
        patient_name: str = "",
        modality: str = "",
        station_ae_title: str = "",
        scheduled: str = "",
        statuses: Iterable[str] = (),
        limit: int = 0,
    ) -> Iterator[model.Order]:
        """Yield orders by their scheduled time: the worklist.

        `*` and `?` are wildcards. `scheduled` is a date or range, as `study_date` of `find`. `limit` 0 = all.

        Raises:
            RadmeshError: FIELD_INVALID, SESSION_EXPIRED, ROLE_REFUSED, PEER_UNAVAILABLE.
        """
        first, last = convert.date_range(scheduled, "scheduled")
        request = database_pb2.FindOrdersRequest(
            order_id=order_id,
            domain=domain,
            accession_number=accession_number,
            patient_id=patient_id,
            patient_name=patient_name,
            modality=modality,
            station_ae_title=station_ae_title,
            scheduled_from=first,
            scheduled_to=last,
            statuses=[
                convert.enum_value(database_pb2.OrderStatus, "ORDER_STATUS_", status, "status") for status in statuses
            ],
        )
        return self._listed(self._ris.FindOrders, request, lambda page: map(convert.order, page.orders), limit)

    def admissions(
        self,
        study_instance_uid: str = "",
        *,
        verifications: Iterable[str] = (),
        domain: str = "",
        reason: str = "",
        accession_number: str = "",
        patient_id: str = "",
        limit: int = 0,
    ) -> Iterator[model.Admission]:
        """Yield admissions, oldest first: what is held, pending or unverified, and why.

        Raises:
            RadmeshError: FIELD_INVALID, ROLE_REFUSED.
        """
        request = database_pb2.ListAdmissionsRequest(
            study_instance_uid=study_instance_uid,
            verifications=[
                convert.enum_value(common_pb2.VerificationState, "VERIFICATION_STATE_", state, "verification")
                for state in verifications
            ],
            domain=domain,
            reason=reason,
            accession_number=accession_number,
            patient_id=patient_id,
        )
        return self._listed(
            self._ris.ListAdmissions, request, lambda page: map(convert.admission, page.admissions), limit
        )

    def release(
        self, study_instance_uid: str, *, admission_key: str = "", override_reason: str | None = None
    ) -> list[model.Admission]:
        """Verify the admissions of a study again, now; return them as they are then.

        With `override_reason` a person answers for them: they become visible and stay marked. That is for
        administrators.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, ADMISSION_UNKNOWN, OVERRIDE_REASON_MISSING, ROLE_REFUSED, FIELD_INVALID.
        """
        try:
            digest = bytes.fromhex(admission_key)
        except ValueError:
            raise RadmeshError(
                "FIELD_INVALID", "an admission key is hexadecimal, as holds lists it", metadata={"field": "key"}
            ) from None
        request = gateway_pb2.ReleaseHoldRequest(
            study_instance_uid=study_instance_uid,
            admission_key=digest,
            override=override_reason is not None,
            override_reason=override_reason or "",
        )
        answer = self._unary(self._ris.ReleaseHold, request, timeout=_RELEASE_SECONDS)
        return [convert.admission(message) for message in answer.admissions]

    # -- merges -------------------------------------------------------------------------------------------------------

    def merges(self, *, domain: str = "", limit: int = 0) -> Iterator[model.Merge]:
        """Yield merges of patients, newest first."""
        request = database_pb2.ListMergesRequest(domain=domain)
        return self._listed(self._ris.ListMerges, request, lambda page: map(convert.merge, page.merges), limit)

    def undo_merge(self, identifier: int) -> model.Merge:
        """Give the studies back that a merge moved.

        Raises:
            RadmeshError: MERGE_NOT_FOUND, MERGE_UNDONE, MERGE_BURIED.
        """
        return convert.merge(self._unary(self._ris.UndoMerge, database_pb2.UndoMergeRequest(id=identifier)))

    # -- reports ------------------------------------------------------------------------------------------------------

    def reports(self, study_instance_uid: str = "", *, delivery: str = "", limit: int = 0) -> Iterator[model.Report]:
        """Yield the versions of a study's report, newest first; without a study, those of all studies.

        `delivery`: only those that fare so at the RIS, such as "refused".

        Raises:
            RadmeshError: STUDY_NOT_FOUND, FIELD_INVALID.
        """
        request = database_pb2.ListReportsRequest(
            study_instance_uid=study_instance_uid,
            delivery=convert.enum_value(database_pb2.DeliveryState, "DELIVERY_STATE_", delivery, "delivery"),
        )
        # Reports are long: 256 KiB each, and an answer has 4 MiB.
        return self._listed(
            self._ris.ListReports, request, lambda page: map(convert.report, page.reports), limit, most=10
        )

    def save_report(
        self, study_instance_uid: str, text: str, *, transcribed: bool = False, expected_version: int = 0
    ) -> model.Report:
        """Write the draft of a study's report: of version 1, or, once that is approved, of an addendum.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, STUDY_HELD, REPORT_EMPTY, REPORT_TOO_LONG, VERSION_CONFLICT, ROLE_REFUSED.
        """
        request = database_pb2.SaveReportRequest(
            study_instance_uid=study_instance_uid, text=text, transcribed=transcribed, expected_version=expected_version
        )
        return convert.report(self._unary(self._ris.SaveReport, request))

    def approve_report(self, study_instance_uid: str, version: int = 0) -> model.Report:
        """Approve the draft (version 0), which sends it to the RIS; the same again changes nothing.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, REPORT_NOT_FOUND, STUDY_HELD, VERSION_CONFLICT, ROLE_REFUSED.
        """
        request = database_pb2.ApproveReportRequest(study_instance_uid=study_instance_uid, version=version)
        return convert.report(self._unary(self._ris.ApproveReport, request))

    # -- HL7 ----------------------------------------------------------------------------------------------------------

    def domains(self) -> list[model.Domain]:
        """Return the RIS domains, by name."""
        answer = self._unary(self._ris.ListDomains, connectivity_pb2.ListDomainsRequest())
        return [convert.domain(message) for message in answer.domains]

    def messages(
        self,
        *,
        domain: str = "",
        direction: str = "",
        state: str = "",
        type: str = "",  # noqa: A002 - the name of the field
        limit: int = 0,
    ) -> Iterator[model.Message]:
        """Yield HL7 messages that came and went, newest first, without their bytes.

        `direction` is "in" or "out"; `state` "done", "ignored", "waiting" or "dead"; `type` such as "ORM^O01".

        Raises:
            RadmeshError: FIELD_INVALID, ROLE_REFUSED, PEER_UNAVAILABLE.
        """
        request = connectivity_pb2.ListMessagesRequest(
            domain=domain,
            direction=convert.enum_value(
                connectivity_pb2.MessageDirection, "MESSAGE_DIRECTION_", direction, "direction"
            ),
            state=convert.enum_value(connectivity_pb2.MessageState, "MESSAGE_STATE_", state, "state"),
            type=type,
        )
        return self._listed(self._ris.ListMessages, request, lambda page: map(convert.message, page.messages), limit)

    def message(self, identifier: int, *, manager: str = "") -> model.Message:
        """Return a message with its bytes; `manager` says whose, where there are several Connectivity Managers.

        Raises:
            RadmeshError: MESSAGE_NOT_FOUND, FIELD_INVALID.
        """
        request = connectivity_pb2.GetMessageRequest(id=identifier, manager=manager)
        return convert.message(self._unary(self._ris.GetMessage, request))

    def replay_message(self, identifier: int, *, manager: str = "") -> model.Message:
        """Apply a dead letter once more, or send it again if it was ours.

        Raises:
            RadmeshError: MESSAGE_NOT_FOUND, MESSAGE_NOT_DEAD, FIELD_INVALID.
        """
        request = connectivity_pb2.ReplayMessageRequest(id=identifier, manager=manager)
        return convert.message(self._unary(self._ris.ReplayMessage, request))

    def _listed(
        self, method: Any, request: Any, items: Callable[[Any], Iterable[T]], limit: int, *, most: int = _PAGE
    ) -> Iterator[T]:
        """Yield what a List answers, page by page; `limit` 0 = all."""
        request.page_size = min(limit, most) if limit else most
        found = 0
        while True:
            page = self._unary(method, request)
            for item in items(page):
                yield item
                found += 1
                if found == limit:
                    return
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
