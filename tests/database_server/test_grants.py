"""What an Archive Server asks while a local client reads: the session, its role, and what is held."""

from typing import Any

import pytest
from database_support import HELD, Parts, record, uid

from radmesh.api.database.v1 import database_pb2 as pb
from radmesh.database_server.accounts import ADMINISTRATOR, NONE, RADIOLOGIST
from radmesh.database_server.grants import GrantService
from radmesh.runtime.errors import RadmeshError

PASSWORD = "correct horse battery"
CALL: Any = None


class Grants:
    """A signed-in radiologist, and a study of two admissions."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.service = GrantService(parts.database, parts.clock)
        parts.accounts.create("doe", "", RADIOLOGIST, PASSWORD)
        self.token, session = parts.accounts.sign_in("doe", PASSWORD)
        self.digest = session["digest"]
        self.entry, self.other = record(sop=0), record(sop=1, station="CT2")
        parts.register(self.entry, self.other)

    def ask(self, **changes: Any) -> pb.CheckGrantResponse:
        asked = {
            "session_digest": self.digest,
            "study_instance_uid": self.entry.study_instance_uid,
            "admission_key": self.entry.admission_key,
        }
        return self.service.CheckGrant(pb.CheckGrantRequest(**{**asked, **changes}), CALL)

    def refused(self) -> bool:
        with pytest.raises(RadmeshError) as error:
            self.ask()
        assert error.value.reason == "SESSION_EXPIRED"
        return True


@pytest.fixture
def grants(parts: Parts) -> Grants:
    return Grants(parts)


def test_whose_the_session_is_and_what_is_held(grants: Grants) -> None:
    assert grants.ask() == pb.CheckGrantResponse(user="doe", role=RADIOLOGIST)  # type: ignore[arg-type]
    grants.parts.decide(grants.entry, HELD, "PATIENT_MISMATCH")
    assert grants.ask().held
    # Held alone: what another station sent of the study is not.
    assert not grants.ask(admission_key=grants.other.admission_key).held


@pytest.mark.parametrize(
    "changes", [{"admission_key": b""}, {"admission_key": b"x" * 32}, {"study_instance_uid": uid("study", 1)}]
)
def test_what_is_not_known_counts_as_held(grants: Grants, changes: dict[str, Any]) -> None:
    assert grants.ask(**changes).held


def test_a_role_is_that_of_the_moment(grants: Grants) -> None:
    grants.parts.accounts.create("admin", "", ADMINISTRATOR, PASSWORD)
    for role in (NONE, ADMINISTRATOR):
        grants.parts.accounts.update("doe", display_name=None, role=role, password="")
        assert grants.ask().role == role


def test_a_session_that_has_ended(grants: Grants) -> None:
    assert grants.ask().user
    grants.parts.accounts.sign_out(grants.token)
    assert grants.refused()


def test_a_new_password_and_a_removed_user_end_sessions(grants: Grants) -> None:
    accounts = grants.parts.accounts
    accounts.update("doe", display_name=None, role=0, password=PASSWORD + "2")
    assert grants.refused()
    grants.digest = accounts.sign_in("doe", PASSWORD + "2")[1]["digest"]
    assert grants.ask().user == "doe"
    accounts.delete("doe")
    assert grants.refused()


def test_time_ends_a_session(grants: Grants) -> None:
    grants.parts.advance(12 * 3600 + 1)
    assert grants.refused()


@pytest.mark.parametrize("digest", [b"", b"x", b"\0" * 32, b"x" * 100_000])
def test_a_digest_of_no_session(grants: Grants, digest: bytes) -> None:
    grants.digest = digest
    assert grants.refused()
