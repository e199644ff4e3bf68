"""The commands that store, find, show and fetch studies."""

import argparse
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from radmesh.client import answers, model, shell, tables
from radmesh.client.shell import OK, PARTIAL, Command, counted, moment, note, say, size_text, table
from radmesh.client.tables import Column, printable

if TYPE_CHECKING:
    from radmesh.client.cluster import Cluster


def register(command: Command) -> None:
    """Add the commands."""
    store = command(
        "store", "store DICOM files and folders in the cluster", run_store, answers.Stored, example="/media/cdrom"
    )
    store.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder with all below it")

    find = command("find", "find studies", run_find, answers.Found, example="--patient-name 'doe^j*' --date 20240101-")
    find.add_argument("--patient-id", default="", metavar="ID", help="Patient ID; * and ? are wildcards")
    find.add_argument("--issuer", default="", metavar="NAME", help="Issuer of Patient ID")
    find.add_argument("--patient-name", default="", metavar="NAME", help="such as 'doe^j*', in any case and script")
    find.add_argument("--accession", default="", metavar="NUMBER", help="Accession Number")
    find.add_argument(
        "--date", default="", help="Study Date or range: 20240131, 20240101-20240131, -20240131, 20240101-"
    )
    find.add_argument("--modality", action="append", default=[], metavar="CT", help="may be repeated: any of them")
    find.add_argument("--description", default="", metavar="TEXT", help="Study Description")
    find.add_argument(
        "--verification", default="", metavar="STATE", help="not_required, pending, verified, unverified, held"
    )
    find.add_argument("--reading", default="", metavar="STATE", help="new, dictated, transcribed, approved, addendum")
    find.add_argument("--limit", type=shell.positive, default=100, metavar="N", help="studies at most (100)")

    show = command(
        "show", "show a study: series, and with --json every instance with its digest", run_show, answers.Shown
    )
    show.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as find lists it")
    show.add_argument("--instances", action="store_true", help="list instances too")
    show.add_argument("--history", action="store_true", help="list every move of its status too")

    get = command(
        "get",
        "fetch a study as DICOM files",
        run_get,
        answers.Fetched,
        answers.FetchedPictures,
        example="STUDY_UID --out fetched",
    )
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
    get.add_argument(
        "--remote",
        action="store_true",
        help="the web cache's frames (HTJ2K, lossless) in place of objects as stored: fewer bytes",
    )

    evict = command("evict", "drop the cache copy of a study that is in the permanent tier", run_evict, answers.Evicted)
    evict.add_argument("study", metavar="STUDY_UID", help="Study Instance UID, as find lists it")


