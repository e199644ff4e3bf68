"""What every command of the client stands on: arguments, sign-in, exit codes, errors, JSON, tables, progress.

Imports stay light: what a command needs is imported when it runs, so that `radmesh --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from radmesh.client import tables
from radmesh.client.tables import Column

if TYPE_CHECKING:
    from datetime import datetime

    from radmesh.client.answers import FailedFile
    from radmesh.client.cluster import Cluster

OK, FAILED, USAGE, UNREACHABLE, REFUSED, NOT_FOUND, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
EXIT_CODES: Final = {
    OK: "done",
    FAILED: "failed; of `status`: something needs attention",
    USAGE: "wrong usage, configuration or input",
    UNREACHABLE: "the cluster cannot be reached, or not all of it: try again",
    REFUSED: "refused: who you are, or what you may do",
    NOT_FOUND: "there is no such thing",
    PARTIAL: "done in part: some files were stored or fetched, others were not",
    INTERRUPTED: "interrupted by Ctrl-C",
}
_BY_STATUS: Final = {
    "INVALID_ARGUMENT": USAGE,
    "UNAVAILABLE": UNREACHABLE,
    "DEADLINE_EXCEEDED": UNREACHABLE,
    "UNAUTHENTICATED": REFUSED,
    "PERMISSION_DENIED": REFUSED,
    "NOT_FOUND": NOT_FOUND,
}


def exit_code(error: Exception) -> int:
    """Return the exit code of an error."""
    if getattr(error, "reason", "") in ("FILE_UNREADABLE", "FOLDER_EMPTY"):
        return USAGE  # what is not found is what the caller named on this machine
    return _BY_STATUS.get(getattr(getattr(error, "code", None), "name", ""), FAILED)


class Command(Protocol):
    """Adds a command to `radmesh`; see `commands.register`."""

    def __call__(
        self, name: str, summary: str, run: Callable[[argparse.Namespace], int], *answers: type, example: str = ""
    ) -> argparse.ArgumentParser:
        """Return the parser of the new command `name`; its own arguments are added to it.

        Args:
            name: what is typed behind `radmesh`.
            summary: one line for `--help`.
            run: runs the command; returns OK, PARTIAL or FAILED, and raises RadmeshError.
            answers: dataclasses, one of which `--json` prints (docs/reference/cli.md lists their keys).
            example: arguments that show it at work.
        """


def common_arguments() -> argparse.ArgumentParser:
    """Return the arguments that every command has: which cluster, who asks, and in what form to answer."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("cluster", "default: the cluster that 'radmesh up' runs here")
    group.add_argument("--data", metavar="DIR", help="its data directory (RADMESH_DATA, else ./radmesh-data)")
    group.add_argument("--cluster", metavar="HOST:PORT", help="a cluster elsewhere (RADMESH_CLUSTER)")
    group.add_argument("--ca", metavar="FILE", help="certificate of its authority, PEM (RADMESH_CA)")
    group.add_argument("--user", metavar="NAME", help="user name (RADMESH_USER, else admin)")
    group.add_argument("--password-file", metavar="FILE", help="file with the password (else RADMESH_PASSWORD)")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    return common


def adder(subparsers: Any) -> Command:
    """Return what adds commands to the parser of `radmesh`, each with the arguments that all have."""
    common = common_arguments()

    def command(
        name: str, summary: str, run: Callable[[argparse.Namespace], int], *answers: type, example: str = ""
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[:1].upper()}{summary[1:]}.",
            epilog=f"example: radmesh {name} {example}" if example else None,
            parents=[common],
        )
        parser.set_defaults(run=lambda arguments: _guarded(run, arguments), answers=answers)
        return parser

    return command


