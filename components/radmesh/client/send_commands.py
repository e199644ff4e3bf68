"""The command that has studies sent to stations, and shows what became of that."""

import argparse
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from radmesh.client import answers, shell
from radmesh.client.shell import FAILED, OK, Command, counted, moment, note, say, table
from radmesh.client.tables import Column

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster
    from radmesh.client.model import Sending

_ASK_SECONDS: Final = 0.5
_STATES: Final = {"QUEUED": "waiting", "LEASED": "on its way", "SUCCEEDED": "sent", "FAILED": "failed"}


def register(command: Command) -> None:
    """Add the command."""
    parser = command(
        "send",
        "send a study to a station by DICOM, or list what was sent",
        run_send,
        answers.Sendings,
        example="STUDY_UID --to WORKSTATION1",
    )
    parser.add_argument(
        "study", nargs="?", default="", metavar="STUDY_UID", help="Study Instance UID; without it, all jobs are listed"
    )
    parser.add_argument("--to", default="", metavar="AE", help="AE title of a station: see 'radmesh stations'")
    parser.add_argument("--wait", action="store_true", help="until it is sent, or cannot be")
    parser.add_argument("--limit", type=shell.positive, default=50, metavar="N", help="of the list, at most (50)")
    jobs = command(
        "sends",
        "what is sent to stations, by persons and by routes: list it, retry or cancel it",
        run_sends,
        answers.Sendings,
        example="retry 17",
    )
    jobs.add_argument(
        "action",
        nargs="?",
        choices=("list", "retry", "cancel"),
        default="list",
        help="list (also without), retry (one that failed), cancel (what was sent of it stays sent)",
    )
    jobs.add_argument("job", nargs="?", type=shell.positive, metavar="JOB", help="its number in the list")
    jobs.add_argument("--limit", type=shell.positive, default=50, metavar="N", help="of the list, at most (50)")


def run_send(arguments: argparse.Namespace) -> int:
    """Send a study, or list what was sent."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if bool(arguments.study) != bool(arguments.to):
        raise RadmeshError("FIELD_INVALID", "what, and where to? radmesh send STUDY_UID --to AE")
    with shell.connect(arguments) as cluster:
        if arguments.study:
            sending = cluster.send(arguments.study, arguments.to)
            found = [_awaited(cluster, sending) if arguments.wait else sending]
        else:
            found = list(islice(cluster.sendings(), arguments.limit))
    if arguments.json:
        shell.print_json(answers.Sendings(tuple(found)))
    elif arguments.study:
        say(f"{_STATES.get(found[0].state, found[0].state)}: {found[0].message or 'job ' + str(found[0].id)}")
    else:
        _print(found)
    return FAILED if arguments.study and found[0].state == "FAILED" else OK


def run_sends(arguments: argparse.Namespace) -> int:
    """List, retry or cancel jobs."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if bool(arguments.job) == (arguments.action == "list"):
        raise RadmeshError("FIELD_INVALID", "which? radmesh sends retry JOB, or cancel JOB; the list has its number")
    with shell.connect(arguments) as cluster:
        if arguments.action == "list":
            found = list(islice(cluster.sendings(), arguments.limit))
        else:
            change = cluster.retry_send if arguments.action == "retry" else cluster.cancel_send
            found = [change(arguments.job)]
    if arguments.json:
        shell.print_json(answers.Sendings(tuple(found)))
    else:
        _print(found)
    return OK


def _awaited(cluster: "Cluster", sending: "Sending") -> "Sending":
    """Return it when it has ended."""
    while sending.state in ("QUEUED", "LEASED"):
        time.sleep(_ASK_SECONDS)
        sending = next((s for s in cluster.sendings() if s.id == sending.id), sending)
    return sending


def _print(found: "list[Sending]") -> None:
    table(
        "",
        [
            Column("job"),
            Column("study", below=True),
            Column("to"),
            Column("by", below=True),
            Column("is"),
            Column("tries"),
            Column("next try"),
            Column("what was done, or why not", below=True),
        ],
        [
            [
                str(s.id),
                s.study_instance_uid,
                s.station,
                s.by or ", ".join(s.routes),
                _STATES.get(s.state, s.state),
                str(s.attempt),
                moment(s.due_time) if s.state == "QUEUED" else "",
                s.message,
            ]
            for s in found
        ],
    )
    note(counted(len(found), "job"))
