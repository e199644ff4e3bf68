"""The commands between studies and their RIS: orders, holds, release, report, merges, hl7."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from radmesh.client import answers, model, shell
from radmesh.client.shell import FAILED, OK, PARTIAL, Command, counted, moment, note, say, table
from radmesh.client.tables import Column

_STATES: Final = ("held", "pending", "unverified", "verified", "not_required")
_OPEN: Final = ("held", "pending", "unverified")
_ORDERS: Final = ("scheduled", "in_progress", "completed", "cancelled")
_DELIVERIES: Final = ("waiting", "delivered", "refused", "not_configured")
_MESSAGES: Final = ("done", "ignored", "waiting", "dead")
_TEXT_MOST: Final = 256 * 1024
T = TypeVar("T")


def register(command: Command) -> None:
    """Add the commands."""
    orders = command(
        "orders", "orders of the RIS: the worklist", run_orders, answers.Orders, example="--date 20240101-"
    )
    orders.add_argument("--patient-id", default="", metavar="ID", help="Patient ID; * and ? are wildcards")
    orders.add_argument("--patient-name", default="", metavar="NAME", help="such as 'doe^j*', in any case and script")
    orders.add_argument("--accession", default="", metavar="NUMBER", help="Accession Number")
    orders.add_argument("--date", default="", help="scheduled date or range: 20240131, 20240101-20240131, 20240101-")
    orders.add_argument("--modality", default="", metavar="CT", help="Modality")
    orders.add_argument("--station", default="", metavar="AE", help="AE title of the station it is scheduled for")
    orders.add_argument("--domain", default="", metavar="NAME", help="RIS domain")
    orders.add_argument("--status", action="append", default=[], metavar="STATUS", help=f"{_or(_ORDERS)}; again: any")
    orders.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="orders at most (100)")

    holds = command("holds", "what is held, and why", run_holds, answers.Holds, example="--reason PATIENT_MISMATCH")
    holds.add_argument("study", nargs="?", default="", metavar="STUDY_UID", help="only of this study")
    holds.add_argument("--all", action="store_true", help="also what is visible, and pending or unverified")
    holds.add_argument("--state", action="append", default=[], metavar="STATE", help=f"{_or(_STATES)}; again: any")
    holds.add_argument("--reason", default="", metavar="REASON", help="such as NO_ORDER, PATIENT_MISMATCH")
    holds.add_argument("--accession", default="", metavar="NUMBER", help="Accession Number, as received")
    holds.add_argument("--patient-id", default="", metavar="ID", help="Patient ID, as received")
    holds.add_argument("--domain", default="", metavar="NAME", help="RIS domain")
    holds.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="rows at most (100)")

    release = command(
        "release",
        "verify a study again, now; with --override let it go without the RIS",
        run_release,
        answers.Released,
        example="STUDY_UID --override --reason 'the RIS is being replaced'",
    )
    release.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as holds lists it")
    release.add_argument("--key", default="", metavar="HEX", help="only this admission key, as holds --json lists it")
    release.add_argument(
        "--override", action="store_true", help="you answer for it: it becomes visible, and stays marked"
    )
    release.add_argument("--reason", default="", metavar="TEXT", help="why, for the history; else it is asked for")

    report = command(
        "report",
        "write, approve and read reports",
        run_report,
        answers.Reports,
        example="write STUDY_UID --file report.txt",
    )
    report.add_argument(
        "action",
        nargs="?",
        choices=("list", "show", "write", "approve"),
        default="list",
        help="list (also without), show, write, approve: this sends it to the RIS",
    )
    report.add_argument("study", nargs="?", default="", metavar="STUDY_UID", help="Study Instance UID")
    report.add_argument(
        "--version", type=shell.positive, metavar="N", help="which version; else the newest, or the draft"
    )
    report.add_argument("--text", metavar="TEXT", help="what 'write' writes")
    report.add_argument("--file", metavar="FILE", help="file with it (UTF-8); - or none: from standard input")
    report.add_argument("--transcribed", action="store_true", help="'write': a dictation that was typed")
    report.add_argument("--delivery", default="", metavar="STATE", help=f"'list': {_or(_DELIVERIES)}")
    report.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="reports at most (100)")

    merges = command("merges", "patients that the RIS made one", run_merges, answers.Merges, example="undo ID")
    merges.add_argument("action", nargs="?", choices=("list", "undo"), default="list", help="list (also without), undo")
    merges.add_argument("id", nargs="?", default="", metavar="ID", help="which, as the list names it")
    merges.add_argument("--domain", default="", metavar="NAME", help="RIS domain")
    merges.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="merges at most (100)")

    hl7 = command(
        "hl7",
        "RIS domains, and the HL7 messages that came and went",
        run_hl7,
        answers.Domains,
        answers.Messages,
        answers.ShownMessage,
        example="messages --state dead",
    )
    hl7.add_argument(
        "action",
        nargs="?",
        choices=("domains", "messages", "show", "replay"),
        default="domains",
        help="domains (also without), messages, show, replay: a dead letter takes effect, or is sent, again",
    )
    hl7.add_argument("id", nargs="?", default="", metavar="ID", help="which message, as the list names it")
    hl7.add_argument("--domain", default="", metavar="NAME", help="RIS domain")
    hl7.add_argument("--direction", default="", metavar="in/out", help="came in, or went out")
    hl7.add_argument("--state", default="", metavar="STATE", help=_or(_MESSAGES))
    hl7.add_argument("--type", default="", metavar="TYPE", help="such as ORM^O01")
    hl7.add_argument("--out", type=Path, metavar="FILE", help="where 'show' writes the message, byte by byte")
    hl7.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="messages at most (100)")


# -- orders and holds


def run_orders(arguments: argparse.Namespace) -> int:
    """List orders."""
    with shell.connect(arguments) as cluster:
        orders, more = _first(
            cluster.orders(
                patient_id=arguments.patient_id,
                patient_name=arguments.patient_name,
                accession_number=arguments.accession,
                scheduled=arguments.date,
                modality=arguments.modality,
                station_ae_title=arguments.station,
                domain=arguments.domain,
                statuses=arguments.status,
                limit=arguments.limit + 1,
            ),
            arguments.limit,
        )
    if arguments.json:
        shell.print_json(answers.Orders(tuple(orders), more))
        return OK
    table(
        "",
        [
            Column("scheduled"),
            Column("status"),
            Column("patient", cut=True),
            Column("id"),
            Column("mod"),
            Column("procedure", cut=True),
            Column("accession"),
            Column("station"),
            Column("domain"),
            Column("study", below=True),
        ],
        [
            [
                _scheduled(o.scheduled_time),
                _words(o.status),
                o.patient.patient_name.rstrip("^="),
                o.patient.patient_id,
                o.modality,
                o.procedure_description or o.procedure_code,
                o.accession_number or o.order_id,
                o.station_ae_title,
                o.domain,
                o.study_instance_uid,
            ]
            for o in orders
        ],
    )
    _count(len(orders), "order", more=more)
    return OK


def run_holds(arguments: argparse.Namespace) -> int:
    """List admissions that are held."""
    states = arguments.state or (_OPEN if arguments.all else ("held",))
    with shell.connect(arguments) as cluster:
        admissions, more = _first(
            cluster.admissions(
                arguments.study,
                verifications=states,
                domain=arguments.domain,
                reason=arguments.reason.upper(),
                accession_number=arguments.accession,
                patient_id=arguments.patient_id,
                limit=arguments.limit + 1,
            ),
            arguments.limit,
        )
    if arguments.json:
        shell.print_json(answers.Holds(tuple(admissions), more))
        return OK
    _print_admissions(admissions)
    _count(len(admissions), "admission", more=more)
    return OK


def run_release(arguments: argparse.Namespace) -> int:
    """Verify a study again, or override; FAILED or PARTIAL if something of it stays held."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    reason: str | None = None
    if arguments.override:
        reason = arguments.reason.strip()
        if not reason and sys.stdin.isatty():
            reason = input("why may it be seen without the RIS? ").strip()
        if not reason:
            raise RadmeshError("OVERRIDE_REASON_MISSING", "say why: --override --reason TEXT")
    elif arguments.reason:
        raise RadmeshError("FIELD_INVALID", "--reason is that of --override", metadata={"field": "reason"})
    with shell.connect(arguments) as cluster:
        admissions = cluster.release(arguments.study, admission_key=arguments.key, override_reason=reason)
    held = [a for a in admissions if a.verification == "HELD"]
    if arguments.json:
        shell.print_json(answers.Released(tuple(admissions)))
    else:
        _print_admissions(admissions)
        if not admissions:
            say("nothing of it waits for the RIS")
    return OK if not held else FAILED if len(held) == len(admissions) else PARTIAL


