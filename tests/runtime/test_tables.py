"""Reasons, metrics, logs, files: the tables and what is made of them; what the protos say of access."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import radmesh
from radmesh.runtime import metrics, reasons
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import write_atomic
from radmesh.runtime.logs import FORBIDDEN_FIELDS, Logger
from radmesh.runtime.metrics import DEFINITIONS, Metrics
from radmesh.runtime.reasons import BY_CODE, REASONS
from radmesh.runtime.rpc import callers_of, from_rpc_error, roles_of

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
COMPONENTS = {
    "gateway-proxy",
    "network-gateway",
    "database-server",
    "archive-server",
    "application-server",
    "curator",
    "connectivity-manager",
}
ROLES = {"none", "technologist", "radiologist", "administrator", "*", "anonymous"}


# -- reasons ---------------------------------------------------------------------------------------------------------


def test_every_reason_of_the_protos_is_in_the_table() -> None:
    """An rpc's comment lists CODE (REASON | REASON); the code is that of the table."""
    found = 0
    for proto in PROTOS:
        comments = " ".join(line.strip().lstrip("/ ") for line in proto.read_text().splitlines() if "//" in line)
        for code, group in re.findall(r"\b([A-Z][A-Z_]+) \(([A-Z][A-Z_]+(?: \| [A-Z][A-Z_]+)*)\)", comments):
            if not hasattr(grpc.StatusCode, code):
                continue
            for name in group.split(" | "):
                found += 1
                assert name in REASONS, f"{proto.name}: {name}"
                assert REASONS[name].code == grpc.StatusCode[code], f"{proto.name}: {code} ({name})"
    assert found > 40


@pytest.mark.parametrize("reason", REASONS.values(), ids=lambda reason: reason.name)
def test_a_reason_is_whole(reason: reasons.Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", reason.name)
    assert reason.code != grpc.StatusCode.OK
    assert 400 <= reason.http_status < 600
    # PS3.4 B.2.3: what a C-STORE may answer; PS3.7 annex C for 0122 and 0124.
    assert reason.dimse_status in (0xA700, 0xA900, 0xC000, 0x0122, 0x0124)
    assert reason.remedy
    assert not reason.remedy[0].isupper()
    assert not reason.remedy.endswith(".")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("STORAGE_FULL", 0xA700),
        ("COMMIT_FAILED", 0xA700),
        ("PEER_UNAVAILABLE", 0xA700),
        ("TICKET_STALE", 0xA700),
        ("DATA_SET_UNREADABLE", 0xC000),
        ("DATA_SET_TRUNCATED", 0xC000),
        ("BAD_VR", 0xC000),
        ("UID_MISMATCH", 0xA900),
        ("UID_MISSING", 0xA900),
        ("SOP_CLASS_NOT_IN_CONTEXT", 0x0122),
    ],
)
def test_dimse_outcomes(name: str, status: int) -> None:
    assert REASONS[name].dimse_status == status


def test_what_is_transient_is_told_to_the_sender_as_such() -> None:
    for reason in REASONS.values():
        if reason.transient:
            assert reason.dimse_status == 0xA700, reason.name


def test_statuses_without_a_reason_get_one_that_fits() -> None:
    for code, name in BY_CODE.items():
        assert REASONS[name].code == code


def test_an_error_of_a_newer_version_is_kept_and_taken_for_a_defect() -> None:
    error = RadmeshError("FROM_THE_FUTURE", "text")
    assert error.reason == "FROM_THE_FUTURE"
    assert error.code == grpc.StatusCode.INTERNAL


def test_an_exception_without_a_status_is_unavailability() -> None:
    assert from_rpc_error(grpc.RpcError()).reason == "PEER_UNAVAILABLE"


# -- access ----------------------------------------------------------------------------------------------------------


def methods() -> list[Any]:
    import importlib

    found = []
    for proto in PROTOS:
        name = ".".join((*proto.relative_to(ROOT / "protos").parts[:-1], f"{proto.stem}_pb2"))
        module = importlib.import_module(name)
        for service in module.DESCRIPTOR.services_by_name.values():
            found += service.methods
    return found


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name.removeprefix("radmesh.api."))
def test_every_rpc_says_who_may_call_it(method: Any) -> None:
    callers, roles = set(callers_of(method)), set(roles_of(method))
    # Persons come in at the Application Server, and, with a grant of it, at archives.
    door = method.full_name.startswith(("radmesh.api.application.", "radmesh.api.archive.v1.ReadService."))
    assert bool(roles) == door
    assert bool(callers) != door
    assert callers <= COMPONENTS | {"*"}
    assert roles <= ROLES
    assert len(callers_of(method)) == len(callers)


