"""The client's commands of `radmesh`, as groups: a module each."""

from typing import Any, Final

from radmesh.client import (
    admin_commands,
    picture_commands,
    ris_commands,
    route_commands,
    send_commands,
    shell,
    station_commands,
    study_commands,
)

# A new group of commands is a module with `register(command)` of its own (shell.Command says what it is given), and
# a word here: order is that of `radmesh --help`. What its commands print with --json goes into answers.py.
GROUPS: Final = (
    study_commands,
    picture_commands,
    ris_commands,
    send_commands,
    route_commands,
    station_commands,
    admin_commands,
)


def register(subparsers: Any) -> None:
    """Add the client's commands to the parser of `radmesh`."""
    command = shell.adder(subparsers)
    for group in GROUPS:
        group.register(command)
