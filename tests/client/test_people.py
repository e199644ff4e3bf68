"""Users, roles, sessions, audit and rejects, as an administrator and as everybody else meets them."""

import os
import threading
import time

import grpc
import pytest
from cluster_support import refused, save
from depth import allowed
from raw_dicom import Client
from waiting import wait_for

from radmesh.client.cluster import _file_requests
from radmesh.runtime.rpc import from_rpc_error

PASSWORD = "correct horse battery"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text(PASSWORD + "\n")
    return path


def add(cluster, name: str, role: str, secret) -> None:
    answer = cluster.run("users", "add", name, "--role", role, "--new-password-file", secret, "--json")
    assert answer.code == 0, answer.out
    assert [(u["name"], u["role"]) for u in answer.json["users"]] == [(name, role)]


def as_user(cluster, name: str, *arguments: object):
    return cluster.run(*arguments, "--user", name, "--json", RADMESH_PASSWORD=PASSWORD)


def test_users_are_added_changed_listed_and_removed(cluster, secret):
    add(cluster, "ines", "radiologist", secret)
    again = cluster.run("users", "add", "ines", "--new-password-file", secret, "--json")
    assert (again.code, again.reason) == (1, "USER_EXISTS")
    changed = cluster.run("users", "set", "ines", "--display-name", "Inês Sá", "--role", "technologist", "--json")
    assert (changed.json["users"][0]["display_name"], changed.json["users"][0]["role"]) == ("Inês Sá", "technologist")
    listed = cluster.run("users")
    assert listed.code == 0
    assert "Inês Sá" in listed.out
    assert cluster.run("users", "remove", "ines").out == "ines removed\n"
    assert "ines" not in [u["name"] for u in cluster.run("users", "--json").json["users"]]
    gone = cluster.run("users", "remove", "ines", "--json")
    assert (gone.code, gone.reason) == (5, "USER_NOT_FOUND")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("add",), 2, "FIELD_INVALID"),
        (("add", "weak", "--new-password-file", "SHORT"), 2, "PASSWORD_WEAK"),
        (("add", "jo", "--new-password-file", "MISSING"), 2, "FILE_UNREADABLE"),
        (("add", "no such name!", "--new-password-file", "GOOD"), 2, "FIELD_INVALID"),
        (("set", "admin", "--role", "none"), 1, "LAST_ADMINISTRATOR"),
        (("remove", "admin"), 1, "LAST_ADMINISTRATOR"),
        (("set", "nobody", "--role", "none"), 5, "USER_NOT_FOUND"),
    ],
)
def test_what_is_refused(cluster, secret, tmp_path, arguments, code, reason):
    (tmp_path / "short").write_text("abc")
    files = {"SHORT": tmp_path / "short", "MISSING": tmp_path / "missing", "GOOD": secret}
    answer = cluster.run("users", *(files.get(a, a) for a in arguments), "--json")
    assert (answer.code, answer.reason) == (code, reason), answer.out
    assert answer.json["error"]["remedy"]


def test_each_role_may_do_what_it_may(cluster, secret, tmp_path):
    path = save(tmp_path, 1)
    names = {role: f"the-{role}" for role in ("none", "technologist", "radiologist", "administrator")}
    for role, name in names.items():
        add(cluster, name, role, secret)
    commands = {
        "store": ("store", path),
        "find": ("find",),
        "show": ("show", "2.25.77.1"),
        "status": ("status",),
        "users": ("users",),
        "audit": ("audit",),
        "rejects": ("rejects",),
        "evict": ("evict", "2.25.404"),
        "get": ("get", "2.25.77.1", "--out", tmp_path / "out"),
    }
    assert cluster.run("store", path).code == 0
    everybody = {"find", "show", "status", "get"}
    allowed = {
        "none": set(),
        "technologist": everybody | {"store"},
        "radiologist": everybody | {"store"},
        "administrator": set(commands),
    }
    for role, name in names.items():
        for command, arguments in commands.items():
            answer = as_user(cluster, name, *arguments)
            if command in allowed[role]:
                assert answer.code in (0, 5), (role, command, answer.out)
                assert answer.code == 0 or answer.reason != "ROLE_REFUSED", (role, command, answer.out)
            else:
                assert (answer.code, answer.reason) == (4, "ROLE_REFUSED"), (role, command, answer.out)