def _print_admissions(admissions: Sequence[model.Admission]) -> None:
    table(
        "",
        [
            Column("state"),
            Column("reason"),
            Column("since (UTC)"),
            Column("patient", cut=True),
            Column("id"),
            Column("accession"),
            Column("mod"),
            Column("from"),
            Column("domain"),
            Column("inst", right=True),
            Column("contradicts", below=True),
            Column("study", below=True),
        ],
        [
            [
                _words(a.verification),
                a.reason,
                moment(a.update_time),
                a.patient_name.rstrip("^="),
                a.patient_id,
                a.accession_number,
                ",".join(a.modalities),
                a.station,
                a.domain,
                f"{a.instance_count:,}",
                ", ".join(a.mismatched_keywords),
                a.study_instance_uid,
            ]
            for a in admissions
        ],
    )
    _remedies(a.reason for a in admissions)


# -- reports


def run_report(arguments: argparse.Namespace) -> int:
    """List, show, write or approve reports."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    action = arguments.action
    if action != "list" and not arguments.study:
        raise RadmeshError(
            "FIELD_INVALID", f"of which study? radmesh report {action} STUDY_UID", metadata={"field": "study"}
        )
    if action != "write" and (arguments.text is not None or arguments.file is not None):
        raise RadmeshError("FIELD_INVALID", "--text and --file are for 'write'", metadata={"field": "text"})
    text = _report_text(arguments) if action == "write" else ""
    more = False
    with shell.connect(arguments) as cluster:
        if action == "write":
            reports = [
                cluster.save_report(
                    arguments.study, text, transcribed=arguments.transcribed, expected_version=arguments.version or 0
                )
            ]
        elif action == "approve":
            reports = [cluster.approve_report(arguments.study, arguments.version or 0)]
        else:
            one = action == "show" and not arguments.version
            limit = 1 if one else arguments.limit + 1
            reports, more = _first(
                cluster.reports(arguments.study, delivery=arguments.delivery, limit=limit), arguments.limit
            )
            if arguments.version:
                reports = [report for report in reports if report.version == arguments.version]
            if action == "show" and not reports:
                which = f"a version {arguments.version} of its report" if arguments.version else "a report"
                raise RadmeshError("REPORT_NOT_FOUND", f"the study has not {which}")
    if arguments.json:
        shell.print_json(answers.Reports(tuple(reports), more))
        return OK
    if action == "show":
        _print_report(reports[0])
        return OK
    table(
        "",
        [
            Column("version", right=True),
            Column("state"),
            Column("author", cut=True),
            Column("written (UTC)"),
            Column("approver", cut=True),
            Column("approved (UTC)"),
            Column("at the RIS"),
            Column("reason"),
            Column("message"),
            Column("study", below=True),
        ],
        [
            [
                str(r.version),
                _words(r.state),
                r.author,
                moment(r.update_time),
                r.approver,
                moment(r.approve_time),
                _words(r.delivery),
                r.delivery_reason,
                r.control_id,
                r.study_instance_uid,
            ]
            for r in reports
        ],
    )
    _remedies(r.delivery_reason for r in reports)
    if action == "write":
        note(f"a draft; 'radmesh report approve {arguments.study}' approves it, and sends it to the RIS")
    elif action == "list":
        _count(len(reports), "report", more=more)
    return OK


def _report_text(arguments: argparse.Namespace) -> str:
    """Return what is to be written, from the arguments, a file, a pipe or the terminal.

    Raises:
        RadmeshError: FIELD_INVALID, FILE_UNREADABLE.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    if arguments.text is not None:
        if arguments.file is not None:
            raise RadmeshError("FIELD_INVALID", "--text or --file, not both", metadata={"field": "text"})
        return str(arguments.text)
    if arguments.file not in (None, "-"):
        data = shell.read_file(arguments.file)
    else:
        if sys.stdin.isatty():
            note("write the report; Ctrl-D at the start of a line ends it")
        data = sys.stdin.buffer.read(_TEXT_MOST + 1)
    if len(data) > _TEXT_MOST:
        raise RadmeshError("REPORT_TOO_LONG", f"a report has at most {_TEXT_MOST:,} bytes of UTF-8")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    except UnicodeDecodeError:
        where = arguments.file or "standard input"
        raise RadmeshError("FILE_UNREADABLE", f"cannot read {where}: it is no text in UTF-8") from None


