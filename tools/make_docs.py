"""`make docs`: writes the pages of docs/ that are made from the code's tables; `--check` says which are out of date."""

# ruff: noqa: SLF001 - argparse tells what it has only in private.

import argparse
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FileDescriptor

from radmesh.api.application.v1 import application_pb2
from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.common.v1 import common_pb2
from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import (
    commitment_pb2,
    database_pb2,
    dicom_query_pb2,
    procedure_step_pb2,
    routing_pb2,
    stations_pb2,
)
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.proxy.v1 import proxy_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.application_server.dicomweb import reference as dicomweb_reference
from radmesh.application_server.http import reference as http_reference
from radmesh.client import shell
from radmesh.database_server import dicom_reference as query_reference
from radmesh.database_server.queries import OVERLAID
from radmesh.dicom import header
from radmesh.mesh import cli, reference
from radmesh.runtime import metrics, reasons
from radmesh.runtime.rpc import callers_of, roles_of
from radmesh_gateway_proxy import conformance

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROTOS: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        application_pb2,
        archive_pb2,
        commitment_pb2,
        common_pb2,
        connectivity_pb2,
        database_pb2,
        dicom_query_pb2,
        gateway_pb2,
        procedure_step_pb2,
        proxy_pb2,
        routing_pb2,
        stations_pb2,
        transfer_pb2,
    )
)


def rpc_document() -> str:
    """Return docs/reference/rpc.md."""
    lines = [
        "# Who may call what",
        "",
        "Made by `make docs` from the options `callers` and `roles` in protos/, which servers enforce.",
        "`*` = any component, or any signed-in person whose role is not none.",
    ]
    for proto in PROTOS:
        for service in proto.services_by_name.values():
            lines += ["", f"## {service.full_name}", "", "| rpc | components | persons |", "| --- | --- | --- |"]
            lines += [
                f"| {method.name} | {', '.join(callers_of(method))} | {', '.join(roles_of(method))} |"
                for method in service.methods
            ]
    return "\n".join(lines) + "\n"


def overlay_document() -> str:
    """Return docs/reference/overlay.md."""
    lines = [
        "# The corrections overlay",
        "",
        "Made by `make docs` from `radmesh.database_server.queries`. These values can be corrected; what the modality",
        "sent is kept beside them, and the stored object is never rewritten.",
        "",
        "| keyword | shown as |",
        "| --- | --- |",
        *(f"| {keyword} | {field} |" for keyword, field in OVERLAID.items()),
    ]
    return "\n".join(lines) + "\n"


def cli_document() -> str:
    """Return docs/reference/cli.md."""
    lines = [
        "# Commands",
        "",
        "Made by `make docs` from the command's own parsers, which also print it: `radmesh COMMAND --help`.",
        "",
        "| exit code | |",
        "| --- | --- |",
        *(f"| {code} | {text} |" for code, text in shell.EXIT_CODES.items()),
        "",
        "What is no result (errors, counts, progress) goes to stderr; a progress bar is shown on a terminal only.",
        "",
        "With `--json` a command prints one JSON object on stdout and nothing on stderr. Keys stay; new ones may come.",
        'An error is `{"error": {"reason", "message", "remedy"}}`; [errors](../errors.md) lists the reasons.',
        "`RADMESH_DEBUG=1` shows where in the code an error came from.",
    ]
    used: dict[str, type] = {}

    def arguments(parser: argparse.ArgumentParser) -> list[str]:
        rows = []
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
                continue
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            shown = action.metavar or "/".join(map(str, action.choices or ())) or action.dest.upper()
            value = f" {shown}" if action.option_strings and action.nargs != 0 else ""
            rows.append(f"| `{names}{value}` | {(action.help or '').replace('|', '/')} |")
        return rows

    common = arguments(shell.common_arguments())
    lines.extend(
        ["", "The commands that ask a cluster (all but up, serve, certificates, config, version) take also:", ""]
    )
    lines.extend(["| argument | what |", "| --- | --- |", *common])

    def walk(parser: argparse.ArgumentParser, summary: str) -> None:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if groups:
            for group in groups:
                helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
                for name, child in group.choices.items():
                    walk(child, helps.get(name, ""))
            return
        answers = parser.get_default("answers") or ()
        lines.extend(["", f"## {parser.prog}", "", f"{summary[:1].upper()}{summary[1:]}.", ""])
        rows = [row for row in arguments(parser) if not answers or row not in common]
        lines.extend(["| argument | what |", "| --- | --- |", *rows] if rows else [])
        if parser.epilog:
            lines.extend(["", f"`{str(parser.epilog).removeprefix('example: ')}`"])
        for answer in answers:
            keys = ", ".join(f'"{key}": {_json_type(kind, used)}' for key, kind in get_type_hints(answer).items())
            lines.extend(["", f"JSON `{{{keys}}}`  ", str(answer.__doc__)])
        if parser.prog in _JSON:
            lines.extend(["", f"JSON `{_JSON[parser.prog]}`"])

    walk(cli.parser(), "")
    lines.extend(["", "## In JSON", "", "Empty texts and lists, and null for a time, say that there is none."])
    todo = list(used)
    while todo:
        before = set(used)
        for kind in get_type_hints(used[todo.pop()]).values():
            _json_type(kind, used)
        todo += used.keys() - before
    for name, kind in sorted(used.items()):
        lines.extend(["", f"### {name}", "", " ".join(str(kind.__doc__).split()), "", "| key | |", "| --- | --- |"])
        lines.extend(f"| `{key}` | {_json_type(hint, used)} |" for key, hint in get_type_hints(kind).items())
    return "\n".join(lines) + "\n"


# What the commands that ask no cluster print with --json.
_JSON = {
    "radmesh certificates": '{"certificates": [text], "secrets": [text]}',
    "radmesh config check": '{"file": text, "problems": [{"where": text, "key": text, "rule": text}]}',
    "radmesh config print": '{setting: {"value": any, "source": text}}',
    "radmesh version": '{"version": text}',
}


def _json_type(kind: Any, used: dict[str, type]) -> str:
    """Return what a type of Python is in JSON; dataclasses are noted in `used`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return f"[{_json_type(arguments[0], used)}]"
    if origin is dict:
        return f"{{name: {_json_type(arguments[1], used)}}}"
    if arguments:  # X | None
        return f"{_json_type(arguments[0], used)} or null"
    if isinstance(kind, type) and is_dataclass(kind):
        used[kind.__name__] = kind
        return str(kind.__name__)
    return _JSON_TYPES[kind]


_JSON_TYPES: dict[type, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    bytes: "bytes, base64",
    datetime: "ISO 8601 time, UTC",
}

PAGES: dict[str, Callable[[], str]] = {
    "errors.md": reasons.document,
    "metrics.md": metrics.document,
    "reference/cli.md": cli_document,
    "reference/conformance.md": conformance.document,
    "reference/config.md": reference.document,
    "reference/dicomweb.md": dicomweb_reference.document,
    "reference/header.md": header.document,
    "reference/http.md": http_reference.document,
    "reference/overlay.md": overlay_document,
    "reference/query.md": query_reference.document,
    "reference/rpc.md": rpc_document,
}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = [name for name, make in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != make()]
    for name in stale:
        print(f"docs/{name} {'is out of date: run make docs' if check else 'written'}")
        if not check:
            (DOCS / name).write_text(PAGES[name]())
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
