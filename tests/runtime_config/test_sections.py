"""[[stations]] and [[domains]]: what is read, and what a wrong one gets."""

from pathlib import Path

import pytest

from radmesh.dicom.domains import Domains
from radmesh.mesh.modules import TABLE
from radmesh.runtime.config import Configuration, read

GOOD = """\
[mesh]
connectivity_managers = 2

[[stations]]
ae_title = "CT1"
domain = "by-object"
verification = "required"
study_key = "accession"
patient_key = "id+name"
accession_identifies_patient = true
on_ris_unavailable = "hold"

[[domains]]
name = "east"
issuer = "EAST"
hl7_port = 2575
report_to = "mllps://ris.example:6661"
charset = "8859/1"
mapping = { accession_number = "IPC-1, OBR-18", patient_id = "PID-3" }
feed_timeout = "15min"

[[domains]]
name = "west"
accession_pattern = "W[0-9]{4}"
manager = 1
hl7_version = "2.3.1"
"""


def loaded(tmp_path: Path, text: str) -> tuple[Configuration | None, list[str]]:
    file = tmp_path / "radmesh.toml"
    file.write_text(text)
    configuration, problems = read(TABLE.schema(), file=file, environment={})
    return configuration, [str(problem).removeprefix(f"{tmp_path}/radmesh.toml:") for problem in problems]


def test_a_station_and_two_domains(tmp_path: Path) -> None:
    configuration, problems = loaded(tmp_path, GOOD)
    assert configuration is not None
    assert not problems
    station = configuration["stations"][0].station()
    assert (station.accession_identifies_patient, station.on_ris_unavailable) == (True, "hold")
    east, west = configuration["domains"]
    assert east.paths() == {"accession_number": ("IPC-1", "OBR-18"), "patient_id": ("PID-3",)}
    assert (east.feed_timeout, east.report_to, west.paths(), west.hl7_port) == (900, "mllps://ris.example:6661", {}, 0)
    found = Domains.of({"stations": (station,), "domains": configuration["domains"]})
    assert found.domain_of("CT1", "", "", "W1234") == "west"
    assert found.manager_of("west") == "connectivity-manager-1"


def test_without_anything_said_there_are_neither(tmp_path: Path) -> None:
    configuration, problems = loaded(tmp_path, "")
    assert configuration is not None
    assert not problems
    assert configuration["stations"] == configuration["domains"] == ()
    assert configuration["mesh"].connectivity_managers == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('issuer = "A\\\\B"', "issuer: must be at most 64 printable characters"),
        ('accession_pattern = "("', "accession_pattern: must be a regular expression"),
        ('accession_pattern = "(a+)+"', "accession_pattern: must not repeat a group"),
        ("manager = 1", "manager: there is no manager 1: raise connectivity_managers of [mesh] to 2, or use 0 to 0"),
        ("manager = 16", "manager: must be 0 to 15"),
        ("hl7_port = 70000", "hl7_port: must be 0 to 65535"),
        ('charset = "EBCDIC"', "charset: must be names of HL7 table 0211"),
        ('charset = ""', "charset: must be names of HL7 table 0211"),
        ('mapping = { accesion_number = "OBR-18" }', "mapping: cannot be used: mapping 'accesion_number'"),
        ('mapping = { accession_number = "18" }', "mapping: cannot be used: '18' is no path to a field"),
        ('mapping = { accession_number = " , " }', "mapping: cannot be used: mapping 'accession_number'"),
        ('mapping = { patient_id = "OBR-3" }', "mapping: cannot be used: mapping 'patient_id'"),
        ('mapping = "x"', "mapping: must be a table of texts"),
        ('feed_timeout = "soon"', "feed_timeout: must be a duration"),
        ('report_to = "ris"', 'report_to: must be "host:port"'),
        ('report_to = "ris:0"', 'report_to: must be "host:port"'),
        ('report_to = "http://ris:80"', 'report_to: must be "host:port"'),
        ('hl7_tls = "yes"', "hl7_tls: must be one of off, on, mutual"),
        ('tls_ca = "ca.pem"', "tls_ca: must be an absolute path"),
        ('hl7_version = "3"', "hl7_version: must be one of 2.3, "),
        ('sending_application = "a\\nb"', "sending_application: must be at most 180 printable characters"),
    ],
)
def test_a_wrong_domain_is_named(tmp_path: Path, line: str, said: str) -> None:
    _, problems = loaded(tmp_path, f'[[domains]]\nname = "east"\n{line}\n')
    assert problems
    assert problems[0].startswith(f"3: domains[0].{said}")


@pytest.mark.parametrize("good", ["ris:2575", "[::1]:2575", "10.0.0.1:1", "mllps://ris.example:65535", ""])
def test_where_reports_may_go(tmp_path: Path, good: str) -> None:
    assert loaded(tmp_path, f'[[domains]]\nname = "east"\nreport_to = "{good}"\n')[1] == []


def test_tls_needs_its_files(tmp_path: Path) -> None:
    for lines, said in (
        ('hl7_tls = "on"', ["tls_certificate: is needed for hl7_tls = on"]),
        ('hl7_tls = "mutual"\ntls_certificate = "/a.pem"', ["tls_ca: is needed for hl7_tls = mutual"]),
        ('hl7_tls = "mutual"\ntls_certificate = "/a.pem"\ntls_ca = "/ca.pem"', []),
    ):
        _, problems = loaded(tmp_path, f'[[domains]]\nname = "east"\n{lines}\n')
        assert [problem.partition("domains[0].")[2].rpartition(": name")[0] for problem in problems] == said


def test_domains_must_differ(tmp_path: Path) -> None:
    one = 'name = "east"\nissuer = "I"\nhl7_port = 2575\n'
    assert loaded(tmp_path, f"[[domains]]\n{one}[[domains]]\n{one}")[1] == [
        "6: domains[1].name: east is given twice: join the two",
        "7: domains[1].issuer: I is that of domains[0] already: each domain needs its own",
        "8: domains[1].hl7_port: 2575 is that of domains[0] already: each domain needs its own",
    ]
    assert loaded(tmp_path, '[[domains]]\nname = "by-object"\n')[1] == [
        "2: domains[0].name: must be another name: by-object says that the object tells, not by-object"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('on_ris_unavailable = "drop"', "on_ris_unavailable: must be one of mark, hold"),
        ('verification = "always"', "verification: must be one of off, advisory, required"),
        ("accession_identifies_patient = 1", "accession_identifies_patient: must be true or false"),
        (
            'domain = "east"',
            "domain: there is no domain east: add it under [[domains]], or use one of by-object, default",
        ),
    ],
)
def test_a_wrong_station_is_named(tmp_path: Path, line: str, said: str) -> None:
    _, problems = loaded(tmp_path, f'[[stations]]\nae_title = "CT1"\n{line}\n')
    assert problems
    assert problems[0].startswith(f"3: stations[0].{said}")
