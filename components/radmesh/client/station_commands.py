"""The command that shows and edits the DICOM nodes outside: stations."""

import argparse
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from radmesh.client import answers, shell
from radmesh.client.shell import FAILED, OK, Command, counted, moment, note, say, table
from radmesh.client.tables import Column
from radmesh.dicom import stations

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster
    from radmesh.client.model import Station

# Options of `set`: field, what it may be (empty: any text), what it is.
_TEXTS: Final = (
    ("ae_title", (), "what it calls itself, and is called by"),
    ("domain", (), "RIS domain of its studies; by-object = the object tells"),
    ("verification", stations.VERIFICATION, "what becomes of a study without an order"),
    ("study_key", stations.STUDY_KEYS, "how a study finds its order"),
    ("patient_key", stations.PATIENT_KEYS, "what of the patient must agree"),
    ("on_ris_unavailable", stations.ON_RIS_UNAVAILABLE, "what becomes of a study while its RIS is away"),
    ("host", (), "where it takes associations; '' = it is not sent to"),
    ("certificate", (), "SHA-256 of the certificate that it has to show; '' = none"),
    ("character_set", stations.CHARACTER_SETS, "what it is answered in; '' = whatever fits"),
    ("commit_report", stations.COMMIT_REPORTS, "where it is told what is stored for good"),
)
_LISTS: Final = (
    ("addresses", "IP addresses or networks it calls from, with commas; '' = any"),
    ("grants", f"what it may do, with commas: {', '.join(stations.GRANTS)}"),
    ("options", f"what is done for it beside, with commas: {', '.join(stations.OPTIONS)}; '' = nothing"),
    ("transfer_syntaxes", "UIDs it is sent objects in, the best first, with commas; '' = as stored"),
)
_SWITCHES: Final = (
    ("tls", "whether it is sent to over TLS"),
    ("accession_identifies_patient", "unsafe: an accession number that agrees is enough"),
)


def register(command: Command) -> None:
    """Add the command."""
    parser = command(
        "stations",
        "the DICOM nodes outside, and what each may do",
        run_stations,
        answers.Stations,
        answers.Echoed,
        example="set CT1 --grants store,commit --host 10.1.2.3 --port 104",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "show", "set", "remove", "echo"),
        default="list",
        help="list (also without), show, set (adds it, or changes what is given), remove, echo (calls it: C-ECHO)",
    )
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="which; a new one has it as its AE title")
    for field, allowed, text in _TEXTS:
        parser.add_argument(
            _option(field), choices=allowed or None, metavar=field.rpartition("_")[2].upper(), help=text
        )
    for field, text in _LISTS:
        parser.add_argument(_option(field), metavar="LIST", help=text)
    parser.add_argument("--port", type=int, metavar="N", help="its port there")
    for field, text in _SWITCHES:
        parser.add_argument(_option(field), action=argparse.BooleanOptionalAction, default=None, help=text)


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is to be set, of what was given."""
    given = {name: getattr(arguments, name) for name in (*(t[0] for t in _TEXTS), "port", *(s[0] for s in _SWITCHES))}
    for name, _ in _LISTS:
        value = getattr(arguments, name)
        given[name] = None if value is None else tuple(filter(None, (part.strip() for part in value.split(","))))
    if given["host"] == "" and given["port"] is None:
        given["port"] = 0
    return {name: value for name, value in given.items() if value is not None}


def run_stations(arguments: argparse.Namespace) -> int:
    """List, show or edit stations."""
    from radmesh.client.model import Station  # noqa: PLC0415
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    name, changes = arguments.name, _changes(arguments)
    if arguments.action != "list" and not name:
        raise RadmeshError(
            "FIELD_INVALID", f"which? radmesh stations {arguments.action} NAME", metadata={"field": "name"}
        )
    if changes and arguments.action != "set":
        raise RadmeshError(
            "FIELD_INVALID", f"to change it: radmesh stations set {name or 'NAME'} …", metadata={"field": "action"}
        )
    with shell.connect(arguments) as cluster:
        found = [] if arguments.action == "remove" else cluster.stations()
        if arguments.action == "echo":
            return _echo(arguments, cluster, next((s.ae_title for s in found if s.name == name), name))
        if arguments.action == "remove":
            cluster.delete_station(name)
        elif arguments.action == "set":
            known = next((station for station in found if station.name == name), None)
            station = known or Station(name, name, grants=("store",))
            found = [cluster.set_station(replace(station, **changes))]
        elif arguments.action == "show":
            found = [station for station in found if name in (station.name, station.ae_title)]
            if not found:
                raise RadmeshError("STATION_NOT_FOUND", f"there is no station {name}: see 'radmesh stations'")
    if arguments.json:
        shell.print_json(answers.Stations(tuple(found)))
    elif arguments.action == "remove":
        say(f"{name} removed")
    elif arguments.action == "list":
        _print_list(found)
    else:
        for station in found:
            _print_one(station)
    return OK


def _echo(arguments: argparse.Namespace, cluster: "Cluster", ae_title: str) -> int:
    status, seconds = cluster.echo_station(ae_title)
    if arguments.json:
        shell.print_json(answers.Echoed(ae_title, status, seconds))
    else:
        say(f"{ae_title} answers with status 0x{status:04X} after {seconds:.3f} s")
    return OK if status == 0 else FAILED


def _print_list(found: "list[Station]") -> None:
    table(
        "",
        [
            Column("station"),
            Column("AE title"),
            Column("from", below=True),
            Column("may", below=True),
            Column("is at"),
            Column("domain"),
            Column("set by"),
        ],
        [
            [
                s.name,
                s.ae_title,
                ", ".join(s.addresses) or "anywhere",
                ", ".join(s.grants) or "nothing",
                f"{s.host}:{s.port}{' TLS' if s.tls else ''}" if s.port else "",
                s.domain,
                "a person" if s.edited else "the configuration",
            ]
            for s in found
        ],
    )
    note(counted(len(found), "station"))


def _print_one(station: "Station") -> None:
    rows = []
    for field in fields(station):
        value = getattr(station, field.name)
        if field.name == "update_time":
            value = moment(value)
        elif isinstance(value, tuple):
            value = ", ".join(value)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        rows.append([field.name.replace("_", " "), str(value)])
    table("", [Column("what"), Column("is")], rows)