def files_of(paths: list[str]) -> Iterator[Path]:
    """Yield the files named, and all below the folders named but for hidden ones and DICOMDIR, in order.

    Raises:
        RadmeshError: FILE_UNREADABLE, FOLDER_EMPTY.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    def unreadable(error: OSError) -> None:
        # A folder that is passed over without a word would be images that are not stored.
        raise RadmeshError("FILE_UNREADABLE", f"cannot read {error.filename}: {error.strerror}") from error

    for name in paths:
        path = Path(name)
        if path.is_dir():
            found = False
            for folder, folders, files in os.walk(path, onerror=unreadable):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for file in sorted(files):
                    if not file.startswith(".") and file.upper() != "DICOMDIR":
                        found = True
                        yield Path(folder, file)
            if not found:
                raise RadmeshError("FOLDER_EMPTY", f"there is no file in {path} to store")
        elif path.exists():
            yield path
        else:
            raise RadmeshError("FILE_UNREADABLE", f"there is no {path}")


def run_store(arguments: argparse.Namespace) -> int:
    """Store files."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    files = list(files_of(arguments.paths))
    total = 0
    for path in files:
        if path.is_file():
            total += path.stat().st_size
    results: list[model.StoreResult] = []
    with shell.connect(arguments) as cluster, shell.progress("storing", quiet=arguments.json) as progress:
        task = progress.add_task(f"0/{len(files)}", total=total)

        def tell(text: str) -> None:
            if not arguments.json:
                progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

        try:
            for result in cluster.store(files, sent=lambda count: progress.update(task, completed=count)):
                results.append(result)
                progress.update(task, description=f"{len(results)}/{len(files)}")
                if not result.stored:
                    tell(f"{result.path}: {result.outcome}: {result.message}")
        except KeyboardInterrupt:
            tell(f"interrupted: {len(results)} of {counted(len(files), 'file')} were answered; storing again goes on")
            raise
        except RadmeshError as error:
            if not results:
                raise
            # What was answered stands; of the rest the last may be stored too, which storing again finds out.
            rest = files[len(results) :]
            results += [model.StoreResult(str(path), error.reason, error.message) for path in rest]
            tell(f"{counted(len(rest), 'file')} not stored: {error.reason}: {error.message}")
        held = set() if arguments.json else _held(cluster, results)
    stored = [result for result in results if result.stored]
    if arguments.json:
        shell.print_json(answers.Stored(tuple(results), len(stored), len(results) - len(stored)))
    else:
        _print_stored(results, held)
    return OK if len(stored) == len(results) else PARTIAL if stored else shell.FAILED


