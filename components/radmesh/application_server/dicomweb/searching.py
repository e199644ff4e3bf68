"""QIDO-RS: searches, answered by the Database Server with the caller's eyes."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.responses import Response

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.audit import question_of
from radmesh.application_server.dicomweb import qido
from radmesh.application_server.dicomweb.negotiation import DICOM_JSON, Offer, choose, parse_accept
from radmesh.application_server.dicomweb.qido import INSTANCE, SERIES, STUDY, Search
from radmesh.application_server.http.app import Door, Request
from radmesh.application_server.http.parameters import uid
from radmesh.application_server.http.routes import PERSONS, Route
from radmesh.application_server.ris import may_reconcile
from radmesh.runtime.errors import RadmeshError

JSON_OFFERS: Final = (Offer(DICOM_JSON), Offer("application/json"))
# How many studies are looked at for one answer; what lies behind is told of by a Warning.
_MOST_STUDIES: Final = 20_000
_PAGE: Final = 1000
_INSTANCES_PAGE: Final = 5000
Found = tuple[Any, Any, Any]
Matches = tuple[tuple[qido.Attribute, str], ...]


def routes(door: Door) -> Sequence[Route]:
    """Return the searches of PS3.18 table 10.6.1-1."""

    def route(path: str, level: str, doc: str) -> Route:
        async def search(request: Request) -> Response:
            return await _answer(door, request, level)

        return Route("GET", f"/dicom-web{path}", PERSONS, search, doc)

    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    return (
        route("/studies", STUDY, "QIDO-RS: finds studies."),
        route("/series", SERIES, "QIDO-RS: finds series of all studies."),
        route("/instances", INSTANCE, "QIDO-RS: finds instances of all studies."),
        route(f"{study}/series", SERIES, "QIDO-RS: finds series of a study."),
        route(f"{study}/instances", INSTANCE, "QIDO-RS: finds instances of a study."),
        route(f"{series}/instances", INSTANCE, "QIDO-RS: finds instances of a series."),
    )


@lru_cache(256)
def _parsed(level: str, query: bytes, accept: str) -> tuple[Offer, Search]:
    """Return in which form the answer is wanted, and what is searched for.

    Raises:
        RadmeshError: NOT_ACCEPTABLE, FIELD_INVALID.
    """
    parameters = [part for part in query.split(b"&") if part]
    accepted = next((value for key, value in parse_qsl(query.decode("latin-1")) if key == "accept"), "")
    offer = choose(parse_accept(accepted or accept), JSON_OFFERS)
    return offer, qido.parse(level, b"&".join(part for part in parameters if not part.startswith(b"accept=")))


async def _answer(door: Door, request: Request, level: str) -> Response:
    query = request.scope["query_string"]
    offer, search = _parsed(level, query, request.headers.get("accept", ""))
    call = request.call
    held = may_reconcile(request.person)
    detail, series = None, ""
    if "study" in request.path_params:
        detail = await door.study(call, uid(request, "study"))
        if "series" in request.path_params:
            series = uid(request, "series")
            if all(one.series_instance_uid != series for one in detail.series):
                raise RadmeshError("SERIES_NOT_FOUND", "the study has no such series")
    else:
        await door.note_query(call, question_of(_first_page(search, held=held)[0]))
    base = qido.base_url(request.scope["scheme"], request.headers.get("host", ""))

    def find() -> tuple[bytes, list[str]]:
        walk = _Walk(door, search, held=held)
        found = walk.within(detail, series) if detail is not None else walk.everywhere()
        results, more = _cut(search, found)
        warnings = [*search.warnings]
        if more or walk.cut:
            warnings.append("There are additional results that can be requested.")
        written = qido.Results(search, base)
        text = json.dumps([written.write(*one) for one in results], ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace"), warnings

    key = ("search", request.scope["path"], query, base, held)
    body, warnings = await door.joined.get(key, lambda: door.run(find))
    response = Response(body, media_type=offer.type)
    for text in warnings:
        response.headers.append("Warning", qido.warning(base, text))
    return response


def _first_page(search: Search, *, held: bool) -> tuple[database_pb2.FindStudiesRequest, Matches]:
    """Return what the database is asked for, with the eyes of who searches, and what must be looked at afterwards."""
    request, rest = qido.request_of(search)
    asked = search.offset + search.limit + 1
    request.page_size = _PAGE if rest or asked > _PAGE else asked
    request.include_held = held
    return request, rest


def _cut(search: Search, found: Iterator[Found]) -> tuple[list[Found], bool]:
    """Return the results that are asked for, and whether there are more."""
    results: list[Found] = []
    for number, one in enumerate(found):
        if number < search.offset:
            continue
        if len(results) == search.limit:
            return results, True
        results.append(one)
    return results, False


class _Walk:
    """Walks through what a search may find, in a fixed order: studies newest first, then by number."""

    def __init__(self, door: Door, search: Search, *, held: bool) -> None:
        self._search = search
        self._held = held
        self._queries: Any = door.stubs["QueryService"]
        self.cut = False

    def _matching(self, level: str) -> Callable[[Any], bool]:
        wanted = self._search.of(level)
        fuzzy = self._search.fuzzy
        return lambda item: all(qido.matches(attribute, value, item, fuzzy=fuzzy) for attribute, value in wanted)

    def everywhere(self) -> Iterator[Found]:
        """Yield (study, series, instance) of all studies; of a search for studies series and instance are None."""
        request, rest = _first_page(self._search, held=self._held)
        opened = looked = 0
        while True:
            page = self._queries.FindStudies(request)
            for study in page.studies:
                if not all(qido.matches(attribute, value, study) for attribute, value in rest):
                    continue
                if self._search.level == STUDY:
                    yield study, None, None
                    continue
                if opened == qido.OPENED_MOST:
                    self.cut = True
                    return
                opened += 1
                yield from self._open(study.study_instance_uid)
            looked += len(page.studies)
            if not page.next_page_token:
                return
            if rest and looked >= _MOST_STUDIES:
                self.cut = True
                return
            request.page_token = page.next_page_token

    def _open(self, study_instance_uid: str) -> Iterator[Found]:
        request = database_pb2.GetStudyRequest(study_instance_uid=study_instance_uid, include_held=self._held)
        try:
            detail = self._queries.GetStudy(request)
        except RadmeshError as error:
            if error.reason != "STUDY_NOT_FOUND":
                raise
            # It was held, or changed hands, since it was listed.
            return
        yield from self._deeper(detail, "")

    def within(self, detail: database_pb2.StudyDetail, series_instance_uid: str) -> Iterator[Found]:
        """Yield what there is of a study, or of one series of it."""
        if self._matching(STUDY)(detail.study):
            yield from self._deeper(detail, series_instance_uid)

    def _deeper(self, detail: database_pb2.StudyDetail, series_instance_uid: str) -> Iterator[Found]:
        fits = self._matching(SERIES)
        series = {
            one.series_instance_uid: one
            for one in detail.series
            if series_instance_uid in ("", one.series_instance_uid) and fits(one)
        }
        if self._search.level == SERIES:
            for one in series.values():
                yield detail.study, one, None
            return
        fits = self._matching(INSTANCE)
        uids = next((v for a, v in self._search.of(INSTANCE) if a.keyword == "SOPInstanceUID" and "\\" not in v), "")
        request = database_pb2.FindInstancesRequest(
            study_instance_uid=detail.study.study_instance_uid,
            series_instance_uid=series_instance_uid,
            sop_instance_uid=uids,
            include_held=self._held,
            page_size=_INSTANCES_PAGE,
        )
        while series:
            page = self._queries.FindInstances(request)
            for instance in page.instances:
                if instance.series_instance_uid in series and fits(instance):
                    yield detail.study, series[instance.series_instance_uid], instance
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
