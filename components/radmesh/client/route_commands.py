"""The command that shows and edits the rules by which studies leave by themselves: routes."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from radmesh.client import answers, shell
from radmesh.client.shell import OK, Command, counted, note, say, table
from radmesh.client.tables import Column
from radmesh.dicom import routes

if TYPE_CHECKING:
    from radmesh.client.model import Route, RouteTest

# Options of `set`.
_LISTS: Final = (
    ("destinations", "AE titles of the stations that get it"),
    ("stations", "AE titles that sent some of it; '' = any"),
    ("modalities", "at least one of its modalities; '' = any"),
    ("verification", f"what it may be verified as: some of {', '.join(routes.VERIFICATION)}"),
    ("reading", f"how far its report may be: some of {', '.join(routes.READING)}; '' = any"),
)
_SWITCHES: Final = (
    ("key_images", "whether only Key Object Selection documents, and what they refer to, are sent"),
    ("enabled", "whether it counts"),
)
_WHY: Final = {
    "": "it fires",
    "DISABLED": "it is not enabled",
    "STATION": "none of its stations sent it",
    "MODALITY": "it has none of its modalities",
    "VERIFICATION": "it is not verified so",
    "READING": "its report is not so far",
    "KEY_IMAGES": "it has no Key Object Selection document",
    "COMPLETION": "it waits: more may come",
    "WINDOW": "it waits for its time",
}


def register(command: Command) -> None:
    """Add the command."""
    parser = command(
        "routes",
        "the rules by which studies leave by themselves",
        run_routes,
        answers.Routes,
        answers.RouteTests,
        example="set to-archive --destinations PACS2 --modalities CT,MR --window 20:00-06:00",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "set", "remove", "test"),
        default="list",
        help="list (also without), set (adds it, or changes what is given), remove, test (which fire for a study)",
    )
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="which; of test: a Study Instance UID")
    for field, text in _LISTS:
        parser.add_argument(f"--{field}", metavar="LIST", help=f"{text}; with commas")
    parser.add_argument("--window", metavar="TIMES", help="when sending may begin, such as 20:00-06:00; '' = always")
    for field, text in _SWITCHES:
        parser.add_argument(
            f"--{field.replace('_', '-')}", action=argparse.BooleanOptionalAction, default=None, help=text
        )


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is to be set, of what was given."""
    given = {name: getattr(arguments, name) for name in ("window", *(s[0] for s in _SWITCHES))}
    for name, _ in _LISTS:
        value = getattr(arguments, name)
        given[name] = None if value is None else tuple(filter(None, (part.strip() for part in value.split(","))))
    return {name: value for name, value in given.items() if value is not None}


def run_routes(arguments: argparse.Namespace) -> int:
    """List, edit or test routes."""
    from radmesh.client.model import Route  # noqa: PLC0415
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    name, changes = arguments.name, _changes(arguments)
    if bool(name) == (arguments.action == "list"):
        which = "STUDY_UID" if arguments.action == "test" else "NAME"
        raise RadmeshError(
            "FIELD_INVALID", f"which? radmesh routes set|remove|test {which}", metadata={"field": "name"}
        )
    if bool(changes) != (arguments.action == "set"):
        raise RadmeshError("FIELD_INVALID", "to change one: radmesh routes set NAME --destinations AE …")
    found: list[Route] = []
    with shell.connect(arguments) as cluster:
        if arguments.action == "test":
            tests = cluster.test_routes(name)
            if arguments.json:
                shell.print_json(answers.RouteTests(tuple(tests)))
            else:
                _print_tests(tests)
            return OK
        if arguments.action == "list":
            found = cluster.routes()
        elif arguments.action == "remove":
            cluster.delete_route(name)
        else:
            known = next((route for route in cluster.routes() if route.name == name), Route(name, ()))
            found = [cluster.set_route(replace(known, **changes))]
    if arguments.json:
        shell.print_json(answers.Routes(tuple(found)))
    elif arguments.action == "remove":
        say(f"{name} removed")
    else:
        _print(found)
    return OK


def _print(found: "list[Route]") -> None:
    table(
        "",
        [
            Column("route"),
            Column("to", below=True),
            Column("from", below=True),
            Column("modalities", below=True),
            Column("verified", below=True),
            Column("report", below=True),
            Column("when"),
            Column("what"),
            Column("set by"),
        ],
        [
            [
                r.name,
                ", ".join(r.destinations),
                ", ".join(r.stations) or "any",
                ", ".join(r.modalities) or "any",
                ", ".join(r.verification),
                ", ".join(r.reading) or "any",
                (r.window or "always") if r.enabled else "never",
                "key images" if r.key_images else "all",
                "a person" if r.edited else "the configuration",
            ]
            for r in found
        ],
    )
    note(counted(len(found), "route"))


def _print_tests(found: "list[RouteTest]") -> None:
    table(
        "",
        [Column("route"), Column("fires"), Column("why", below=True), Column("to", below=True)],
        [
            [
                t.route,
                "yes" if t.fires else "no",
                _WHY.get(t.reason, t.reason),
                ", ".join(
                    f"{d.station} ({d.undelivered} not sent yet)" if d.known else f"{d.station} (not in the registry)"
                    for d in t.destinations
                ),
            ]
            for t in found
        ],
    )
    note(counted(len(found), "route"))
