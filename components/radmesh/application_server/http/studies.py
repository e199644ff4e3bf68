"""Studies as JSON: the list, one of them with its series, instances and pictures, and what became of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from starlette.responses import Response

from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.audit import question_of
from radmesh.application_server.http.app import Door, Request, parameter_problem
from radmesh.application_server.http.parameters import Query, uid
from radmesh.application_server.http.routes import PERSONS, Route
from radmesh.application_server.http.values import state, to_json
from radmesh.application_server.ris import may_reconcile
from radmesh.dicom.uids import is_valid_uid
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call

_WEB_CACHES: Final = curator_pb2.DESCRIPTOR.services_by_name["WebCacheService"]
_ENUMS: Final = database_pb2.DESCRIPTOR.enum_types_by_name
_VERIFICATIONS: Final = common_pb2.DESCRIPTOR.enum_types_by_name["VerificationState"]
_TEXTS: Final = ("patient_name", "patient_id", "issuer_of_patient_id", "accession_number", "study_description")
_FILTERS: Final = (*_TEXTS, "study_date", "verification", "reading", "acquisition", "text", "cursor", "limit")
_PAGE: Final = 5000
_MANIFEST_SECONDS: Final = 10.0
# Of one answer: some 100 bytes each.
_MOST_FRAMES: Final = 200_000
# What `text` is looked for in, first to last; the last is where anything may stand.
_FOUND_BY: Final = ("study_instance_uids", "accession_number", "patient_id", "patient_name")


def routes(door: Door) -> Sequence[Route]:
    """Return what is under /api/v1/studies but reports, status and holds."""
    studies = Studies(door)

    async def find(request: Request) -> Response:
        held = _eyes(request.call)
        asked = studies.asked(Query(request, _FILTERS, ("modality",)), held=held)
        if not asked.request.page_token:
            await door.note_query(request.call, question_of(asked.request, asked.text))
        key = ("studies", held, request.scope["query_string"])
        return await door.answer_query(request, key, lambda: studies.find(asked))

    async def show(request: Request) -> Response:
        query = Query(request, ("frames", "instances"))
        study = uid(request, "study")
        detail = await door.study(request.call, study, fresh=True)
        answer = to_json(detail)
        if query.text("instances").lower() != "false":
            frames = query.flag("frames")
            by_series = await door.run(studies.instances, request.call, study, "", frames=frames)
            for series in answer["series"]:
                series["instances"] = by_series.get(series["series_instance_uid"], [])
        return await door.answer(request, answer)

    async def show_series(request: Request) -> Response:
        Query(request)
        study, series = uid(request, "study"), uid(request, "series")
        detail = await door.study(request.call, study, fresh=True)
        found = next((s for s in detail.series if s.series_instance_uid == series), None)
        if found is None:
            raise RadmeshError("SERIES_NOT_FOUND", "the study has no such series")
        by_series = await door.run(studies.instances, request.call, study, series, frames=True)
        return await door.answer(request, {**to_json(found), "instances": by_series.get(series, [])})

    def listing(method: Any, message: Any, key: str) -> Any:
        async def answer(request: Request) -> Response:
            query = Query(request, ("cursor", "limit"))
            asked = message(
                study_instance_uid=uid(request, "study"), page_size=query.page_size(), page_token=query.text("cursor")
            )
            found = await door.run(method, asked, request.call)
            items = [to_json(item) for item in getattr(found, key)]
            return await door.answer(request, {key: items, "next_cursor": found.next_page_token})

        return answer

    service = door.study_service
    history = listing(service.ListHistory, database_pb2.ListHistoryRequest, "entries")
    corrections = listing(service.ListCorrections, database_pb2.ListCorrectionsRequest, "corrections")
    reports = listing(door.ris_service.ListReports, database_pb2.ListReportsRequest, "reports")
    base = "/api/v1/studies"
    return (
        Route(
            "GET",
            base,
            PERSONS,
            find,
            "Finds studies, newest first: `patient_name`, `patient_id`, `issuer_of_patient_id`, `accession_number`, "
            "`study_description` (with `*` and `?`), `study_date` (a date or range), `modality`, `verification`, "
            "`reading`, `acquisition`, `text` (a UID, accession number, patient ID, or part of a name), `limit`, "
            "`cursor`.",
        ),
        Route(
            "GET",
            f"{base}/{{study}}",
            PERSONS,
            show,
            "A study, its series, their instances with what the Curators made of them; `frames=true`: with the size "
            "and the prefix lengths of every frame; `instances=false`: the series alone.",
        ),
        Route(
            "GET",
            f"{base}/{{study}}/series/{{series}}",
            PERSONS,
            show_series,
            "A series, its instances, the size and prefix lengths of every frame.",
        ),
        Route("GET", f"{base}/{{study}}/history", PERSONS, history, "Moves of the study's status, oldest first."),
        Route("GET", f"{base}/{{study}}/corrections", PERSONS, corrections, "Corrections, newest first."),
        Route("GET", f"{base}/{{study}}/reports", PERSONS, reports, "Reports, newest version first."),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A query for the list: what the database is asked for, what was typed, how its cursors begin."""

    request: database_pb2.FindStudiesRequest
    text: str
    prefix: str