# -- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "document"), [("docs/errors.md", reasons.document), ("docs/metrics.md", metrics.document)]
)
def test_the_documents_say_what_the_tables_say(path: str, document: Any) -> None:
    assert (ROOT / path).read_text() == document(), "run `make docs`"


def test_alarms_of_workers_are_documented() -> None:
    assert "_FAILING" in reasons.document()


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_every_metric_can_be_had_by_its_kind_and_no_other() -> None:
    made = Metrics()
    for name, definition in DEFINITIONS.items():
        assert name.startswith("radmesh_")
        assert definition.help.endswith(".")
        getattr(made, definition.kind)(name)
    with pytest.raises(KeyError):
        made.counter("radmesh_undeclared")


def test_metrics_are_served_on_loopback() -> None:
    made = Metrics()
    made.counter("radmesh_rejects").labels("BAD_VR").inc(2)
    port = made.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert 'radmesh_rejects_total{reason="BAD_VR"} 2.0' in answer.read().decode()
    for address in addresses():
        if not address.startswith("127."):
            with socket.socket() as probe:
                probe.settimeout(2)
                assert probe.connect_ex((address, port)) != 0


def addresses() -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]


def test_a_port_in_use_is_named() -> None:
    port = Metrics().serve(0)
    with pytest.raises(RadmeshError, match="PORT_IN_USE"):
        Metrics().serve(port)


# -- logs ------------------------------------------------------------------------------------------------------------


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_message_and_fields() -> None:
    stream = io.StringIO()
    Logger("archive-server", "archive-server-0", stream).info("object committed", length=12, study_hash="ab")
    line = lines(stream)[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "INFO",
        "message": "object committed",
        "component": "archive-server",
        "instance": "archive-server-0",
        "length": 12,
        "study_hash": "ab",
    }


@pytest.mark.parametrize("field", sorted(FORBIDDEN_FIELDS))
def test_a_patients_attribute_is_cut(field: str) -> None:
    stream = io.StringIO()
    Logger("x", "x-0", stream).warning("constant", **{field: "Doe^John"})
    assert "Doe" not in stream.getvalue()
    assert lines(stream)[0][field] == "(cut)"


def test_no_code_logs_a_patients_attribute() -> None:
    """The guard at run time is the second one; this is the first."""
    call = re.compile(r"\blog\w*\.(?:info|warning|error|exception)\(((?:[^()]|\([^()]*\))*)\)")
    for folder in ("components/radmesh", "gateway_proxy/radmesh_gateway_proxy"):
        for path in (ROOT / folder).rglob("*.py"):
            for arguments in call.findall(path.read_text()):
                named = set(re.findall(r"\b(\w+)=", arguments))
                assert not named & FORBIDDEN_FIELDS, f"{path}: {arguments}"
                assert arguments.lstrip()[:1] in ('"', ""), f"{path}: the message is no constant: {arguments}"


@given(value=st.one_of(st.text(), st.binary(), st.floats(), st.dictionaries(st.text(max_size=3), st.text(max_size=3))))
def test_whatever_a_field_holds_a_line_is_written(value: object) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8")
    Logger("x", "x-0", stream).info("constant", value=value)
    written = raw.getvalue().decode()
    assert written.count("\n") == 1
    assert json.loads(written)["message"] == "constant"


def test_text_that_utf_8_cannot_hold_loses_no_line() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8")
    Logger("x", "x-0", stream).info("refused", calling_ae_title="A\udc80\x1b[2J")
    assert raw.getvalue().isascii()
    assert json.loads(raw.getvalue())["calling_ae_title"] == "A\udc80\x1b[2J"


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    Logger("x", "x-0", Full()).info("constant")
    closed = io.StringIO()
    closed.close()
    Logger("x", "x-0", closed).info("constant")


def test_lines_of_many_threads_are_whole() -> None:
    stream = io.StringIO()
    log = Logger("x", "x-0", stream)
    threads = [
        threading.Thread(target=lambda: [log.info("constant", filler="y" * 300) for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(stream)) == 400


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two" * 1000)
    assert path.read_bytes() == b"two" * 1000
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["ready.json"]


def test_threads_may_replace_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                write_atomic(path, bytes([number]) * 5000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    content = path.read_bytes()
    assert len(content) == 5000
    assert len(set(content)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("radmesh.runtime.files.os.write", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


# -- imports ---------------------------------------------------------------------------------------------------------


def test_the_runtime_loads_no_dicom() -> None:
    code = "import sys, radmesh.runtime.context; print([m for m in sys.modules if 'dicom' in m or 'netdicom' in m])"
    path = os.pathsep.join(str(Path(entry)) for entry in [*sys.path, str(Path(radmesh.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]"
