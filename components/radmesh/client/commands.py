"""The client's commands of `radmesh`: store, find, get, show, status, users, rejects, audit, evict.

Imports stay light: what a command needs is imported when it runs, so that `radmesh --help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radmesh.client.tables import Column

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster
    from radmesh.client.model import Study

ROLES = ("none", "technologist", "radiologist", "administrator")
# Exit codes, as `radmesh --help` lists them; errors that are raised get theirs from radmesh.mesh.cli.
OK, PARTIAL = 0, 1


def register(subparsers: Any) -> None:
    """Add the client's commands to the parser of `radmesh`."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("cluster", "default: the cluster that 'radmesh up' runs here")
    group.add_argument("--data", metavar="DIR", help="its data directory (RADMESH_DATA, else ./radmesh-data)")
    group.add_argument("--cluster", metavar="HOST:PORT", help="a cluster elsewhere (RADMESH_CLUSTER)")
    group.add_argument("--ca", metavar="FILE", help="certificate of its authority, PEM (RADMESH_CA)")
    group.add_argument("--user", metavar="NAME", help="user name (RADMESH_USER, else admin)")
    group.add_argument("--password-file", metavar="FILE", help="file with the password (else RADMESH_PASSWORD)")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")

    def command(name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(
            name, help=summary, description=summary, parents=[common]
        )
        parser.set_defaults(run=run)
        return parser

    store = command("store", "store DICOM files and folders in the cluster", run_store)
    store.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder with all below it")

    find = command("find", "find studies", run_find)
    find.add_argument("--patient-id", default="", help="Patient ID; * and ? are wildcards")
    find.add_argument("--issuer", default="", help="Issuer of Patient ID")
    find.add_argument("--patient-name", default="", help="name, such as 'doe^j*', in any case and script")
    find.add_argument("--accession", default="", help="Accession Number")
    find.add_argument(
        "--date", default="", help="Study Date or range: 20240131, 20240101-20240131, -20240131, 20240101-"
    )
    find.add_argument("--modality", action="append", default=[], help="modality; may be repeated: any of them")
    find.add_argument("--description", default="", help="Study Description")
    find.add_argument("--verification", default="", help="not_required, pending, verified, unverified, held")
    find.add_argument("--reading", default="", help="new, dictated, transcribed, approved, addendum")
    find.add_argument("--limit", type=_positive, default=100, help="studies at most (100)")

    show = command("show", "show a study: series, and with --json every instance with its digest", run_show)
    show.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as find lists it")
    show.add_argument("--instances", action="store_true", help="list instances too")

    get = command("get", "fetch a study as DICOM files", run_get)
    get.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as find lists it")
    get.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder for the files (here); made if missing"
    )
    get.add_argument("--series", default="", metavar="UID", help="only this series")
    get.add_argument("--instance", default="", metavar="UID", help="only this instance")
    get.add_argument("--variants", action="store_true", help="variants kept beside the current instances, too")
    get.add_argument(
        "--as-stored", action="store_true", help="bytes as the modality sent them, without corrected demographics"
    )

    evict = command("evict", "drop the cache copy of a study that is in the permanent tier", run_evict)
    evict.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as find lists it")

    status = command("status", "what runs where, and how it is", run_status)
    status.add_argument("--verbose", action="store_true", help="all figures, also those that are nought")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until interrupted")

    _register_users(command("users", "list and change users", run_users))

    rejects = command("rejects", "what could not be stored as DICOM; its bytes were kept", run_rejects)
    rejects.add_argument(
        "action", nargs="?", choices=("list", "get", "delete"), default="list", help="list (also without), get, delete"
    )
    rejects.add_argument("id", nargs="?", default="", metavar="ID", help="which, as the list names it")
    rejects.add_argument("--out", type=Path, metavar="FILE", help="where 'get' writes the bytes (ID.bin)")

    audit = command("audit", "who did what", run_audit)
    audit.add_argument("--action", default="", help="such as SIGN_IN, STUDY_READ")
    audit.add_argument("--actor", default="", help="user, AE title or component")
    audit.add_argument("--object", default="", help="Study Instance UID or user name")
    audit.add_argument("--limit", type=_positive, default=100, help="events at most (100)")


