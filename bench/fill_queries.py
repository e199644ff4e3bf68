"""Fill a Database Server's SQLite with studies at once, for questions of a large archive; and ask how each is planned.

    python bench/fill_queries.py /dev/shm/large --studies 1000000
    python bench/fill_queries.py /dev/shm/large --ask

The studies are those of bench/queries.py: one object each, ten a patient. What has no bytes is not retrieved.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from radmesh.database_server.dicom_query import DicomQueries, Query
from radmesh.database_server.prepared import Prepared
from radmesh.database_server.schema import MIGRATIONS, admissions, instances, patients, series, studies
from radmesh.database_server.texts import name_key
from radmesh.dicom.identifier import Key, vr_of
from radmesh.sql.engine import Database

_FIRST = ("Anna", "Boris", "Chiara", "David", "Elif", "Fatima", "Goran", "Hélène", "Ivan", "Jürgen", "Kenji", "Lucía")
_LAST = ("Müller", "Schmidt", "Rossi", "Nguyen", "García", "Kowalski", "Silva", "Dubois", "Jensen", "Novák", "O'Brien")
_MODALITIES = ("CR", "CT", "MR", "US", "XA", "NM")
_BATCH = 10_000
# What a station asks, by keyword: each a question of the usual ones.
QUESTIONS: tuple[dict[str, str], ...] = (
    {"PatientID": "PAT012345"},
    {"PatientID": "PAT01234*"},
    {"PatientID": "PAT*"},
    {"PatientID": "*2345"},
    {"AccessionNumber": "ACC00012345"},
    {"AccessionNumber": "ACC0001234*"},
    {"PatientName": "Müller_012345*"},
    {"PatientName": "MÜLLER*"},
    {"PatientName": "*012345*"},
    {"PatientName": "*jensen*"},
    {"PatientName": "ro*"},
    {"PatientName": "m*"},
    {"PatientName": "Zz*"},
    {"StudyDate": "20230105"},
    {"StudyDate": "20230105-20230107"},
    {"StudyDate": "20230105-"},
    {"StudyDate": "-20230102"},
    {"StudyDate": "20230105-20230107", "ModalitiesInStudy": "MR"},
    {"StudyDate": "20230105-20230107", "PatientName": "ro*"},
    {"ModalitiesInStudy": "CT"},
    {"ModalitiesInStudy": "PT"},
    {"StudyDescription": "*knee*"},
    {"StudyDescription": "Chest PA"},
    {"ReferringPhysicianName": "REF^7*"},
    {"StudyTime": "1015-1016"},
    {"PatientID": "PAT012345", "ModalitiesInStudy": "CR"},
    {"StudyInstanceUID": "2.25.770000000123451"},
    {},
)


def _rows(count: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number in range(count):
        patient = number % max(1, count // 10)
        date = f"{2023 + number // 12 % 2}{1 + number % 12:02d}{1 + number * 7 % 28:02d}"
        yield number, date, {"patient": patient + 1, "modality": _MODALITIES[number % len(_MODALITIES)]}


def fill(database: Database, count: int) -> None:
    """Write studies, each with a series, an admission and an instance."""
    common: dict[str, Any] = {"series_count": 1, "instance_count": 1, "bytes": 600, "verification": 1, "version": 1}
    people = max(1, count // 10)

    def insert(c: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            c.execute(sa.insert(table), rows)

    def person(number: int) -> dict[str, Any]:
        name = f"{_LAST[number % len(_LAST)]}_{number:06d}^{_FIRST[number % len(_FIRST)]}"
        identity = f"default\x1f\x1fPAT{number:06d}"
        told = {"patient_id": f"PAT{number:06d}", "patient_name": name, "patient_birth_date": "19600101"}
        return {"id": number + 1, "identity": identity, "who": identity, **told, "name_key": name_key(name)}

    for first in range(0, people, _BATCH):
        batch = [person(number) for number in range(first, min(people, first + _BATCH))]
        database.write(lambda c, batch=batch: insert(c, patients, batch))  # type: ignore[misc]
    waiting: list[tuple[int, str, dict[str, Any]]] = []

    def flush() -> None:
        def work(c: sa.Connection) -> None:
            insert(
                c,
                studies,
                [
                    {
                        "id": n + 1, "study_instance_uid": f"2.25.77{n:012d}1", "patient": more["patient"],
                        "accession_number": f"ACC{n:08d}", "study_date": date, "study_time": "101500",
                        "study_description": "Chest PA", "referring_physician_name": f"Ref^{n % 100}",
                        "modalities": f"\\{more['modality']}\\", **common,
                    }
                    for n, date, more in waiting
                ],
            )  # fmt: skip
            one = {"instance_count": 1, "header": b"", "series_number": "1"}
            insert(
                c,
                series,
                [
                    {**one, "id": n + 1, "study": n + 1, "series_instance_uid": f"2.25.77{n:012d}2",
                     "modality": more["modality"]}
                    for n, _, more in waiting
                ],
            )  # fmt: skip
            told = {"digest": bytes(32), "station": "BENCH", "verification": 1}
            insert(c, admissions, [{**told, "id": n + 1, "study": n + 1} for n, _, _ in waiting])
            what = {"transfer_syntax_uid": "1.2.840.10008.1.2.1", "sha256": bytes(32), "current": True, "rows": 16}
            insert(
                c,
                instances,
                [
                    {**what, "id": n + 1, "study": n + 1, "series": n + 1, "admission": n + 1,
                     "sop_instance_uid": f"2.25.77{n:012d}3"}
                    for n, _, _ in waiting
                ],
            )  # fmt: skip

        database.write(work)
        waiting.clear()

    for row in _rows(count):
        waiting.append(row)
        if len(waiting) == _BATCH:
            flush()
    if waiting:
        flush()


def _plans(call: Any) -> list[str]:
    """Return how SQLite runs what `call` asks."""
    found: list[str] = []
    execute = Prepared.execute

    def explained(self: Any, cursor: Any, parameters: Any) -> None:
        cursor.execute(f"EXPLAIN QUERY PLAN {self.sql}", parameters)
        found.append(" / ".join(row[3] for row in cursor.fetchall() if "CORRELATED" not in row[3]))
        execute(self, cursor, parameters)

    Prepared.execute = explained  # type: ignore[method-assign]
    try:
        call()
    finally:
        Prepared.execute = execute  # type: ignore[method-assign]
    return found


def ask(database: Database, *, plans: bool) -> None:
    """Ask each question, and print what it took: CPU to the first rows, to all of them, and how it is run."""
    queries = DicomQueries(database)
    keywords = {"PatientID": 0x00100020, "PatientName": 0x00100010, "StudyDate": 0x00080020, "StudyTime": 0x00080030,
                "AccessionNumber": 0x00080050, "ModalitiesInStudy": 0x00080061, "StudyDescription": 0x00081030,
                "ReferringPhysicianName": 0x00080090, "StudyInstanceUID": 0x0020000D}  # fmt: skip
    for question in QUESTIONS:
        keys = tuple(Key(tag, vr_of(tag), question.get(name, "")) for name, tag in keywords.items())
        for _again in range(2):
            began, first, rows = time.process_time(), 0.0, 0
            for batch in _batches(queries, keys):
                rows += len(batch.rows)
                first = first or (time.process_time() - began if rows else 0.0)
            taken = time.process_time() - began
        print(f"{question!s:75} {rows:7} rows  first {first * 1e3:8.2f} ms  all {taken * 1e3:9.2f} ms")
        if plans:
            once = _plans(partial(next, _batches(queries, keys)))
            print("".join(f"    {line}\n" for line in dict.fromkeys(once)), end="")


def _batches(queries: DicomQueries, keys: tuple[Key, ...]) -> Iterator[Any]:
    yield from queries.find(Query(model=2, level="STUDY", keys=keys)).batches()


def main() -> int:
    """Fill, or ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the database, or of a Database Server that is not running")
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--ask", action="store_true", help="ask the usual questions of what is there")
    parser.add_argument("--plans", action="store_true", help="and print how SQLite runs them")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{options.folder / 'radmesh.sqlite'}", MIGRATIONS)
    if options.ask or options.plans:
        ask(database, plans=options.plans)
    else:
        began = time.process_time()
        fill(database, options.studies)
        print(f"{options.studies} studies in {time.process_time() - began:.0f} s of CPU")
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
