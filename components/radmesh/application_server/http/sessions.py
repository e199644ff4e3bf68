"""Signing in and out: a token for programs, a cookie for browsers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.http.app import COOKIE, Door, Request, check_origin, parameter_problem
from radmesh.application_server.http.parameters import given, only
from radmesh.application_server.http.routes import ANYBODY, SIGNED_IN, Route

_MOST: Final = 8 << 10


def routes(door: Door) -> Sequence[Route]:
    """Return the three methods of /api/v1/session."""

    async def sign_in(request: Request) -> Response:
        check_origin(request.scope, required=False)
        fields = await request.fields(_MOST)
        only(fields, "user", "password", "token")
        user, password = given(fields, "user", ""), given(fields, "password", "")
        if not user or not password:
            raise parameter_problem("user, password", "both are needed")
        session = await door.run(
            door.session_service.SignIn, pb.SignInRequest(name=user, password=password), request.call
        )
        about = _about(session)
        if given(fields, "token", default=False):
            about["token"] = session.token
        response = JSONResponse(about)
        expires = session.expire_time.ToDatetime(tzinfo=UTC)
        _set_cookie(response, session.token, int((expires - datetime.now(UTC)).total_seconds()), request)
        return response

    async def who_am_i(request: Request) -> Response:
        session = await door.run(door.session_service.GetSession, pb.GetSessionRequest(), request.call)
        return JSONResponse(_about(session))

    async def sign_out(request: Request) -> Response:
        await door.run(door.session_service.SignOut, pb.SignOutRequest(), request.call)
        response = Response(status_code=204)
        _set_cookie(response, "", 0, request)
        return response

    path = "/api/v1/session"
    return (
        Route(
            "POST", path, ANYBODY, sign_in, 'Signs in: `{"user", "password"}`, with `"token": true` for a token too.'
        ),
        Route("GET", path, SIGNED_IN, who_am_i, "Says who the caller is."),
        Route("DELETE", path, SIGNED_IN, sign_out, "Signs out."),
    )


def _about(session: database_pb2.Session) -> dict[str, Any]:
    return {
        "user": session.user.name,
        "display_name": session.user.display_name,
        "role": database_pb2.Role.Name(session.user.role).removeprefix("ROLE_").lower(),
        "expires": session.expire_time.ToJsonString(),
    }


def _set_cookie(response: Response, token: str, seconds: int, request: Request) -> None:
    response.set_cookie(
        COOKIE,
        token,
        max_age=max(0, seconds),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