def test_a_change_of_role_is_in_force_within_five_seconds_also_on_a_stream(cluster, secret, tmp_path):
    add(cluster, "tina", "technologist", secret)
    path = save(tmp_path, 10)
    with cluster.client("tina", PASSWORD) as tina:
        assert list(tina.find(patient_id="nobody")) == []
        answered = threading.Semaphore(1)

        def one_after_another():
            while True:
                answered.acquire()
                yield from _file_requests("", path)

        stream = tina._studies.StoreInstances(one_after_another(), metadata=tina._metadata, timeout=30)
        outcomes = []
        changed = 0.0
        with pytest.raises(grpc.RpcError) as raised:
            for answer in stream:
                outcomes.append(answer.outcome)
                if not changed:
                    assert cluster.run("users", "set", "tina", "--role", "none").code == 0
                    changed = time.monotonic()
                answered.release()
        assert time.monotonic() - changed < allowed(5.0)
        answered.release()
        assert from_rpc_error(raised.value).reason == "ROLE_REFUSED"
        assert set(outcomes) <= {"STORED", "ALREADY"}
        with refused("ROLE_REFUSED"):
            list(tina.find(patient_id="nobody"))


def test_a_new_password_ends_sessions(cluster, secret, tmp_path):
    add(cluster, "otto", "radiologist", secret)
    other = tmp_path / "other"
    other.write_text("another long enough one")
    with cluster.client("otto", PASSWORD) as otto:
        assert otto.user.role == "radiologist"
        assert cluster.run("users", "set", "otto", "--new-password-file", other).code == 0
        started = time.monotonic()

        def ended():
            try:
                list(otto.find(patient_id="nobody"))
            except Exception as error:  # the reason is looked at
                return getattr(error, "reason", error)
            return None

        assert wait_for(ended) == "SESSION_EXPIRED"
        assert time.monotonic() - started < allowed(5.0)
    assert as_user(cluster, "otto", "find").code == 4
    assert cluster.run("find", "--user", "otto", "--password-file", other, "--json").code == 0


def test_a_removed_user_is_out_and_a_signed_out_token_is_void(cluster, secret):
    add(cluster, "gone", "radiologist", secret)
    gone = cluster.client("gone", PASSWORD)
    metadata = gone._metadata
    gone.close()
    with cluster.client() as admin:
        admin._metadata, kept = metadata, admin._metadata
        with refused("SESSION_EXPIRED"):
            list(admin.find(limit=1))
        admin._metadata = (("authorization", "Bearer nonsense"),)
        with refused("SESSION_EXPIRED"):
            list(admin.find(limit=1))
        admin._metadata = ()
        with refused("SESSION_EXPIRED"):
            list(admin.find(limit=1))
        admin._metadata = kept
        assert cluster.run("users", "remove", "gone").code == 0
        assert as_user(cluster, "gone", "find").reason == "PASSWORD_WRONG"


def test_wrong_passwords_are_counted(cluster, secret):
    add(cluster, "pia", "radiologist", secret)
    reasons = []
    for _ in range(12):
        answer = cluster.run("find", "--user", "pia", "--json", RADMESH_PASSWORD="a wrong password")
        assert answer.code in (1, 4), answer.out
        reasons.append(answer.reason)
    assert reasons[0] == "PASSWORD_WRONG"
    assert reasons[-1] == "TOO_MANY_ATTEMPTS"
    # The right one has to wait too, and nobody else has.
    assert as_user(cluster, "pia", "find").reason == "TOO_MANY_ATTEMPTS"
    assert cluster.run("find").code == 0
    outcomes = [e["outcome"] for e in cluster.run("audit", "--actor", "pia", "--json").json["events"]]
    assert outcomes.count("PASSWORD_WRONG") == reasons.count("PASSWORD_WRONG")
    assert "TOO_MANY_ATTEMPTS" in outcomes