def _guarded(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; report what goes wrong, and return the exit code."""
    # gRPC's own words about a connection that fails stand in the way of ours.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if os.environ.get("RADMESH_DEBUG") else "NONE")
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415 - brings gRPC

    try:
        code = run(arguments)
        # What the disk has no room for must not be found out by nobody.
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        raise  # no errors: `radmesh` ends with what they ask for
    except RadmeshError as error:
        if os.environ.get("RADMESH_DEBUG"):
            raise
        return report(error, as_json=arguments.json)
    except OSError as error:
        if error.filename is not None:
            raise
        failure = RadmeshError("FILE_NOT_WRITTEN", f"cannot write the output: {error.strerror or error}")
        # What is still in the buffer would fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report(failure, as_json=False)
    return code


def report(error: Any, *, as_json: bool) -> int:
    """Print cause and remedy of a RadmeshError; return the exit code."""
    if as_json:
        about = {"reason": error.reason, "message": error.message, "remedy": error.definition.remedy}
        print_json({"error": about})
    else:
        note(f"radmesh: {error.message}\n  {error.reason}: {error.definition.remedy}")
    return exit_code(error)


def connect(arguments: argparse.Namespace) -> "Cluster":
    """Sign in as the arguments and the environment say."""
    from radmesh.client.cluster import Cluster  # noqa: PLC0415
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    user = arguments.user or os.environ.get("RADMESH_USER") or "admin"
    password = read_secret(arguments.password_file) if arguments.password_file else None
    target = arguments.cluster or os.environ.get("RADMESH_CLUSTER")
    if not target:
        return Cluster.local(arguments.data, user=user, password=password)
    password = password or os.environ.get("RADMESH_PASSWORD")
    if not password:
        if not sys.stdin.isatty():
            raise RadmeshError("PASSWORD_MISSING", "give a password: --password-file, or RADMESH_PASSWORD")
        import getpass  # noqa: PLC0415

        password = getpass.getpass(f"password of {user}: ")
    ca = arguments.ca or os.environ.get("RADMESH_CA")
    return Cluster.connect(target, user=user, password=password, ca_certificate=read_file(ca) if ca else None)


def read_file(path: str) -> bytes:
    """Return what is in a file that the caller named.

    Raises:
        RadmeshError: FILE_UNREADABLE.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RadmeshError("FILE_UNREADABLE", f"cannot read {path}: {error.strerror}") from error


def read_secret(path: str) -> str:
    """Return the password in a file, without the line's end.

    Raises:
        RadmeshError: FILE_UNREADABLE, PASSWORD_MISSING.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    try:
        password = read_file(path).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RadmeshError("FILE_UNREADABLE", f"cannot read {path}: it is no text in UTF-8") from error
    if not password:
        raise RadmeshError("PASSWORD_MISSING", f"{path} is empty: write the password into it")
    return password


@contextmanager
def output_file(path: Path) -> Iterator[Any]:
    """Open `path` for writing; it appears when it is whole, and nothing of it stays if it does not become whole.

    Raises:
        RadmeshError: FILE_NOT_WRITTEN.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RadmeshError("FILE_NOT_WRITTEN", f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def positive(text: str) -> int:
    """Return a number of arguments: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


# -- what is printed


def print_json(value: Any) -> None:
    """Print a dataclass, or data, as JSON."""
    import json  # noqa: PLC0415

    from radmesh.client.model import jsonable  # noqa: PLC0415

    print(json.dumps(jsonable(value), ensure_ascii=False, indent=2))  # noqa: T201


def table(title: str, columns: list[Column], rows: list[list[str]]) -> None:
    """Print a table, if it has rows."""
    if rows:
        tables.show(title, columns, rows)


def say(text: str) -> None:
    """Print a line of the result, for people."""
    print(tables.printable(text))  # noqa: T201


def note(text: str) -> None:
    """Say what is no result: it goes beside what programs read."""
    print(text, file=sys.stderr)  # noqa: T201


def print_json_line(value: Any) -> None:
    """Print a dataclass, or data, as JSON on one line."""
    import json  # noqa: PLC0415

    from radmesh.client.model import jsonable  # noqa: PLC0415

    print(json.dumps(jsonable(value), ensure_ascii=False))  # noqa: T201


def print_failures(failed: "Sequence[FailedFile]") -> None:
    """Say which instances could not be fetched, the first of them."""
    for failure in failed[:20]:
        note(f"{failure.instance}: {failure.reason}: {failure.message}")
    if len(failed) > 20:
        note(f"… and {len(failed) - 20} more that failed")


def print_remedies(failed: "Sequence[FailedFile]") -> None:
    """Say what to do about each reason."""
    for reason in sorted({failure.reason for failure in failed}):
        note(f"  {reason}: {remedy(reason)}")


def progress(task: str, *, quiet: bool, counting: bool = False) -> Any:
    """Return a progress bar (rich) on the terminal; none if `quiet`, and none in a pipe or a file.

    It shows bytes, or, if `counting`, a number of things.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn(task + " {task.description}"),
        BarColumn(),
        *((MofNCompleteColumn(),) if counting else (DownloadColumn(), TransferSpeedColumn())),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


def moment(time: "datetime | None") -> str:
    """Return a time for people: 2026-01-31 23:59:59."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time else ""


def counted(number: int, noun: str) -> str:
    """Return "1 study", "2 studies"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun if noun.endswith("s") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def size_text(size: float) -> str:
    """Return a size for people: 525.5 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def age_text(seconds: float) -> str:
    """Return a time that has passed, for people: 8 s, 3 min, 2 h 5 min, 4 d 3 h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if not hours:
        return f"{minutes} min"
    if not days:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"


def remedy(reason: str, *, without: str = "") -> str:
    """Return what to do about a reason, but for the parts that speak of `without`; empty if there is nothing."""
    from radmesh.runtime.reasons import REASONS  # noqa: PLC0415

    parts = REASONS[reason].remedy.split("; ") if reason in REASONS else []
    return "; ".join(part for part in parts if not without or without not in part)
