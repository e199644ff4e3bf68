"""What persons do with a study: they report, approve, move its status, release its holds."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.application_server.http.app import Door, Request, parameter_problem
from radmesh.application_server.http.parameters import Query, given, number, only, uid
from radmesh.application_server.http.routes import Route
from radmesh.application_server.http.values import state, to_json
from radmesh.application_server.ris import may_reconcile
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, roles_of

_RIS: Final = pb.DESCRIPTOR.services_by_name["RisService"].methods_by_name
_ADMINISTRATION: Final = pb.DESCRIPTOR.services_by_name["AdministrationService"].methods_by_name
_ENUMS: Final = database_pb2.DESCRIPTOR.enum_types_by_name
_VERIFICATIONS: Final = common_pb2.DESCRIPTOR.enum_types_by_name["VerificationState"]
# 256 KiB of UTF-8, each byte of it written as six at most.
_REPORT_MOST: Final = 2 << 20
# Axis -> who moves it, and whereto. An approval is a report's, and sends it.
_MOVES: Final = {
    "reading": (("radiologist",), "ReadingState", ("DICTATED", "TRANSCRIBED")),
    "acquisition": (
        ("technologist", "administrator"),
        "AcquisitionState",
        ("STARTED", "COMPLETED", "DISCONTINUED"),
    ),
}


def routes(door: Door) -> Sequence[Route]:
    """Return what changes a study, the holds, and the cluster's status."""
    ris = door.ris_service

    async def save(request: Request) -> Response:
        study = uid(request, "study")
        fields = only(await request.fields(_REPORT_MOST), "text", "transcribed", "expected_version")
        asked = database_pb2.SaveReportRequest(
            study_instance_uid=study,
            text=given(fields, "text", ""),
            transcribed=given(fields, "transcribed", default=False),
            expected_version=given(fields, "expected_version", 0),
        )
        return JSONResponse(to_json(await door.run(ris.SaveReport, asked, request.call)))

    async def approve(request: Request) -> Response:
        only(await request.fields())
        asked = database_pb2.ApproveReportRequest(
            study_instance_uid=uid(request, "study"), version=number(request, "version")
        )
        return JSONResponse(to_json(await door.run(ris.ApproveReport, asked, request.call)))

    async def move(request: Request) -> Response:
        study = uid(request, "study")
        fields = only(await request.fields(), *_MOVES, "reason", "expected_version")
        axes = [axis for axis in _MOVES if given(fields, axis, "")]
        if len(axes) != 1:
            raise parameter_problem("body", f"exactly one of {', '.join(_MOVES)}")
        axis = axes[0]
        roles, enum, allowed = _MOVES[axis]
        to = given(fields, axis, "").upper()
        if to not in allowed:
            raise parameter_problem(axis, f"one of {', '.join(allowed)}; a report is approved under reports")
        role = request.person.role
        if role not in roles:
            raise RadmeshError("ROLE_REFUSED", f"the role {role} may not move {axis}")
        asked = database_pb2.SetStatusRequest(
            study_instance_uid=study,
            reason=given(fields, "reason", ""),
            expected_version=given(fields, "expected_version", 0),
            **{axis: state(_ENUMS[enum], to, axis)},  # type: ignore[arg-type]
        )
        return JSONResponse(to_json(await door.run(_set_status, door, asked, request.call)))

    async def holds(request: Request) -> Response:
        texts = ("study_instance_uid", "domain", "reason", "accession_number", "patient_id")
        query = Query(request, (*texts, "cursor", "limit"), ("verification",))
        states = query.texts("verification") or ["HELD"]
        asked = database_pb2.ListAdmissionsRequest(
            **{name: query.text(name) for name in texts},
            verifications=[state(_VERIFICATIONS, name, "verification") for name in states],  # type: ignore[misc]
            page_size=query.page_size(),
            page_token=query.text("cursor"),
        )
        found = await door.run(ris.ListAdmissions, asked, request.call)
        listed = [to_json(item) for item in found.admissions]
        return await door.answer(request, {"holds": listed, "next_cursor": found.next_page_token})

    async def release(request: Request) -> Response:
        study = uid(request, "study")
        fields = only(await request.fields(), "override", "reason", "admission_key")
        asked = gateway_pb2.ReleaseHoldRequest(
            study_instance_uid=study,
            override=given(fields, "override", default=False),
            override_reason=given(fields, "reason", ""),
            admission_key=_digest(given(fields, "admission_key", "")),
        )
        released = await door.run(ris.ReleaseHold, asked, request.call)
        return JSONResponse({"holds": [to_json(item) for item in released.admissions]})

    async def status(request: Request) -> Response:
        Query(request)
        found = await door.run(door.administration.GetClusterStatus, pb.GetClusterStatusRequest(), request.call)
        return await door.answer(request, to_json(found))

    def route(method: str, path: str, roles: tuple[str, ...], handler: Callable[..., Any], doc: str) -> Route:
        return Route(method, f"/api/v1/{path}", roles, handler, doc)

    movers = tuple(dict.fromkeys(role for roles, _, _ in _MOVES.values() for role in roles))
    return (
        route(
            "POST",
            "studies/{study}/reports",
            roles_of(_RIS["SaveReport"]),
            save,
            'Writes the draft: `{"text", "transcribed", "expected_version"}`.',
        ),
        route(
            "POST",
            "studies/{study}/reports/{version}/approve",
            roles_of(_RIS["ApproveReport"]),
            approve,
            "Approves the draft, which sends it.",
        ),
        route(
            "POST",
            "studies/{study}/status",
            movers,
            move,
            'Moves an axis: `{"reading": "DICTATED"}` or TRANSCRIBED by radiologists, `{"acquisition"}` by '
            'technologists and administrators; with `"reason"`, `"expected_version"`.',
        ),
        route(
            "GET",
            "holds",
            roles_of(_RIS["ListAdmissions"]),
            holds,
            "What is held, oldest first, or what is in a state of `verification`; `study_instance_uid`, `domain`, "
            "`reason`, `accession_number`, `patient_id`, `limit`, `cursor`.",
        ),
        route(
            "POST",
            "studies/{study}/release",
            roles_of(_RIS["ReleaseHold"]),
            release,
            'Verifies again: `{"admission_key"}` for one hold of several; `{"override": true, "reason"}`, by '
            "administrators, goes without an order.",
        ),
        route(
            "GET",
            "status",
            roles_of(_ADMINISTRATION["GetClusterStatus"]),
            status,
            "What every component says of itself.",
        ),
    )