def _print_report(report: model.Report) -> None:
    delivery = _words(report.delivery) + (f" ({report.delivery_reason})" if report.delivery_reason else "")
    facts = [
        ("study", report.study_instance_uid),
        ("version", f"{report.version}, {_words(report.state)}" + (", an addendum" if report.version > 1 else "")),
        ("author", f"{report.author}  {moment(report.update_time)}"),
        ("approver", f"{report.approver}  {moment(report.approve_time)}"),
        ("at the RIS", f"{delivery}  {report.control_id}"),
    ]
    table("", [Column(""), Column("")], [list(fact) for fact in facts if fact[1].strip()])
    say("")
    for line in report.text.split("\n"):
        say(line.expandtabs())
    _remedies([report.delivery_reason])


# -- merges


def run_merges(arguments: argparse.Namespace) -> int:
    """List merges, or undo one."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    more = False
    if arguments.action == "undo" and not arguments.id.isdecimal():
        raise RadmeshError(
            "FIELD_INVALID", "which? radmesh merges undo ID, a number of the list", metadata={"field": "id"}
        )
    with shell.connect(arguments) as cluster:
        if arguments.action == "undo":
            merges = [cluster.undo_merge(_number(arguments.id))]
        else:
            merges, more = _first(cluster.merges(domain=arguments.domain, limit=arguments.limit + 1), arguments.limit)
    if arguments.json:
        shell.print_json(answers.Merges(tuple(merges), more))
        return OK
    table(
        "",
        [
            Column("id", right=True),
            Column("time (UTC)"),
            Column("domain"),
            Column("this patient", cut=True),
            Column("became", cut=True),
            Column("studies", right=True),
            Column("undone (UTC)"),
            Column("by"),
        ],
        [
            [
                str(m.id),
                moment(m.time),
                m.domain,
                _patient(m.prior),
                _patient(m.surviving),
                f"{m.study_count:,}",
                moment(m.undo_time),
                m.undo_actor,
            ]
            for m in merges
        ],
    )
    if arguments.action == "undo":
        say(f"{counted(merges[0].study_count, 'study')} given back to {merges[0].prior.patient_id}")
    else:
        _count(len(merges), "merge", more=more)
    return OK


# -- HL7


def run_hl7(arguments: argparse.Namespace) -> int:
    """List domains or messages, show a message, or replay one."""
    if arguments.action in ("show", "replay"):
        return _run_message(arguments)
    with shell.connect(arguments) as cluster:
        if arguments.action == "domains":
            domains = [d for d in cluster.domains() if arguments.domain in ("", d.name)]
            if arguments.json:
                shell.print_json(answers.Domains(tuple(domains)))
            else:
                _print_domains(domains)
            return OK
        messages, more = _first(
            cluster.messages(
                domain=arguments.domain,
                direction=arguments.direction,
                state=arguments.state,
                type=arguments.type,
                limit=arguments.limit + 1,
            ),
            arguments.limit,
        )
        # Of several managers each numbers its own messages.
        several = not arguments.json and len({domain.manager for domain in cluster.domains()}) > 1
    if arguments.json:
        shell.print_json(answers.Messages(tuple(messages), more))
        return OK
    table(
        "",
        [
            Column("id", right=True),
            Column("time (UTC)"),
            Column("domain"),
            Column(""),
            Column("type"),
            Column("control id"),
            Column("from", cut=True),
            Column("state"),
            Column("ack"),
            Column("tries", right=True),
            Column("replays", right=True),
            Column("reason"),
            Column("error", below=True),
        ],
        [
            [
                f"{m.manager}/{m.id}" if several else str(m.id),
                moment(m.time),
                m.domain,
                m.direction.lower(),
                m.type,
                m.control_id,
                " ".join(filter(None, (m.sending_application, m.sending_facility))),
                m.state.lower(),
                m.ack_code,
                str(m.attempts or ""),
                str(m.replays or ""),
                m.reason,
                m.error,
            ]
            for m in messages
        ],
    )
    _remedies(m.reason for m in messages if m.state == "DEAD")
    _count(len(messages), "message", more=more)
    return OK


def _print_domains(domains: Sequence[model.Domain]) -> None:
    table(
        "",
        [
            Column("domain"),
            Column("state"),
            Column("port", right=True),
            Column("last message (UTC)"),
            Column("orders", right=True),
            Column("messages", right=True),
            Column("dead", right=True),
            Column("reports waiting", right=True),
            Column("manager"),
        ],
        [
            [
                d.name,
                "available" if d.available else "unavailable",
                str(d.hl7_port or ""),
                moment(d.last_message_time),
                f"{d.orders:,}",
                f"{d.messages:,}",
                f"{d.dead_letters:,}",
                f"{d.reports_waiting:,}",
                d.manager,
            ]
            for d in domains
        ],
    )
    if any(not d.available for d in domains):
        note("unavailable: its feed, or its Connectivity Manager, is silent ('radmesh status'); studies are marked")
    if any(d.dead_letters for d in domains):
        note("dead letters: 'radmesh hl7 messages --state dead' says why, 'radmesh hl7 replay ID' tries one again")


def _run_message(arguments: argparse.Namespace) -> int:
    """Show or replay one message; FAILED if a replayed one is dead again."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    manager, _, number = arguments.id.rpartition("/")
    if not number.isdecimal():
        raise RadmeshError(
            "FIELD_INVALID",
            f"which? radmesh hl7 {arguments.action} ID, as 'messages' lists it",
            metadata={"field": "id"},
        )
    with shell.connect(arguments) as cluster:
        if arguments.action == "show":
            message = cluster.message(_number(number), manager=manager)
        else:
            message = cluster.replay_message(_number(number), manager=manager)
    if arguments.out:
        with shell.output_file(arguments.out) as file:
            file.write(message.raw)
    if arguments.json:
        shell.print_json(answers.ShownMessage(message))
    else:
        _print_message(message)
    return FAILED if arguments.action == "replay" and message.state == "DEAD" else OK


