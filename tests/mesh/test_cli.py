"""The `radmesh` command: answers at once, exit codes, errors with a remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from radmesh.mesh import cli
from radmesh.runtime.errors import RadmeshError

AE_RULE = "must be 1 to 16 printable ASCII characters without backslash or spaces around"
ADDRESS_RULE = 'must be an IP address or network, such as "10.1.2.3" or "10.1.0.0/16"'
COMMANDS = (
    *("up", "serve", "certificates", "config", "version"),
    *("store", "find", "get", "show", "status", "users", "rejects", "audit"),
)


def radmesh(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "radmesh.mesh", *arguments],
        env={**kept, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_help_names_every_command_and_exit_code_and_imports_nothing_heavy():
    heavy = ("grpc", "google", "cryptography", "rich", "pydicom", "numpy", "lmdb")
    code = (
        "import sys; from radmesh.mesh.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([m for m in {heavy} if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in (
        "up",
        "serve",
        "certificates",
        "config",
        "version",
        "store",
        "find",
        "get",
        "show",
        "status",
        "users",
        "rejects",
        "audit",
    ):
        assert f"\n    {command}" in output
    assert "exit codes:\n  0   done" in output
    assert output.endswith("[]\n")


def test_every_command_has_help():
    for command in (
        "up",
        "serve",
        "certificates",
        "config",
        "version",
        "store",
        "find",
        "get",
        "show",
        "status",
        "users",
        "rejects",
        "audit",
    ):
        with pytest.raises(SystemExit) as raised:
            cli.main([command, "--help"])
        assert raised.value.code == 0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["up", "--dicom-port", "x"], ["serve"], ["config"]])
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("usage: radmesh")


def test_config_check(tmp_path, capsys):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[[stations]]\nae_title = "CT1"\naddresses = ["10.1.0.0/16"]\n')
    bad.write_text(
        '[mesh]\ntransport = "tsl"\n\n[[stations]]\nae_title = "A\\\\B"\naddresses = ["10.1"]\n'
        '[[stations]]\nae_title = "CT1"\ndomain = "east"\n[[domains]]\nname = "East!"\n'
    )
    assert cli.main(["config", "check", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: good\n"
    assert cli.main(["config", "check", str(bad)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{bad}:2: mesh.transport: must be one of unix, tls, not tsl; did you mean tls?",
        f"{bad}:5: stations[0].ae_title: {AE_RULE}, not A\\B",
        f"{bad}:6: stations[0].addresses: {ADDRESS_RULE}, not 10.1",
        f"{bad}:11: domains[0].name: must be 1 to 32 lower-case letters, digits, - and _, not East!",
    ]
    assert cli.main(["config", "check", str(bad), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 4
    assert cli.main(["config", "check", str(tmp_path / "none.toml")]) == 2


def test_stations_must_agree_with_domains_and_each_other(tmp_path, capsys):
    file = tmp_path / "c.toml"
    file.write_text(
        '[[stations]]\nae_title = "CT1"\ndomain = "east"\n[[stations]]\nae_title = "CT1"\n'
        '[[domains]]\nname = "west"\n[[domains]]\nname = "west"\n'
    )
    assert cli.main(["config", "check", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:9: domains[1].name: west is given twice: join the two",
        f"{file}:3: stations[0].domain: there is no domain east: add it under [[domains]], or use one of by-object, "
        "default, west",
        f"{file}:5: stations[1].ae_title: CT1 from any is already stations[0]: join them, or correct one",
    ]


def test_config_print_says_where_values_are_from(tmp_path, capsys, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text('[mesh]\ndrain_timeout = "90s"\n')
    monkeypatch.setenv("RADMESH_TRANSPORT", "tls")
    assert (
        cli.main(
            ["config", "print", "--config", str(file), "--data", "/d", "--set", "mesh.archive_servers=2", "--json"]
        )
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["mesh.drain_timeout"] == {"value": "90s", "source": f"{file}:2"}
    assert shown["mesh.transport"] == {"value": "tls", "source": "environment RADMESH_TRANSPORT"}
    assert shown["mesh.archive_servers"] == {"value": 2, "source": "flag"}
    assert shown["mesh.data"] == {"value": "/d", "source": "flag"}
    monkeypatch.setenv("RADMESH_CONFIG", str(file))
    assert cli.main(["config", "print"]) == 0
    assert f'mesh.drain_timeout = "90s"  # {file}:2\n' in capsys.readouterr().out


def test_a_wrong_configuration_starts_nothing(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[mesh]\ndran_timeout = 1\n")
    for arguments in (["up"], ["serve", "--target=gateway-proxy"], ["config", "print"]):
        done = radmesh(*arguments, "--config", str(file), "--data", str(tmp_path / "data"))
        assert done.returncode == 2
        assert done.stderr == (
            f"radmesh: {file}:2: mesh.dran_timeout: no such setting; did you mean drain_timeout?\n"
            "  CONFIG_INVALID: correct what the error names; 'radmesh config check FILE' lists all\n"
        )
        assert not (tmp_path / "data").exists()


def test_serve_names_the_targets_there_are(tmp_path):
    done = radmesh("serve", "--target=archive-sever", "--data", str(tmp_path / "data"))
    assert done.returncode == 2
    assert "there is no such component" in done.stderr


def test_a_cluster_that_is_not_there_is_3(tmp_path):
    done = radmesh("status", "--data", str(tmp_path))
    assert done.returncode == 3
    assert "radmesh up" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in radmesh("status", "--data", str(tmp_path), RADMESH_DEBUG="1").stderr
    done = radmesh("status", "--data", str(tmp_path), "--json")
    assert json.loads(done.stdout)["error"]["reason"] == "CLUSTER_NOT_RUNNING"
    assert set(json.loads(done.stdout)["error"]) == {"reason", "message", "remedy"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RadmeshError("PASSWORD_WRONG", "wrong name or password"), 4),
        (RadmeshError("ROLE_REFUSED", "no"), 4),
        (RadmeshError("PEER_UNAVAILABLE", "gone"), 3),
        (RadmeshError("STUDY_NOT_FOUND", "no such study"), 5),
        (RadmeshError("FIELD_INVALID", "page size"), 2),
        (ValueError("a defect"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_exit_codes(monkeypatch, error, code, capfd):
    def fail(_chosen: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run_version", fail)
    monkeypatch.setattr(cli.sys.stdout, "fileno", lambda: os.open(os.devnull, os.O_WRONLY), raising=False)
    assert cli.main(["version"]) == code
    if code in (1, 2, 3, 4):
        assert capfd.readouterr().err.startswith("radmesh: ")


def test_a_bare_port_of_what_is_not_served_is_said_and_does_no_harm(tmp_path):
    done = radmesh("config", "print", RADMESH_HTTP_PORT="0", RADMESH_HL7_PORT="0")
    assert done.returncode == 0


def test_the_documented_settings_are_those_of_the_code():
    from radmesh.mesh.reference import document

    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.md"
    assert page.read_text() == document(), "run `make docs`"
