"""Settings: where values come from, and what a wrong one gets."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh.runtime.config import Configuration, Duration, Schema, Size, load, read, setting, write_value
from radmesh.runtime.errors import RadmeshError


@dataclass(frozen=True)
class Door:
    port: int = setting(80, doc="Port.", env="RADMESH_PORT", minimum=0, maximum=65535)
    bind: str = setting("127.0.0.1", doc="Address.", env="RADMESH_BIND")
    wait: Duration = setting(2.0, doc="Wait.", minimum=0.1)
    room: Size = setting(1 << 20, doc="Room.", minimum=1)
    colour: str = setting("red", doc="Colour.", choices=("red", "green"))
    tags: tuple[str, ...] = setting(("a",), doc="Tags.", choices=("a", "b", "c"))
    loud: bool = setting(default=False, doc="Loud.")
    url: str = setting("", doc="URL.", env="RADMESH_URL", secret=True)
    names: dict[str, str] = setting({}, doc="Names.")
    folder: Path = setting(Path("here"), doc="Folder.")

    def problems(self) -> list[tuple[str, str]]:
        return [("loud", "must be false while colour is green")] if self.loud and self.colour == "green" else []


@dataclass(frozen=True)
class Station:
    name: str = setting(doc="Name.")
    grants: tuple[str, ...] = setting((), doc="Grants.", choices=("store", "find"))


def unique(configuration: Configuration) -> list[tuple[str, str]]:
    names = [row.name for row in configuration["stations"]]
    return [(f"stations[{n}].name", "is given twice") for n, name in enumerate(names) if name in names[:n]]


SCHEMA = Schema({"door": Door}, {"stations": Station}, (unique,))


def problems(tmp_path: Path, text: str | bytes, **more: dict[str, str]) -> list[str]:
    file = tmp_path / "radmesh.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    _, found = read(SCHEMA, file=file, environment=more.get("environment", {}), flags=more.get("flags"))
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in found]


def test_defaults_file_environment_flags_in_that_order(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[door]\nport = 1\nbind = "file"\nwait = "1min"\nroom = "64MiB"\n\n[[stations]]\nname = "CT"\n')
    loaded = load(
        SCHEMA,
        file=file,
        environment={"RADMESH_PORT": "2", "RADMESH_BIND": "env", "OTHER": "x"},
        flags={"RADMESH_PORT": "3"},
    )
    door = loaded["door"]
    assert (door.port, door.bind, door.wait, door.room, door.colour) == (3, "env", 60.0, 64 << 20, "red")
    assert loaded["stations"] == (Station("CT", ()),)
    where = {key: source for key, _, source in loaded.effective()}
    assert where["door.port"] == "flag"
    assert where["door.bind"] == "environment RADMESH_BIND"
    assert where["door.wait"] == f"{file}:4"
    assert where["door.colour"] == "default"
    assert where["stations[0].name"] == f"{file}:8"
    assert where["stations[0].grants"] == "default"


def test_flags_by_key_and_into_maps():
    loaded = load(
        SCHEMA, environment={}, flags={"door.tags": "a, c", "door.names.x": "y", "door.loud": "on", "door.folder": "/a"}
    )
    assert loaded["door"].tags == ("a", "c")
    assert loaded["door"].names == {"x": "y"}
    assert loaded["door"].loud is True
    assert loaded["door"].folder == Path("/a")


def test_an_empty_variable_is_not_set():
    assert load(SCHEMA, environment={"RADMESH_PORT": ""})["door"].port == 80


def test_every_problem_is_named_at_once(tmp_path):
    text = """\
[door]
port = 70000
prot = 1
wait = "10 parsecs"
room = "1MB"
colour = "gren"
tags = ["a", "x"]
loud = 1
folder = 7

[dor]
x = 1

