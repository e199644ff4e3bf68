"""The [dicom] section."""

from pathlib import Path

import pytest

from radmesh.runtime.config import Schema, load
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.config import Section

SCHEMA = Schema({"dicom": Section})


def read(tmp_path: Path, text: str, **environment: str) -> Section:
    file = tmp_path / "radmesh.toml"
    file.write_text(text)
    section: Section = load(SCHEMA, file=file, environment=environment)["dicom"]
    return section


def test_defaults_are_safe(tmp_path: Path) -> None:
    section = read(tmp_path, "")
    assert (section.bind, section.port, section.ae_title, section.check_stations) == (
        "127.0.0.1",
        11112,
        "RADMESH",
        "auto",
    )
    assert (section.artim_timeout, section.idle_timeout, section.pdu_timeout) == (30.0, 600.0, 60.0)


def test_values_from_file_and_environment(tmp_path: Path) -> None:
    section = read(
        tmp_path,
        '[dicom]\nprivate_sop_classes = ["1.2.3"]\nidle_timeout = "2min"\nmax_pdu = "64KiB"',
        RADMESH_DICOM_PORT="0",
    )
    assert (section.private_sop_classes, section.idle_timeout, section.max_pdu, section.port) == (
        ("1.2.3",),
        120,
        65536,
        0,
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('ae_title = "A TITLE THAT IS TOO LONG"', "16"),
        ('ae_title = " X"', "16"),
        ('private_sop_classes = ["1.02"]', "UID"),
        ('check_stations = "maybe"', "auto, on, off"),
        ("max_pdu = 100", "4096"),
        ("port = 2762", "differ"),
        ("max_associations = 0", "1"),
        ("portt = 1", "port"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(RadmeshError, match=says) as caught:
        read(tmp_path, f"[dicom]\n{line}")
    assert caught.value.reason == "CONFIG_INVALID"
    assert "radmesh.toml" in str(caught.value)