def _print_message(m: model.Message) -> None:
    facts = [
        ("message", f"{m.manager}/{m.id}"),
        ("domain", m.domain),
        ("direction", m.direction.lower()),
        ("type", m.type),
        ("control id", m.control_id),
        ("from", " ".join(filter(None, (m.sending_application, m.sending_facility)))),
        ("time", moment(m.time)),
        ("state", m.state.lower()),
        ("acknowledged", m.ack_code),
        ("tries", str(m.attempts or "")),
        ("replays", str(m.replays or "")),
        ("reason", m.reason),
        ("error", m.error),
    ]
    table("", [Column(""), Column("")], [list(fact) for fact in facts if fact[1]])
    for title, data in (("message", m.raw), ("answer", m.ack)):
        if data:
            say("")
            say(title)
            for line in _segments(data):
                say(f"  {line}")
    _remedies([m.reason])


def _segments(data: bytes) -> list[str]:
    """Return a message's segments for people; its bytes are what --out and --json give."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\r").replace("\n", "\r").rstrip("\r").split("\r")


# -- helpers


def _first(items: Iterable[T], limit: int) -> tuple[list[T], bool]:
    """Return the first `limit` of items, and whether there are more."""
    found = list(items)
    return found[:limit], len(found) > limit


def _count(number: int, noun: str, *, more: bool) -> None:
    note(f"the first {number}; more with --limit" if more else counted(number, noun))


def _remedies(reasons: Iterable[str]) -> None:
    """Say what to do about each of the reasons, beside the table."""
    for reason in sorted(set(reasons)):
        if remedy := shell.remedy(reason):
            note(f"  {reason}: {remedy}")


def _number(text: str) -> int:
    """Return a number that fits into 64 bits; a greater one names nothing."""
    return min(int(text[:20]), (1 << 63) - 1)


def _or(choices: Sequence[str]) -> str:
    return ", ".join(choices)


def _words(state: str) -> str:
    return state.lower().replace("_", " ")


def _patient(patient: model.RisPatient) -> str:
    return f"{patient.patient_id} {patient.patient_name.rstrip('^=')}".rstrip()


def _scheduled(time: str) -> str:
    """Return YYYYMMDDHHMMSS, or less of it, for people: 2026-01-31 23:59."""
    if len(time) < 8 or not time[:12].isdecimal():
        return time
    date = f"{time[:4]}-{time[4:6]}-{time[6:8]}"
    return f"{date} {time[8:10]}:{time[10:12]}" if len(time) >= 12 else date