def _held(cluster: "Cluster", results: list[model.StoreResult]) -> set[str]:
    """Return the studies that were stored and are held, at most a thousand: who stored them may not see them again."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    stored = sorted({result.study_instance_uid for result in results if result.registered})[:1000]
    try:
        seen = {s.study_instance_uid: s for s in cluster.find(study_instance_uids=stored)} if stored else {}
    except RadmeshError:
        return set()  # that they are stored is said all the same
    return {uid for uid in stored if uid not in seen or seen[uid].verification == "HELD"}


def _print_stored(results: list[model.StoreResult], held: Collection[str] = ()) -> None:
    counts: dict[str, int] = {}
    for result in results:
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
    summary = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
    say(f"{counted(len(results), 'file')}: {summary}")
    studies = sorted({result.study_instance_uid for result in results if result.stored})
    for study in studies[:20]:
        say(f"  {study}" + ("  held" if study in held else ""))
    if len(studies) > 20:
        say(f"  … and {len(studies) - 20} more studies")
    for reason in sorted({result.outcome for result in results if not result.stored}):
        # What a person stores stays in the person's file, and is not in the rejects store.
        what = shell.remedy(reason, without="rejects store") or "export the file from its source again"
        note(f"  {reason}: {what}")
    if held:
        note(f"  {counted(len(held), 'study')} held until technologists or administrators settle it: radmesh holds")


def run_find(arguments: argparse.Namespace) -> int:
    """List studies."""
    with shell.connect(arguments) as cluster:
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
        shell.print_json(answers.Found(tuple(studies), more))
        return OK
    table(
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
    note(f"the first {len(studies)}; more with --limit" if more else counted(len(studies), "study"))
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Show a study."""
    with shell.connect(arguments) as cluster:
        detail = cluster.study(arguments.study)
        instances = (
            list(cluster.instances(arguments.study, variants=True)) if arguments.json or arguments.instances else []
        )
        history = cluster.history(arguments.study) if arguments.json or arguments.history else []
    if arguments.json:
        shell.print_json(answers.Shown(detail.study, detail.series, tuple(instances), tuple(history)))
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
        ("what to do", shell.remedy(s.verification_reason)),
        ("order", s.order_id),
        (
            "report",
            f"version {s.report_version}: radmesh report show {s.study_instance_uid}" if s.report_version else "",
        ),
        ("corrected", "yes: 'get' writes corrected values, 'get --as-stored' what was received" if s.corrected else ""),
        ("from", ", ".join(s.stations)),
        (
            "holds",
            f"{s.series_count} series, {counted(s.instance_count, 'instance')}, {size_text(s.bytes)}",
        ),
        ("pictures", "all" if s.curated_count >= s.instance_count else f"{s.curated_count} of {s.instance_count}"),
    ]
    if s.defective_count or s.variant_count:
        facts.append(("look at", f"{s.defective_count} defective, {counted(s.variant_count, 'variant')}"))
    for line in tables.facts(facts, tables.width()):
        say(line)
    table(
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
    table(
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
    table(
        "history",
        [Column("time (UTC)"), Column("axis"), Column("from"), Column("to"), Column("reason", cut=True), Column("by")],
        [[moment(h.time), h.axis, _move(h.axis, h.before), _move(h.axis, h.after), h.reason, h.actor] for h in history],
    )
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Fetch instances as files, named by SOP Instance UID."""
    if arguments.remote:
        from radmesh.client.picture_commands import run_get_remote  # noqa: PLC0415 - it has this module

        return run_get_remote(arguments)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    failed: list[answers.FailedFile] = []
    written: list[answers.WrittenFile] = []
    with shell.connect(arguments) as cluster, shell.progress("fetching", quiet=arguments.json) as progress:
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
        task = progress.add_task(f"0/{len(instances)}", total=sum(i.length for i in instances))

        def fetch(instance: model.Instance) -> None:
            suffix = "" if instance.current else f".variant-{instance.sha256[:8]}"
            path = arguments.out / f"{safe(instance.sop_instance_uid)}{suffix}.dcm"
            try:
                changed = cluster.fetch(
                    arguments.study,
                    instance,
                    path,
                    corrections=corrections,
                    received=lambda count: progress.advance(task, count),
                )
            except RadmeshError as error:
                failed.append(answers.FailedFile(instance.sop_instance_uid, error.reason, error.message))
            else:
                written.append(answers.WrittenFile(str(path), instance.sop_instance_uid, instance.sha256, changed))
            progress.update(task, description=f"{len(written) + len(failed)}/{len(instances)}")

        with ThreadPoolExecutor(4) as pool:
            try:
                list(pool.map(fetch, instances))
            except BaseException:
                # Interrupted: what is being fetched ends now, and takes its half file with it.
                cluster.close()
                raise
    if arguments.json:
        shell.print_json(answers.Fetched(tuple(written), tuple(failed)))
    else:
        shell.print_failures(failed)
        corrected = sum(bool(item.corrected) for item in written)
        notes = [f"{corrected} with corrected values"] * bool(corrected) + [f"{len(failed)} failed"] * bool(failed)
        say(", ".join((f"{counted(len(written), 'file')} in {arguments.out}", *notes)))
        shell.print_remedies(failed)
    return OK if not failed else PARTIAL if written else shell.FAILED


def safe(uid: str) -> str:
    """Return what may be part of a path: a UID from outside only if it is one."""
    return uid if uid and len(uid) <= 64 and set(uid) <= set("0123456789.") else uid.encode().hex()[:128]


def run_evict(arguments: argparse.Namespace) -> int:
    """Evict a study from the cache."""
    with shell.connect(arguments) as cluster:
        freed = cluster.evict(arguments.study)
    if arguments.json:
        shell.print_json(answers.Evicted(freed))
    else:
        say(f"{size_text(freed)} given back")
    return OK


def _status_text(study: model.Study) -> str:
    """Return what is worth saying of a study's status, such as "held (PATIENT_MISMATCH), dictated"."""
    said = [study.reading.lower()]
    if study.verification != "NOT_REQUIRED":
        reason = f" ({study.verification_reason})" if study.verification_reason else ""
        said.insert(0, study.verification.lower() + reason)
    return ", ".join(said)


def _move(axis: str, value: str) -> str:
    """Return what a move was from or to: of a correction, a DICOM keyword as it is written."""
    return value if axis == "correction" else value.lower().replace("_", " ")