def _register_users(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "add", "set", "remove"),
        default="list",
        help="list (also without), add, set, remove",
    )
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="the user's name")
    parser.add_argument("--role", default="", choices=("", *ROLES), metavar="ROLE", help=", ".join(ROLES))
    parser.add_argument("--display-name", help="name for people")
    parser.add_argument(
        "--new-password-file", metavar="FILE", help="file with the user's password; else it is asked for"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def connect(arguments: argparse.Namespace) -> "Cluster":
    """Sign in as the arguments and the environment say."""
    import os  # noqa: PLC0415

    from radmesh.client.cluster import Cluster  # noqa: PLC0415
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    def read(path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise RadmeshError("FILE_UNREADABLE", f"cannot read {path}: {error.strerror}") from error

    user = arguments.user or os.environ.get("RADMESH_USER") or "admin"
    password = read(arguments.password_file).decode().strip() if arguments.password_file else None
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
    return Cluster.connect(target, user=user, password=password, ca_certificate=read(ca) if ca else None)


def _print_json(value: Any) -> None:
    import json  # noqa: PLC0415

    from radmesh.client.model import jsonable  # noqa: PLC0415

    print(json.dumps(jsonable(value), ensure_ascii=False, indent=2))  # noqa: T201


def _table(title: str, columns: "list[Column]", rows: list[list[str]]) -> None:
    from radmesh.client import tables  # noqa: PLC0415

    if rows:
        tables.show(title, columns, rows)


def _note(text: str) -> None:
    """Say what is no result: it goes beside what programs read."""
    print(text, file=sys.stderr)  # noqa: T201


def _moment(time: Any) -> str:
    return str(time.strftime("%Y-%m-%d %H:%M:%S")) if time else ""


def _counted(number: int, noun: str) -> str:
    """Return "1 study", "2 studies"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun if noun.endswith("s") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


def _status_text(study: "Study") -> str:
    """Return what is worth saying of a study's status, such as "held (PATIENT_MISMATCH), dictated"."""
    said = [study.reading.lower()]
    if study.verification != "NOT_REQUIRED":
        reason = f" ({study.verification_reason})" if study.verification_reason else ""
        said.insert(0, study.verification.lower() + reason)
    return ", ".join(said)


def _progress(*, quiet: bool) -> Any:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


def size_text(size: float) -> str:
    """Return a size for people: 525.5 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _files(paths: list[str]) -> Iterator[Path]:
    """Yield the files named, and all below the folders named but for hidden ones and DICOMDIR, in order."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    for name in paths:
        path = Path(name)
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"
            )
        elif path.exists():
            yield path
        else:
            raise RadmeshError("FILE_UNREADABLE", f"there is no {path}")


def run_store(arguments: argparse.Namespace) -> int:
    """Store files; exit code 1 if any was not stored."""
    files = list(_files(arguments.paths))
    sizes = {str(path): path.stat().st_size for path in files if path.exists()}
    results = []
    with connect(arguments) as cluster, _progress(quiet=arguments.json) as progress:
        task = progress.add_task("storing", total=sum(sizes.values()))
        for result in cluster.store(files):
            results.append(result)
            progress.advance(task, sizes.get(result.path, 0))
            if not result.stored and not arguments.json:
                progress.console.print(
                    f"{result.path}: {result.outcome}: {result.message}", markup=False, soft_wrap=True
                )
    failed = [result for result in results if not result.stored]
    if arguments.json:
        _print_json({"results": results, "stored": len(results) - len(failed), "failed": len(failed)})
    else:
        counts: dict[str, int] = {}
        for result in results:
            counts[result.outcome] = counts.get(result.outcome, 0) + 1
        summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        studies = sorted({result.study_instance_uid for result in results if result.stored})
        print(f"{_counted(len(results), 'file')}: {summary or 'nothing to store'}")  # noqa: T201
        for study in studies[:20]:
            print(f"  {study}")  # noqa: T201
        if len(studies) > 20:
            print(f"  … and {len(studies) - 20} more studies")  # noqa: T201
        for reason in sorted({result.outcome for result in failed}):
            _note(f"  {reason}: {_remedy(reason)}")
    return PARTIAL if failed else OK


def _remedy(reason: str) -> str:
    """Return what to do; what a person stores stays in the person's file, and is not in the rejects store."""
    from radmesh.runtime.reasons import REASONS  # noqa: PLC0415

    if reason not in REASONS:
        return "radmesh --version and the cluster's differ: use the same"
    kept = [part for part in REASONS[reason].remedy.split("; ") if "rejects store" not in part]
    return "; ".join(kept) or "export the file from its source again"


def run_find(arguments: argparse.Namespace) -> int:
    """List studies."""
    with connect(arguments) as cluster:
        studies = list(
            cluster.find(
                patient_id=arguments.patient_id,
                issuer_of_patient_id=arguments.issuer,
                patient_name=arguments.patient_name,
                accession_number=arguments.accession,
                study_date=arguments.date,
                modalities=arguments.modality,
                study_description=arguments.description,
                verification=arguments.verification,
                reading=arguments.reading,
                limit=arguments.limit + 1,
            )
        )
    more = len(studies) > arguments.limit
    studies = studies[: arguments.limit]
    if arguments.json:
        _print_json({"studies": studies, "more": more})
        return OK
    _table(
        "",
        [
            Column("date"),
            Column("patient", cut=True),
            Column("id"),
            Column("mod"),
            Column("description", cut=True),
            Column("inst", right=True),
            Column("size", right=True),
            Column("status", cut=True),
            Column("study", below=True),
        ],
        [
            [
                s.study_date,
                s.patient_name.rstrip("^="),
                s.patient_id,
                ",".join(s.modalities),
                s.study_description,
                str(s.instance_count),
                size_text(s.bytes),
                _status_text(s),
                s.study_instance_uid,
            ]
            for s in studies
        ],
    )
    _note(f"the first {len(studies)}; more with --limit" if more else _counted(len(studies), "study"))
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Show a study."""
    with connect(arguments) as cluster:
        detail = cluster.study(arguments.study)
        instances = (
            list(cluster.instances(arguments.study, variants=True)) if arguments.json or arguments.instances else []
        )
    if arguments.json:
        _print_json({"study": detail.study, "series": detail.series, "instances": instances})
        return OK
    s = detail.study
    facts = [
        ("study", s.study_instance_uid),
        ("patient", f"{s.patient_name.rstrip('^=')}  {s.patient_id} {s.issuer_of_patient_id}"),
        ("born, sex", f"{s.patient_birth_date} {s.patient_sex}"),
        ("date", f"{s.study_date} {s.study_time}"),
        ("description", s.study_description),
        ("accession", s.accession_number),
        ("referring", s.referring_physician_name.rstrip("^=")),
        ("status", _status_text(s)),
        ("corrected", "yes: 'get' writes corrected values, 'get --as-stored' what was received" if s.corrected else ""),
        ("from", ", ".join(s.stations)),
        (
            "holds",
            f"{s.series_count} series, {_counted(s.instance_count, 'instance')}, {size_text(s.bytes)}",
        ),
    ]
    if s.defective_count or s.variant_count:
        facts.append(("look at", f"{s.defective_count} defective, {_counted(s.variant_count, 'variant')}"))
    _table("", [Column(""), Column("")], [list(fact) for fact in facts if fact[1].strip()])
    _table(
        "series",
        [
            Column("no"),
            Column("mod"),
            Column("description", cut=True),
            Column("body part", cut=True),
            Column("inst", right=True),
            Column("series", below=True),
        ],
        [
            [
                r.series_number,
                r.modality,
                r.series_description,
                r.body_part_examined,
                str(r.instance_count),
                r.series_instance_uid,
            ]
            for r in detail.series
        ],
    )
    _table(
        "instances",
        [
            Column("no"),
            Column("bytes", right=True),
            Column("residence"),
            Column("notes", below=True),
            Column("sha256"),
            Column("instance", below=True),
        ],
        [
            [
                i.instance_number,
                str(i.length),
                ", ".join(f"{x.store_id}: {x.residence.lower().replace('_', ' ')}" for x in i.locations),
                " ".join(filter(None, (i.variant and f"variant: {i.variant}", i.defect, *i.remarks))),
                i.sha256[:16],
                i.sop_instance_uid,
            ]
            for i in instances
        ],
    )
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Fetch instances as files, named by series and SOP Instance UID; exit code 1 if any could not be had."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from radmesh.client.model import Instance  # noqa: PLC0415
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    failed: list[dict[str, str]] = []
    written: list[dict[str, Any]] = []
    with connect(arguments) as cluster, _progress(quiet=arguments.json) as progress:
        study = cluster.study(arguments.study).study
        corrections = cluster.corrections(arguments.study) if study.corrected and not arguments.as_stored else []
        instances = list(
            cluster.instances(
                arguments.study,
                series_instance_uid=arguments.series,
                sop_instance_uid=arguments.instance,
                variants=arguments.variants,
            )
        )
        if not instances:
            raise RadmeshError("INSTANCE_NOT_FOUND", "the study has no such instance")
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RadmeshError("FILE_NOT_WRITTEN", f"cannot make {arguments.out}: {error.strerror}") from error
        task = progress.add_task("fetching", total=sum(i.length for i in instances))

        def fetch(instance: Instance) -> None:
            suffix = "" if instance.current else f".variant-{instance.sha256[:8]}"
            path = arguments.out / f"{_safe(instance.sop_instance_uid)}{suffix}.dcm"
            try:
                changed = cluster.fetch(arguments.study, instance, path, corrections=corrections)
            except RadmeshError as error:
                failed.append({"instance": instance.sop_instance_uid, "reason": error.reason, "message": error.message})
            else:
                written.append(
                    {
                        "path": str(path),
                        "instance": instance.sop_instance_uid,
                        "sha256": instance.sha256,
                        "corrected": changed,
                    }
                )
            progress.advance(task, instance.length)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fetch, instances))
    if arguments.json:
        _print_json({"written": written, "failed": failed})
    else:
        for failure in failed:
            print(f"{failure['instance']}: {failure['reason']}: {failure['message']}", file=sys.stderr)  # noqa: T201
        corrected = sum(bool(item["corrected"]) for item in written)
        notes = [f"{corrected} with corrected values"] * bool(corrected) + [f"{len(failed)} failed"] * bool(failed)
        print(", ".join((f"{_counted(len(written), 'file')} in {arguments.out}", *notes)))  # noqa: T201
    return PARTIAL if failed else OK


def _safe(uid: str) -> str:
    """A UID from outside becomes part of a path only if it is one."""
    return uid if uid and len(uid) <= 64 and set(uid) <= set("0123456789.") else uid.encode().hex()[:128]


def run_evict(arguments: argparse.Namespace) -> int:
    """Evict a study from the cache."""
    with connect(arguments) as cluster:
        freed = cluster.evict(arguments.study)
    if arguments.json:
        _print_json({"bytes": freed})
    else:
        print(f"{size_text(freed)} given back")  # noqa: T201
    return OK


def run_status(arguments: argparse.Namespace) -> int:
    """Show the cluster; exit code 1 if anything is not as it should be."""
    import time  # noqa: PLC0415

    with connect(arguments) as cluster:
        while True:
            status = cluster.status()
            if arguments.json:
                _print_json({"healthy": status.healthy, "status": status})
            else:
                _print_status(status, verbose=arguments.verbose)
            if not arguments.watch:
                return OK if status.healthy else PARTIAL
            time.sleep(2)


# What says most, first; without --verbose a component shows the first few of them that are not nought.
_FIGURES = (
    *("unregistered", "spooled", "rejects", "objects", "permanent", "megabytes", "associations_open"),
    *("objects_stored", "bytes_received", "associations_total", "associations_refused", "drained", "revision"),
)
_FEW = 4


def _figures(figures: dict[str, float], *, every: bool) -> str:
    """Return figures of a component, such as "objects 163, permanent 162"."""

    def rank(name: str) -> tuple[int, str]:
        return (_FIGURES.index(name) if name in _FIGURES else len(_FIGURES), name)

    said: list[str] = []
    for name in sorted(figures, key=rank):
        value = figures[name]
        if not every and (not value or len(said) == _FEW):
            continue
        number = f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
        said.append(f"{name.replace('_', ' ')} {size_text(value) if name.startswith('bytes') else number}")
    return ", ".join(said)


def _print_status(status: Any, *, verbose: bool) -> None:
    rows = []
    for c in status.components:
        uptime = str(status.time - c.start_time).split(".")[0] if c.start_time else ""
        rows.append([c.instance, c.state.lower(), str(c.pid or ""), uptime, _figures(c.figures, every=verbose)])
    _table(
        "",
        [
            Column("component"),
            Column("state"),
            Column("pid"),
            Column("uptime", right=True),
            Column("figures", below=True),
        ],
        rows,
    )
    _table(
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
                str(s.unregistered),
            ]
            for s in status.stores
        ],
    )
    _table(
        "alarms",
        [Column("component"), Column("reason"), Column("what", below=True)],
        [[c.instance, a.reason, a.message] for c in status.components for a in c.alarms],
    )


def run_users(arguments: argparse.Namespace) -> int:
    """List or change users."""
    import getpass  # noqa: PLC0415

    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    def new_password(*, needed: bool) -> str:
        if arguments.new_password_file:
            try:
                return Path(arguments.new_password_file).read_text().strip()
            except OSError as error:
                raise RadmeshError("FILE_UNREADABLE", f"cannot read {arguments.new_password_file}") from error
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
    with connect(arguments) as cluster:
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
        _print_json({"users": users})
    elif users:
        _table(
            "",
            [Column("user"), Column("role"), Column("name", cut=True), Column("last sign-in (UTC)")],
            [[u.name, u.role, u.display_name, _moment(u.last_sign_in_time)] for u in users],
        )
    else:
        print(f"{arguments.name} removed")  # noqa: T201
    return OK


def run_rejects(arguments: argparse.Namespace) -> int:
    """List, fetch or delete rejects."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if arguments.action != "list" and not arguments.id:
        raise RadmeshError("FIELD_INVALID", f"which? radmesh rejects {arguments.action} ID", metadata={"field": "id"})
    with connect(arguments) as cluster:
        if arguments.action == "get":
            path = arguments.out or Path(f"{_safe(arguments.id)}.bin")
            partial = path.with_name(f".{path.name}.part")
            try:
                with partial.open("wb") as file:
                    size = cluster.read_reject(arguments.id, file)
                partial.replace(path)
            except OSError as error:
                raise RadmeshError("FILE_NOT_WRITTEN", f"cannot write {path}: {error.strerror}") from error
            finally:
                with suppress(OSError):
                    partial.unlink()
            if arguments.json:
                _print_json({"path": str(path), "bytes": size})
            else:
                print(f"{path}: {size_text(size)}")  # noqa: T201
        elif arguments.action == "delete":
            cluster.delete_reject(arguments.id)
            if arguments.json:
                _print_json({"deleted": arguments.id})
        else:
            rejects = list(cluster.rejects())
            if arguments.json:
                _print_json({"rejects": rejects})
            else:
                _table(
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
                            _moment(r.receive_time),
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
                _note(_counted(len(rejects), "reject"))
    return OK


def run_audit(arguments: argparse.Namespace) -> int:
    """List the audit table."""
    with connect(arguments) as cluster:
        events = list(
            cluster.audit(
                action=arguments.action, actor=arguments.actor, object=arguments.object, limit=arguments.limit + 1
            )
        )
    more = len(events) > arguments.limit
    events = events[: arguments.limit]
    if arguments.json:
        _print_json({"events": events, "more": more})
        return OK
    _table(
        "",
        [
            Column("time (UTC)"),
            Column("who", cut=True),
            Column("from"),
            Column("what"),
            Column("outcome"),
            Column("object", below=True),
        ],
        [[_moment(e.time), e.actor, e.source_address, e.action, e.outcome, e.object] for e in events],
    )
    _note(f"the last {len(events)}; more with --limit" if more else _counted(len(events), "event"))
    return OK
