"""What the commands promise to programs and to terminals: exit codes, JSON alone on stdout, readable tables."""

import json
import os
import pty
import re
import subprocess
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from cluster_support import COMMAND, RealCluster, environment, run, save

from radmesh.client import admin_commands, answers, tables
from radmesh.client.model import Alarm, ClusterStatus, ComponentStatus, StoreStatus
from radmesh.client.shell import age_text, size_text
from radmesh.client.tables import Column


@pytest.fixture(scope="module")
def stored(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> RealCluster:
    folder = tmp_path_factory.mktemp("files")
    names = ("Doe^John", "Ångström^Åsa", "Yamada^Tarou=山田^太郎")
    paths = [
        save(
            folder,
            n,
            SpecificCharacterSet="ISO_IR 192",
            PatientName=name,
            StudyDescription="An unusually long description of a study",
            StudyInstanceUID="1.2.826.0.1.3680043.8.498.6410818900703977717176633399987488247" + str(n),
        )
        for n, name in enumerate(names)
    ]
    assert cluster.run("store", *paths).code == 0
    return cluster


# -- exit codes and JSON


def test_done_is_0(stored):
    for arguments in (("find",), ("status",), ("users",), ("rejects",), ("audit",)):
        assert stored.command(*arguments, "--json").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("show", "2.25.404"), 5, "STUDY_NOT_FOUND"),
        (("find", "--date", "January"), 2, "FIELD_INVALID"),
        (("find", "--date", "20240131-20240101x"), 2, "FIELD_INVALID"),
        (("find", "--date", "20240230"), 2, "FIELD_INVALID"),
        (("orders", "--date", "-20261301"), 2, "FIELD_INVALID"),
        (("find", "--reading", "unread"), 2, "FIELD_INVALID"),
        (("find", "--verification", "perhaps"), 2, "FIELD_INVALID"),
        (("find", "--password-file", "/nowhere/secret"), 2, "FILE_UNREADABLE"),
        (("find", "--user", "nobody"), 4, "PASSWORD_WRONG"),
        (("find", "--cluster", "127.0.0.1:1"), 2, "PASSWORD_MISSING"),
        (("find", "--ca", "/nowhere/ca.pem", "--cluster", "127.0.0.1:1"), 2, "PASSWORD_MISSING"),
    ],
)
def test_errors_are_json_with_cause_and_remedy(stored, arguments, code, reason):
    answer = stored.command(*arguments, "--json")
    assert (answer.code, answer.reason, answer.err) == (code, reason, ""), answer
    error = answer.json["error"]
    assert set(error) == {"reason", "message", "remedy"}
    assert error["message"]
    assert error["remedy"]
    told = stored.run(*arguments)
    assert (told.code, told.out) == (code, "")
    assert told.err == f"radmesh: {error['message']}\n  {reason}: {error['remedy']}\n"


def test_wrong_usage_is_2(stored):
    for arguments in (("find", "--limit", "0"), ("find", "--limit", "many"), ("users", "promote"), ("show",)):
        assert run(*arguments).code == 2


def test_a_wrong_password_is_4(stored, tmp_path):
    (tmp_path / "wrong").write_text("wrong password")
    answer = stored.command("find", "--json", "--password-file", tmp_path / "wrong")
    assert (answer.code, answer.reason) == (4, "PASSWORD_WRONG")
    assert run("find", "--cluster", stored.target, "--json", RADMESH_PASSWORD="wrong password").code == 4


def test_a_cluster_that_is_not_there_is_3(tmp_path):
    answer = run("status", "--json", "--data", tmp_path)
    assert (answer.code, answer.reason) == (3, "CLUSTER_NOT_RUNNING")
    assert f"'radmesh up --data {tmp_path}' starts one" in answer.json["error"]["message"]
    nobody = run("status", "--json", "--cluster", "127.0.0.1:1", RADMESH_PASSWORD="x")
    assert (nobody.code, nobody.reason) == (3, "CLUSTER_UNREACHABLE")
    (tmp_path / "ready.json").write_text(
        json.dumps({"urls": {"grpc": "grpc://127.0.0.1:1"}, "ports": {"grpc": 1}, "ca_certificate": ""})
    )
    gone = run("find", "--data", tmp_path, RADMESH_PASSWORD="x")
    assert (gone.code, gone.out) == (3, "")
    assert "CLUSTER_UNREACHABLE: " in gone.err


@pytest.mark.parametrize("ready", ["", "{", "{}", '{"urls": {}}', "[]", '{"urls": {"grpc": null}}'])
def test_a_ready_file_that_is_none_is_3(tmp_path, ready):
    (tmp_path / "ready.json").write_text(ready)
    answer = run("status", "--json", "--data", tmp_path, RADMESH_PASSWORD="x")
    assert (answer.code, answer.reason) == (3, "CLUSTER_NOT_RUNNING")