class Studies:
    """Blocking calls behind the routes."""

    def __init__(self, door: Door) -> None:
        self._context: Context = door.context
        self._queries = door.stubs["QueryService"]
        self._curation = door.stubs["CurationService"]

    @staticmethod
    def asked(query: Query, *, held: bool) -> "Asked":
        """Return what a query for the list asks for.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        first, last = query.dates("study_date")
        request = database_pb2.FindStudiesRequest(
            **{name: query.text(name) for name in _TEXTS},  # type: ignore[arg-type]
            study_date_from=first,
            study_date_to=last,
            modalities=query.texts("modality"),
            verification=state(_VERIFICATIONS, query.text("verification"), "verification"),  # type: ignore[arg-type]
            reading=state(_ENUMS["ReadingState"], query.text("reading"), "reading"),  # type: ignore[arg-type]
            acquisition=state(_ENUMS["AcquisitionState"], query.text("acquisition"), "acquisition"),  # type: ignore[arg-type]
            page_size=query.page_size(),
            include_held=held,
        )
        by, colon, request.page_token = query.text("cursor").rpartition(":")
        return Asked(request, query.text("text"), f"{by}{colon}")

    def find(self, asked: "Asked") -> dict[str, Any]:
        """Return a page of the list.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        request, text, prefix = asked.request, asked.text.strip(), asked.prefix
        if text:
            by, found = self._by_text(request, text, prefix.removesuffix(":"))
            prefix = f"{by}:"
        elif prefix:
            raise parameter_problem("cursor", "of another query: begin without one")
        else:
            found = self._queries.FindStudies(request)
        token = found.next_page_token
        return {
            "studies": [to_json(study) for study in found.studies],
            "next_cursor": f"{prefix}{token}" if token else "",
        }

    def _by_text(self, request: database_pb2.FindStudiesRequest, text: str, by: str) -> tuple[str, Any]:
        """Find what somebody typed; return what it was found as, which the next page must know, and the answer."""
        if any(getattr(request, name) for name in _FOUND_BY):
            raise parameter_problem("text", "not together with accession_number, patient_id or patient_name")
        if by and by not in _FOUND_BY:
            raise parameter_problem("cursor", "of another query: begin without one")
        found: Any = database_pb2.FindStudiesResponse()
        for name in (by,) if by else _FOUND_BY:
            asked = database_pb2.FindStudiesRequest()
            asked.CopyFrom(request)
            if name == "study_instance_uids":
                if not is_valid_uid(text):
                    continue
                asked.study_instance_uids.append(text)
            else:
                setattr(asked, name, f"*{text}*" if name == "patient_name" else text)
            by, found = name, self._queries.FindStudies(asked)
            if found.studies:
                break
        return by, found

    def instances(self, call: Call, study: str, series: str, *, frames: bool) -> dict[str, list[dict[str, Any]]]:
        """Return the current instances of a study, or of one series of it, by series.

        Raises:
            RadmeshError: STUDY_NOT_FOUND; MESSAGE_TOO_LARGE: so many frames are asked for by series.
        """
        about = {"study_instance_uid": study, "series_instance_uid": series, "include_held": _eyes(call)}
        wanted = database_pb2.FindInstancesRequest(**about, page_size=_PAGE)  # type: ignore[arg-type]
        made = database_pb2.FindRenditionsRequest(**about, page_size=_PAGE)  # type: ignore[arg-type]
        renditions: dict[_Content, Any] = {}
        for rendition in _pages(self._curation.FindRenditions, made, "renditions"):
            # Those of web caches that live come first.
            renditions.setdefault(_content(rendition.identity), rendition)
        manifest = self._manifest(study, series, renditions) if frames else {}
        found: dict[str, list[dict[str, Any]]] = {}
        for instance in _pages(self._queries.FindInstances, wanted, "instances"):
            if not instance.current:
                continue
            about_it = to_json(instance)
            content = _content(instance.identity)
            about_it |= about_it.pop("identity")
            rendition = renditions.get(content)
            about_it["rendition"] = _without_identity(rendition) if rendition is not None else None
            if frames:
                about_it["frames"] = manifest.get(content)
            found.setdefault(instance.series_instance_uid, []).append(about_it)
        return found

    def _manifest(self, study: str, series: str, renditions: Mapping["_Content", Any]) -> dict["_Content", Any]:
        """Return the frames of each content, as far as web caches answer."""
        number = sum(rendition.number_of_frames for rendition in renditions.values())
        if number > _MOST_FRAMES:
            remedy = "ask by series" if not series else "DICOMweb tells the size of each"
            raise RadmeshError("MESSAGE_TOO_LARGE", f"{number} frames are more than one answer lists: {remedy}")
        found: dict[_Content, Any] = {}
        request = curator_pb2.GetManifestRequest(study_instance_uid=study, series_instance_uid=series)
        for target in {rendition.target for rendition in renditions.values()} - {""}:
            try:
                web_cache = self._context.client(_WEB_CACHES, target)
                for message in web_cache.GetManifest(request, timeout=_MANIFEST_SECONDS):
                    for instance in message.instances:
                        content = _content(instance.rendition.identity)
                        if content in renditions and renditions[content].target == target:
                            found[content] = [to_json(frame) for frame in instance.frames]
            except RadmeshError as error:
                # Its sizes are not known for now; that it is coded is.
                if not error.transient and error.reason != "RENDITION_NOT_FOUND":
                    raise
        return found


_Content: TypeAlias = tuple[str, str, bytes]


def _content(identity: common_pb2.ContentIdentity) -> _Content:
    return identity.sop_instance_uid, identity.transfer_syntax_uid, identity.sha256


def _without_identity(rendition: database_pb2.Rendition) -> dict[str, Any]:
    left_out = ("identity", "study_instance_uid", "series_instance_uid")
    return {name: value for name, value in to_json(rendition).items() if name not in left_out}


def _eyes(call: Call) -> bool:
    return call.person is not None and may_reconcile(call.person)


def _pages(method: Callable[[Any], Any], request: Any, key: str) -> Iterator[Any]:
    while True:
        answer = method(request)
        yield from getattr(answer, key)
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