[[stations]]
nam = "CT"
grants = ["store", "fnd"]
"""
    assert problems(tmp_path, text) == [
        "radmesh.toml:3: door.prot: no such setting; did you mean port?",
        "radmesh.toml:11: dor: no such section; did you mean door?",
        "radmesh.toml:15: stations[0].nam: no such setting; did you mean name?",
        "radmesh.toml:2: door.port: must be 0 to 65535, not 70000",
        'radmesh.toml:4: door.wait: must be a duration such as "10s" or "5min" '
        "(units: ms, s, min, h, d), not 10 parsecs",
        "radmesh.toml:6: door.colour: must be one of red, green, not gren; did you mean green?",
        "radmesh.toml:7: door.tags: must be one of a, b, c, not x",
        "radmesh.toml:8: door.loud: must be true or false, not 1",
        "radmesh.toml:9: door.folder: must be text in quotes, not 7",
        "radmesh.toml:14: stations[0].name: is missing: it has no default",
        "radmesh.toml:16: stations[0].grants: must be one of store, find, not fnd; did you mean find?",
    ]


def test_rules_between_settings_name_the_line(tmp_path):
    assert problems(tmp_path, '[door]\ncolour = "green"\nloud = true\n') == [
        "radmesh.toml:3: door.loud: must be false while colour is green"
    ]
    assert problems(tmp_path, '[[stations]]\nname = "A"\n[[stations]]\nname = "A"\n') == [
        "radmesh.toml:4: stations[1].name: is given twice"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[door\n", "radmesh.toml:1:6: is not TOML: expected ']' at the end of a table declaration"),
        ("[door]\nport = \n", "radmesh.toml:2:8: is not TOML: invalid value"),
        (b"[door]\nbind = '\xff'\n", "radmesh.toml:2: is not UTF-8: save it as UTF-8"),
        ("door = 1\n", "radmesh.toml:1: door: must be a section: write [door]"),
        ("[stations]\nname = 'x'\n", "radmesh.toml:1: stations: must be a list of tables: write [[stations]]"),
        ("[door]\nport = true\n", "radmesh.toml:2: door.port: must be a whole number, not True"),
        ("[door]\nport = 1.5\n", "radmesh.toml:2: door.port: must be a whole number, not 1.5"),
        ("[door]\nwait = nan\n", "radmesh.toml:2: door.wait: must be a duration"),
        ("[door]\nwait = -1\n", "radmesh.toml:2: door.wait: must be a duration"),
        ("[door]\nwait = 0\n", "radmesh.toml:2: door.wait: must be 0.1 or more, not 0"),
        ("[door]\nbind = 'a\\u0000b'\n".replace("'", '"'), "radmesh.toml:2: door.bind: must not hold a NUL character"),
        (
            "[door]\nbind = 2026-01-01\n",
            "radmesh.toml:2: door.bind: must be text in quotes, not datetime.date(2026, 1, 1)",
        ),
        ("[door]\nnames = { a = 1 }\n", "radmesh.toml:2: door.names: must be a table of texts"),
        ("[door]\ntags = 'a'\n", "radmesh.toml:2: door.tags: must be a list"),
        ("[door]\nurl = 7\n", "radmesh.toml:2: door.url: must be text in quotes"),
        ("x = " + "[" * 5000 + "]" * 5000, "radmesh.toml: is nested too deeply"),
        ("x = " + "1" * 10000, "radmesh.toml: is nested too deeply or holds a number that is too long"),
        ("#" * (1 << 20) + "\n", "radmesh.toml: is larger than 1 MiB"),
        (
            "[door]\ncolour = '" + "x" * 5000 + "'",
            "radmesh.toml:2: door.colour: must be one of red, green, not " + "x" * 57 + "…",
        ),
    ],
)
def test_hostile_files(tmp_path, text, expected):
    (found,) = problems(tmp_path, text)
    assert found.startswith(expected)
    assert len(found) < 250


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RadmeshError) as raised:
            load(SCHEMA, file=path, environment={})
        assert raised.value.reason == "CONFIG_INVALID"
        assert "cannot be read" in raised.value.message


def test_flags_and_variables_are_checked_too():
    _, found = read(SCHEMA, environment={"RADMESH_PORT": "eighty"}, flags={"door.colr": "red"})
    assert [str(problem) for problem in found] == [
        "flag: door.colr: no such setting; did you mean door.colour?",
        "environment RADMESH_PORT: door.port: must be a number, not eighty",
    ]


def test_secrets_are_masked_and_never_quoted(tmp_path):
    loaded = load(SCHEMA, environment={"RADMESH_URL": "postgresql://me:hush@host/db"})
    shown = {key: value for key, value, _ in loaded.effective()}
    assert shown["door.url"] == "postgresql://me:********@host/db"
    shown = {k: v for k, v, _ in load(SCHEMA, environment={"RADMESH_URL": "hush"}).effective()}
    assert shown["door.url"] == "********"
    assert not any("4711" in text for text in problems(tmp_path, "[door]\nurl = 4711\n"))


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (Duration, 0.25, "250ms"),
        (Duration, 10.0, "10s"),
        (Duration, 300.0, "5min"),
        (Duration, 0.0, "0s"),
        (Size, 64 << 20, "64MiB"),
        (Size, 1000, "1000B"),
        (Size, 0, "0B"),
    ],
)
def test_written_form(hint, value, text):
    assert write_value(hint, value) == text


@settings(max_examples=examples(200))
@given(st.one_of(st.binary(max_size=200), st.text(alphabet="[]dor.=\"'{}#\n1tstaion ", max_size=80).map(str.encode)))
def test_any_file_gives_a_configuration_or_problems(tmp_path, data):
    file = tmp_path / "any.toml"
    file.write_bytes(data)
    configuration, found = read(SCHEMA, file=file, environment={})
    assert (configuration is None) == bool(found)


@given(st.floats(0.1, 1e9, allow_nan=False).map(lambda x: round(x, 3)))
def test_durations_read_back_what_they_wrote(seconds):
    text = write_value(Duration, seconds)
    assert load(SCHEMA, environment={}, flags={"door.wait": text})["door"].wait == pytest.approx(seconds)