def _set_status(door: Door, request: database_pb2.SetStatusRequest, call: Call) -> database_pb2.Study:
    """Move an axis of a study that the caller may see, and write how it went."""
    assert call.person is not None
    uid, request.actor = request.study_instance_uid, call.person.name
    detail: dict[str, object] = {
        "reading": database_pb2.ReadingState.Name(request.reading),
        "acquisition": database_pb2.AcquisitionState.Name(request.acquisition),
    }
    seen = database_pb2.GetStudyRequest(study_instance_uid=uid, include_held=may_reconcile(call.person))
    try:
        found = door.stubs["QueryService"].GetStudy(seen).study
        if request.reading and found.verification == common_pb2.VERIFICATION_STATE_HELD:
            raise RadmeshError("STUDY_HELD", "what is held is not read")
        study: database_pb2.Study = door.stubs["StudyService"].SetStatus(request)
    except RadmeshError as error:
        door.audit.record("STATUS_SET", call, outcome=error.reason, object_id=uid, detail=detail)
        raise
    door.audit.record("STATUS_SET", call, object_id=uid, detail=detail)
    return study


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b"?"
    if len(digest) not in (0, 32):
        raise parameter_problem("admission_key", "64 hexadecimal digits, as `admission_key_digest` of a hold")
    return digest
