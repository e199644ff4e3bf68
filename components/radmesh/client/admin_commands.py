"""The commands that show and run the cluster: status, users, rejects, audit."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from radmesh.client import answers, shell
from radmesh.client.shell import FAILED, OK, Command, age_text, counted, moment, note, say, size_text, table
from radmesh.client.tables import Column

if TYPE_CHECKING:
    from datetime import datetime

    from radmesh.client.model import ClusterStatus, ComponentStatus

ROLES: Final = ("none", "technologist", "radiologist", "administrator")


def register(command: Command) -> None:
    """Add the commands."""
    status = command("status", "what runs where, and how it is", run_status, answers.Health)
    status.add_argument("--verbose", action="store_true", help="all figures, also those that are nought")
    status.add_argument("--watch", action="store_true", help="again every two seconds, with rates, until interrupted")

    users = command("users", "list and change users", run_users, answers.Users, example="add jane --role radiologist")
    users.add_argument(
        "action",
        nargs="?",
        choices=("list", "add", "set", "remove"),
        default="list",
        help="list (also without), add, set, remove",
    )
    users.add_argument("name", nargs="?", default="", metavar="NAME", help="the user's name")
    users.add_argument("--role", default="", choices=("", *ROLES), metavar="ROLE", help=", ".join(ROLES))
    users.add_argument("--display-name", metavar="TEXT", help="name for people")
    users.add_argument(
        "--new-password-file", metavar="FILE", help="file with the user's password; else it is asked for"
    )

    rejects = command(
        "rejects",
        "what could not be stored as DICOM; its bytes were kept",
        run_rejects,
        answers.Rejects,
        answers.Kept,
        answers.Deleted,
        example="get ID --out FILE",
    )
    rejects.add_argument(
        "action", nargs="?", choices=("list", "get", "delete"), default="list", help="list (also without), get, delete"
    )
    rejects.add_argument("id", nargs="?", default="", metavar="ID", help="which, as the list names it")
    rejects.add_argument("--out", type=Path, metavar="FILE", help="where 'get' writes the bytes (ID.bin)")

    audit = command("audit", "who did what", run_audit, answers.Audited, example="--action SIGN_IN --actor jane")
    audit.add_argument("--action", default="", metavar="NAME", help="such as SIGN_IN, STUDY_READ")
    audit.add_argument("--actor", default="", metavar="NAME", help="user, AE title or component")
    audit.add_argument("--object", default="", metavar="NAME", help="Study Instance UID or user name")
    audit.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="events at most (100)")


def run_status(arguments: argparse.Namespace) -> int:
    """Show the cluster; FAILED if anything is not as it should be."""
    import time  # noqa: PLC0415

    with shell.connect(arguments) as cluster:
        before: ClusterStatus | None = None
        while True:
            status = cluster.status()
            if arguments.json:
                shell.print_json(answers.Health(status.healthy, status))
            else:
                if arguments.watch and sys.stdout.isatty():
                    print("\x1b[H\x1b[2J", end="")  # noqa: T201 - the screen shows one status at a time
                _print_status(status, before, verbose=arguments.verbose)
            sys.stdout.flush()
            if not arguments.watch:
                return OK if status.healthy else FAILED
            before = status
            time.sleep(2)


# What says most, first; without --verbose a component shows the first few of them that are not nought.
_FIGURES: Final = (
    *("unregistered", "spooled", "rejects", "defective", "objects", "megabytes", "permanent", "associations_open"),
    *("objects_stored", "bytes_received", "associations_total", "associations_refused", "drained", "revision"),
)
_FEW: Final = 4
# Figures that only rise while a process runs: of these a rate says something.
_COUNTERS: Final = ("objects", "megabytes", "permanent", "objects_stored", "bytes_received", "drained")


def _amount(name: str, value: float) -> str:
    if name == "megabytes":
        return size_text(value * 1e6)
    if name.startswith("bytes"):
        return size_text(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _figures(now: "ComponentStatus", before: "ComponentStatus | None", seconds: float, *, every: bool) -> str:
    """Return figures of a component, such as "163 objects (12/s), 162 permanent"."""

    def rank(name: str) -> tuple[int, str]:
        return (_FIGURES.index(name) if name in _FIGURES else len(_FIGURES), name)

    # A process that was started again counts from nought.
    earlier = before.figures if before and before.pid == now.pid and seconds > 0 else {}
    said: list[str] = []
    for name in sorted(now.figures, key=rank):
        value = now.figures[name]
        if not every and (not value or len(said) == _FEW):
            continue
        noun = "" if name == "megabytes" else " " + name.removeprefix("bytes_").replace("_", " ")
        rate = (value - earlier[name]) / seconds if name in _COUNTERS and name in earlier else 0
        said.append(f"{_amount(name, value)}{noun}" + (f" ({_amount(name, rate)}/s)" if rate > 0 else ""))
    return ", ".join(said)


def _alarms(status: "ClusterStatus") -> list[list[str]]:
    """Return what somebody should look at: where, reason, since when, what, and what to do."""

    def since(time: "datetime | None") -> str:
        return age_text((status.time - time).total_seconds()) if time else ""

    rows = []
    for c in status.components:
        for a in c.alarms:
            # That of a background worker names the reason in its text: "PEER_TIMEOUT: …".
            names = (a.reason, a.message.partition(":")[0])
            remedy = next(filter(None, (shell.remedy(name, without="radmesh status") for name in names)), "")
            if c.state == "UNREACHABLE":
                remedy = f"it restarts by itself; if it does not: logs/{c.instance}.log in the data directory says why"
            rows.append([c.instance, a.reason, since(a.since), a.message, remedy])
    rows += [
        [s.store_id, "SILENT", since(s.heartbeat_time), "the store does not tell that it lives", "see its component"]
        for s in status.stores
        if not s.alive
    ]
    return rows


def _print_status(status: "ClusterStatus", before: "ClusterStatus | None", *, verbose: bool) -> None:
    seconds = (status.time - before.time).total_seconds() if before else 0.0
    earlier = {c.instance: c for c in before.components} if before else {}
    table(
        "",
        [
            Column("component"),
            Column("state"),
            Column("pid"),
            Column("up", right=True),
            Column("figures", below=True),
        ],
        [
            [
                c.instance,
                c.state.lower(),
                str(c.pid or ""),
                age_text((status.time - c.start_time).total_seconds()) if c.start_time else "",
                _figures(c, earlier.get(c.instance), seconds, every=verbose),
            ]
            for c in status.components
        ],
    )
    table(
        "stores",
        [
            Column("store"),
            Column("kind"),
            Column("state"),
            Column("room", right=True),
            Column("unregistered", right=True),
        ],
        [
            [
                s.store_id,
                s.kind.lower(),
                "silent" if not s.alive else "accepting" if s.accepting else "not accepting",
                size_text(s.free_bytes),
                f"{s.unregistered:,}",
            ]
            for s in status.stores
        ],
    )
    alarms = _alarms(status)
    table(
        "alarms",
        [
            Column("where"),
            Column("reason"),
            Column("for", right=True),
            Column("what", below=True),
            Column("what to do", below=True),
        ],
        alarms,
    )
    say("")
    say(counted(len(alarms), "alarm") if alarms else "all is well" if status.healthy else "not all serves")


def run_users(arguments: argparse.Namespace) -> int:
    """List or change users."""
    import getpass  # noqa: PLC0415

    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    def new_password(*, needed: bool) -> str:
        if arguments.new_password_file:
            return shell.read_secret(arguments.new_password_file)
        if not needed:
            return ""
        if not sys.stdin.isatty():
            raise RadmeshError("PASSWORD_MISSING", "give the new password: --new-password-file FILE")
        password = getpass.getpass(f"new password of {arguments.name}: ")
        if password != getpass.getpass("again: "):
            raise RadmeshError("PASSWORD_MISSING", "the two passwords differ")
        return password

    if arguments.action != "list" and not arguments.name:
        raise RadmeshError("FIELD_INVALID", f"whom? radmesh users {arguments.action} NAME", metadata={"field": "name"})
    with shell.connect(arguments) as cluster:
        if arguments.action == "add":
            role = arguments.role or "none"
            password = new_password(needed=True)
            users = [
                cluster.create_user(
                    arguments.name, password=password, role=role, display_name=arguments.display_name or ""
                )
            ]
        elif arguments.action == "set":
            change_password = not arguments.role and arguments.display_name is None
            users = [
                cluster.update_user(
                    arguments.name,
                    role=arguments.role,
                    display_name=arguments.display_name,
                    password=new_password(needed=change_password),
                )
            ]
        elif arguments.action == "remove":
            cluster.delete_user(arguments.name)
            users = []
        else:
            users = cluster.users()
    if arguments.json:
        shell.print_json(answers.Users(tuple(users)))
    elif users:
        table(
            "",
            [Column("user"), Column("role"), Column("name", cut=True), Column("last sign-in (UTC)")],
            [[u.name, u.role, u.display_name, moment(u.last_sign_in_time)] for u in users],
        )
    else:
        say(f"{arguments.name} removed")
    return OK


def run_rejects(arguments: argparse.Namespace) -> int:
    """List, fetch or delete rejects."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if arguments.action != "list" and not arguments.id:
        raise RadmeshError("FIELD_INVALID", f"which? radmesh rejects {arguments.action} ID", metadata={"field": "id"})
    with shell.connect(arguments) as cluster:
        if arguments.action == "get":
            path = arguments.out or Path(f"{Path(arguments.id).name}.bin")
            with shell.output_file(path) as file:
                size = cluster.read_reject(arguments.id, file)
            if arguments.json:
                shell.print_json(answers.Kept(str(path), size))
            else:
                say(f"{path}: {size_text(size)}")
        elif arguments.action == "delete":
            cluster.delete_reject(arguments.id)
            if arguments.json:
                shell.print_json(answers.Deleted(arguments.id))
            else:
                say(f"{arguments.id} deleted")
        else:
            rejects = list(cluster.rejects())
            if arguments.json:
                shell.print_json(answers.Rejects(tuple(rejects)))
            else:
                table(
                    "",
                    [
                        Column("received (UTC)"),
                        Column("from", cut=True),
                        Column("reason"),
                        Column("tag"),
                        Column("size", right=True),
                        Column("what", below=True),
                        Column("id", below=True),
                    ],
                    [
                        [
                            moment(r.receive_time),
                            f"{r.calling_ae_title} {r.source_address}",
                            r.reason,
                            r.tag,
                            size_text(r.length) + (" (cut)" if r.cut else ""),
                            r.message,
                            r.id,
                        ]
                        for r in rejects
                    ],
                )
                note(counted(len(rejects), "reject"))
    return OK


def run_audit(arguments: argparse.Namespace) -> int:
    """List the audit table."""
    with shell.connect(arguments) as cluster:
        events = list(
            cluster.audit(
                action=arguments.action, actor=arguments.actor, object=arguments.object, limit=arguments.limit + 1
            )
        )
    more = len(events) > arguments.limit
    events = events[: arguments.limit]
    if arguments.json:
        shell.print_json(answers.Audited(tuple(events), more))
        return OK
    table(
        "",
        [
            Column("time (UTC)"),
            Column("who", cut=True),
            Column("from"),
            Column("what"),
            Column("outcome"),
            Column("object", below=True),
        ],
        [[moment(e.time), e.actor, e.source_address, e.action, e.outcome, e.object] for e in events],
    )
    note(f"the last {len(events)}; more with --limit" if more else counted(len(events), "event"))
    return OK