def test_an_address_elsewhere(stored):
    password = (stored.data / "admin-password").read_text().strip()
    assert run("find", "--cluster", stored.target, "--json", RADMESH_PASSWORD=password).code == 0
    assert run("find", "--json", RADMESH_CLUSTER=stored.target, RADMESH_PASSWORD=password).code == 0


def test_a_reader_that_has_seen_enough_is_no_error(stored):
    answer = subprocess.run(
        ["/bin/sh", "-c", '"$@" | true', "sh", *COMMAND, "find", "--data", str(stored.data)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in answer.stderr


# -- terminals


def on_a_terminal(cluster: RealCluster, columns: int, *arguments: object) -> list[str]:
    """The lines that a command prints on a terminal, without colours."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--data", str(cluster.data)],
        env=environment(COLUMNS=str(columns), LINES="50", TERM="xterm"), stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    output = b""
    try:
        while piece := os.read(leader, 65536):
            output += piece
    except OSError:
        pass  # what the end looks like
    os.close(leader)
    assert process.wait() in (0, 1)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode()).replace("\r", "").splitlines()


@pytest.mark.parametrize("columns", [80, 120, 160])
def test_tables_fit_and_uids_are_whole(stored, columns):
    for arguments in (
        ("find",),
        ("show", "1.2.826.0.1.3680043.8.498.64108189007039777171766333999874882470", "--instances"),
        ("status",),
        ("status", "--verbose"),
        ("audit",),
        ("users",),
    ):
        lines = on_a_terminal(stored, columns, *arguments)
        wide = [line for line in lines if tables.columns_of(line) > columns and not line.startswith("  ")]
        assert wide == [], arguments
    found = on_a_terminal(stored, columns, "find")
    for n in range(3):
        uid = f"1.2.826.0.1.3680043.8.498.6410818900703977717176633399987488247{n}"
        assert sum(line.endswith(uid) for line in found) == 1


def test_progress_is_shown_on_a_terminal_and_goes_away(stored, tmp_path):
    paths = [save(tmp_path, 100 + n) for n in range(3)]
    lines = on_a_terminal(stored, 80, "store", *paths)
    assert any("storing 3/3" in line for line in lines)
    assert "3 files: 3 STORED" in lines[-4]
    lines = on_a_terminal(stored, 80, "get", "2.25.77.100", "--out", tmp_path / "out")
    assert any("fetching 1/1" in line for line in lines)
    assert lines[-1].endswith(f"1 file in {tmp_path / 'out'}")
    assert not any(
        "\u2501" in line for line in on_a_terminal(stored, 80, "get", "2.25.77.100", "--json", "--out", tmp_path)
    )


def keys_of(value: Any, shape: Any) -> None:
    """Check that JSON has the keys of a dataclass, all the way down."""
    if is_dataclass(shape):
        assert set(value) == {f.name for f in fields(shape)}, shape
        for name, kind in get_type_hints(shape).items():
            keys_of(value[name], kind)
    elif get_origin(shape) is tuple:
        for item in value:
            keys_of(item, get_args(shape)[0])


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("find",), answers.Found),
        (("show", "1.2.826.0.1.3680043.8.498.64108189007039777171766333999874882470"), answers.Shown),
        (("status",), answers.Health),
        (("users",), answers.Users),
        (("audit",), answers.Audited),
    ],
)
def test_json_has_the_keys_that_the_reference_lists(stored, arguments, shape):
    keys_of(stored.run(*arguments, "--json").json, shape)


# -- status


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def cluster_status(seconds: float = 0, **figures: float) -> ClusterStatus:
    """A cluster, `seconds` later."""
    time = NOW + timedelta(seconds=seconds)
    return ClusterStatus(
        time,
        (
            ComponentStatus(
                "archive-server", "archive-server-0", "SERVING", "1", 7, NOW - timedelta(hours=50), figures,
                (Alarm("STORAGE_FULL", "no room above the reserve", time - timedelta(minutes=5)),),
            ),
            ComponentStatus(
                "network-gateway", "network-gateway", "SERVING", "1", 8, NOW, {},
                (Alarm("DRAIN_FAILING", "PEER_TIMEOUT: archive-server-0 did not answer in time"),),
            ),
            ComponentStatus("gateway-proxy", "gateway-proxy", "UNREACHABLE", alarms=(Alarm("PEER_UNAVAILABLE", "no"),)),
        ),
        (StoreStatus("archive-0", "ARCHIVE", False, True, 3_000_000_000, 1_234, time - timedelta(seconds=40)),),
    )  # fmt: skip


def test_status_can_be_read_by_people(capsys):
    figures = {"objects": 1000.0, "megabytes": 525.5, "unregistered": 0.0}
    later = {"objects": 1250.0, "megabytes": 775.5, "unregistered": 12.0}
    admin_commands._print_status(cluster_status(2, **later), cluster_status(0, **figures), verbose=False)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "component state pid up figures",
        "archive-server-0 serving 7 2 d 2 h 12 unregistered, 1,250 objects (125/s), 775.5 MB (125.0 MB/s)",
        "network-gateway serving 8 2 s",
        "gateway-proxy unreachable",
        "",
        "stores",
        "store kind state room unregistered",
        "archive-0 archive silent 3.0 GB 1,234",
        "",
        "alarms",
        "where reason for what what to do",
        "archive-server-0 STORAGE_FULL 5 min no room above the reserve "
        "make room in the store's file system; sending again then stores once",
        "network-gateway DRAIN_FAILING PEER_TIMEOUT: archive-server-0 did not answer in time "
        "the component is overloaded or stuck",
        "gateway-proxy PEER_UNAVAILABLE no "
        "it restarts by itself; if it does not: logs/gateway-proxy.log in the data directory says why",
        "archive-0 SILENT 40 s the store does not tell that it lives see its component",
        "",
        "4 alarms",
    ]


def test_a_process_that_was_started_again_has_no_rate(capsys):
    before = cluster_status(0, objects=1000.0)
    archive = replace(before.components[0], pid=6)
    admin_commands._print_status(cluster_status(2, objects=1.0), replace(before, components=(archive,)), verbose=False)
    assert " 1 objects\n" in capsys.readouterr().out


def test_status_hides_noughts(stored):
    plain, verbose = stored.run("status").out, stored.run("status", "--verbose").out
    assert "0 store responses 0xC000" in verbose
    assert "store responses 0xC000" not in plain
    assert not re.search(r"(^| )0 [a-z]", plain.partition("stores")[0], re.MULTILINE)
    assert plain.endswith("\nall is well\n")
    components = {c["instance"]: c["figures"] for c in stored.run("status", "--json").json["status"]["components"]}
    assert "store_responses_0xC000" in components["gateway-proxy"]


def test_ages():
    assert [age_text(n) for n in (-1, 0, 59.9, 60, 3599, 3600, 7500, 86_400, 90_000, 400_000)] == [
        "0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "2 h 5 min", "1 d", "1 d 1 h", "4 d 15 h",
    ]  # fmt: skip


# -- tables


def test_a_table_goes_below_and_then_is_cut():
    columns = [Column("name", cut=True), Column("n", right=True), Column("none"), Column("uid", below=True)]
    rows = [["a" * 30, "7", "", "1.2.3"], ["山田太郎", "12", "", "1.2.840.10008"]]
    assert tables.lines(columns, rows, 80) == [
        "name                             n  uid",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa   7  1.2.3",
        "山田太郎                        12  1.2.840.10008",
    ]
    assert tables.lines(columns, rows, 20) == [
        "name               n",
        "aaaaaaaaaaaaaaa…   7",
        "  1.2.3",
        "山田太郎          12",
        "  1.2.840.10008",
    ]
    assert tables.lines(columns, [], 20) == []


def test_facts_go_on_below_themselves():
    uid = "1.2.826.0.1.3680043.8.498.6410818900703977717176633399987488247"
    pairs = [("study", uid), ("empty", " "), ("what to do", "it heals when its order comes: send\x1b that")]
    assert tables.facts(pairs, 34) == [
        f"study       {uid}",
        "what to do  it heals when its",
        "            order comes: send\N{REPLACEMENT CHARACTER}",
        "            that",
    ]
    assert tables.facts([], 80) == []


def test_what_a_terminal_would_obey_is_not_printed():
    assert tables.lines([Column("a")], [["x\x1b[2Jy\x07\n"]], 80) == [
        "a",
        "x\N{REPLACEMENT CHARACTER}[2Jy" + "\ufffd" * 2,
    ]
    assert tables.columns_of("A\u030angström") == len("Ångström")


def test_sizes():
    assert [size_text(n) for n in (0, 999, 1000, 525_500, 82_500_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "525.5 kB",
        "82.5 GB",
    ]


def test_the_reference_names_every_command():
    page = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    for command in ("up", "serve", "config check", "store", "find", "get", "show", "status", "users", "audit", "evict"):
        assert f"## radmesh {command}\n" in page
