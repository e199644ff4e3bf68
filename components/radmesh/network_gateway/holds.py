"""Releases what is held: verified again now, or answered for by a person."""

import json
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.network_gateway.policy import HELD, NOT_REQUIRED, OVERRIDDEN, PENDING, UNVERIFIED, VERIFIED, Standing
from radmesh.network_gateway.verifier import Verifier
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError

_SERVICES: Final = database_pb2.DESCRIPTOR.services_by_name
_CALL_SECONDS: Final = 5.0
_REASON_MOST: Final = 512
_TRIES: Final = 5
_OPEN: Final = frozenset((PENDING, UNVERIFIED, HELD))


class Holds:
    """Decisions of people about admissions, each with its audit event."""

    def __init__(self, context: Context, verifier: Verifier) -> None:
        self._clock = context.clock
        self._verifier = verifier
        self._accounts = context.client(_SERVICES["AccountService"], "database-server")
        self._queries = context.client(_SERVICES["QueryService"], "database-server")

    def release(
        self, study_instance_uid: str, digest: bytes, *, actor: str, override: bool = False, note: str = ""
    ) -> list[database_pb2.Admission]:
        """Verify admissions of a study again, or make them UNVERIFIED (OVERRIDDEN); return them as they are then.

        Args:
            study_instance_uid: the study.
            digest: of one admission key; empty = all that are not verified.
            actor: user name.
            override: a person takes the responsibility.
            note: why; 1 to 512 characters.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, ADMISSION_UNKNOWN, OVERRIDE_REASON_MISSING, or the database does not answer.
        """
        if override and not 1 <= len(note.strip()) <= _REASON_MOST:
            raise RadmeshError("OVERRIDE_REASON_MISSING", f"say why, in 1 to {_REASON_MOST} characters")
        for number, one in enumerate(self._found(study_instance_uid, digest)):
            if override:
                self._override(one, actor, note.strip())
            elif one.state in _OPEN or digest:
                verdict = self._verifier.settle(one, anyway=number == 0, actor=actor)
                self._audit("ADMISSION_VERIFIED_AGAIN", one, actor, {"outcome": verdict.reason or "VERIFIED"})
        messages, _ = self._verifier.studies.messages(study_instance_uid=study_instance_uid)
        return [m for m in messages if digest in (b"", m.admission_key_digest)]

    def _found(self, study_instance_uid: str, digest: bytes) -> list[Standing]:
        found = self._verifier.studies.all(study_instance_uid=study_instance_uid)
        if not found:
            # Says that there is no such study, if so; one without admissions is being registered at this moment.
            request = database_pb2.GetStudyRequest(study_instance_uid=study_instance_uid, include_held=True)
            self._queries.GetStudy(request, timeout=_CALL_SECONDS)
        if digest:
            found = [one for one in found if one.digest == digest]
            if not found:
                raise RadmeshError("ADMISSION_UNKNOWN", "the study has no such admission key")
        return found

    def _override(self, one: Standing, actor: str, note: str) -> None:
        for tries in range(_TRIES):
            if one.state in (VERIFIED, NOT_REQUIRED) or one.reason == OVERRIDDEN:
                return
            try:
                self._verifier.override(one, actor, note)
                break
            except RadmeshError as error:
                if error.reason != "VERSION_CONFLICT" or tries == _TRIES - 1:
                    raise
            (one,) = self._found(one.facts.key.study_instance_uid, one.digest)
        self._audit("ADMISSION_OVERRIDDEN", one, actor, {"was": one.reason, "reason": note})

    def _audit(self, action: str, one: Standing, actor: str, detail: dict[str, Any]) -> None:
        event = database_pb2.AuditEvent(
            action=action,
            actor=actor,
            outcome="SUCCESS",
            object=one.facts.key.study_instance_uid,
            detail=json.dumps({"admission_key": one.digest.hex(), **detail}),
        )
        event.time.FromDatetime(self._clock.now())
        self._accounts.AppendAudit(database_pb2.AppendAuditRequest(events=[event]), timeout=_CALL_SECONDS)
