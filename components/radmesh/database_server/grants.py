"""Whether what was granted to a session may go on: what an Archive Server asks while local clients read."""

import sqlalchemy as sa

from radmesh.api.database.v1 import database_pb2 as pb
from radmesh.database_server.checks import checked
from radmesh.database_server.registry import HELD
from radmesh.database_server.schema import admissions, sessions, studies, users
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, micros


@checked()
class GrantService:
    """database.v1.GrantService."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def CheckGrant(self, request: pb.CheckGrantRequest, _call: Call) -> pb.CheckGrantResponse:
        """Say whose a session is, and whether instances of a study are held."""
        person = (
            sa.select(users.c.name, users.c.role)
            .join(sessions, sessions.c.user_name == users.c.name)
            .where(
                sessions.c.digest == request.session_digest,
                sessions.c.expire_time > micros(self._clock.now()),
            )
        )
        verification = (
            sa.select(admissions.c.verification)
            .join(studies, studies.c.id == admissions.c.study)
            .where(
                studies.c.study_instance_uid == request.study_instance_uid,
                admissions.c.digest == request.admission_key,
            )
        )
        with self._database.read() as connection:
            user = connection.execute(person).first()
            state = connection.execute(verification).scalar()
        if user is None:
            raise RadmeshError("SESSION_EXPIRED", "the session has ended: sign in again")
        return pb.CheckGrantResponse(user=user.name, role=user.role, held=state is None or state == HELD)