def test_every_access_is_in_the_audit(cluster, secret, tmp_path):
    add(cluster, "rita", "administrator", secret)
    study = "2.25.77.90"
    path = save(tmp_path, 90)
    assert as_user(cluster, "rita", "store", path).code == 0
    as_user(cluster, "rita", "find", "--patient-id", "P90")
    as_user(cluster, "rita", "show", study)
    as_user(cluster, "rita", "get", study, "--out", tmp_path / "out")
    as_user(cluster, "rita", "evict", study)
    as_user(cluster, "rita", "rejects", "get", "0" * 32, "--out", tmp_path / "reject")
    as_user(cluster, "rita", "users", "set", "admin", "--display-name", "Administrator")
    as_user(cluster, "rita", "audit")
    events = cluster.run("audit", "--actor", "rita", "--json").json["events"]
    acts = {(e["action"], e["object"]) for e in events}
    assert acts >= {
        ("SIGN_IN", ""),
        ("SIGN_OUT", ""),
        ("STUDY_STORE", study),
        ("STUDY_QUERY", ""),
        ("STUDY_SHOW", study),
        ("STUDY_READ", study),
        ("STUDY_EVICT", study),
        ("REJECT_READ", "0" * 32),
        ("USER_UPDATE", "admin"),
        ("AUDIT_READ", ""),
    }
    assert {e["source_address"] for e in events} == {"127.0.0.1"}
    assert events == sorted(events, key=lambda e: -e["id"])
    assert {e["action"] for e in cluster.run("audit", "--object", study, "--json").json["events"]} == {
        "STUDY_STORE",
        "STUDY_SHOW",
        "STUDY_GRANT",
        "STUDY_READ",
        "STUDY_EVICT",
    }
    told = cluster.run("audit", "--limit", "3")
    assert told.err == "the last 3; more with --limit\n"
    assert len(told.out.splitlines()) == 4
    assert cluster.run("audit", "--object", "nothing", "--limit", "1", "--json").json == {"events": [], "more": False}
    assert PASSWORD not in cluster.run("audit", "--json", "--limit", "1000").out


def test_rejects_are_listed_fetched_and_deleted(cluster, tmp_path):
    assert cluster.run("rejects", "--json").json == {"rejects": []}
    rubbish = os.urandom(3000)
    with Client(cluster.ready["ports"]["dicom"], calling="BROKEN") as modality:
        assert modality.store(b"\xff" * 40 + rubbish, "2.25.9.9").status & 0xF000 in (0xA000, 0xC000)
        modality.release()
    (reject,) = wait_for(lambda: cluster.run("rejects", "--json").json["rejects"])
    assert (reject["calling_ae_title"], reject["length"], reject["cut"]) == ("BROKEN", 3040, False)
    told = cluster.run("rejects")
    assert reject["id"] in told.out
    assert reject["reason"] in told.out
    assert told.err == "1 reject\n"
    out = tmp_path / "kept"
    assert cluster.run("rejects", "get", reject["id"], "--out", out, "--json").json == {"path": str(out), "bytes": 3040}
    assert out.read_bytes() == b"\xff" * 40 + rubbish
    missing = cluster.run("rejects", "get", "0" * 32, "--out", tmp_path / "missing", "--json")
    assert (missing.code, missing.reason) == (5, "REJECT_NOT_FOUND")
    assert list(tmp_path.iterdir()) == [out]
    assert cluster.run("rejects", "get", "--json").reason == "FIELD_INVALID"
    assert cluster.run("rejects", "delete", reject["id"], "--json").json == {"deleted": reject["id"]}
    assert cluster.run("rejects", "--json").json == {"rejects": []}
    again = cluster.run("rejects", "delete", reject["id"], "--json")
    assert (again.code, again.reason) == (5, "REJECT_NOT_FOUND")
