"""Recovers stores and compares them with what was acknowledged; one JSON line in, one out, until the input ends.

In: {"root": folder, "acknowledged": [...]}. Out: {"faults": [text...], "objects": how many were looked for}.
"""

import contextlib
import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from store_support import CHUNK, all_rows, digest_of, header, open_store, put, read, send, transfer_id

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Ref, Residence


def check(root: Path, acknowledged: list[Any]) -> tuple[list[str], int]:
    faults: list[str] = []
    stored = {tuple(a["ref"]): a for a in acknowledged if a["what"] == "stored"}
    leaving = {tuple(a["key"]) for a in acknowledged if a["what"] == "evicting"}
    gone = {tuple(a["key"]) for a in acknowledged if a["what"] == "evicted"}
    permanent = {tuple(ref) for a in acknowledged if a["what"] == "permanent" for ref in a["refs"]}
    registered: Counter[tuple[str, int]] = Counter()
    progress: dict[tuple[int, str], int] = {}
    for a in acknowledged:
        if a["what"] == "registered":
            key = tuple(a["key"])
            registered[key] = max(registered[key], a["sequence"])
        elif a["what"] == "progress":
            progress[a["study"], a["name"]] = a["offset"]
    registrations = 0
    store = open_store(root)
    try:
        look(store, stored, leaving, gone, permanent, faults)
        outbox(store, registered, faults)
        if (root.parent / "radmesh.sqlite").exists():
            registrations = database(store, root.parent / "radmesh.sqlite", faults)
        for (study, name), offset in progress.items():
            try:
                transfer = store.begin(transfer_id(name), header(study, name))
            except RadmeshError as error:
                faults.append(f"transfer {name}: {error.reason}")
                continue
            if transfer.stored is None and transfer.acknowledged_offset < offset:
                faults.append(f"transfer {name} is at {transfer.acknowledged_offset}, acknowledged was {offset}")
        # It goes on: new objects, also in studies that were being written.
        for study in range(5):
            ref = put(store, header(study, "later"), b"later").ref
            if read(store, ref) != b"later":
                faults.append("what is stored after the cut is not read")
            send(store, header(study, "large"), bytes(CHUNK + 1))
        store.close()
        store = open_store(root)
        look(store, stored, leaving, gone, permanent, faults)
    finally:
        store.close()
    return faults, len(stored) + registrations


def look(store: Any, stored: Any, leaving: Any, gone: Any, permanent: Any, faults: list[str]) -> None:
    rows = all_rows(store)
    count = Counter((row.header.sop_instance_uid, row.sha256.hex()) for row in rows)
    there = {(row.ref.study_hash, row.ref.generation, row.ref.sequence): row for row in rows}
    for number, times in count.items():
        if times > 1:
            faults.append(f"{number} is there {times} times")
    for place, a in stored.items():
        row = there.get(place)
        if row is None:
            faults.append(f"{place} has no row")
            continue
        if (row.header.sop_instance_uid, row.sha256.hex()) != (a["sop"], a["sha256"]):
            faults.append(f"{place} is another object")
        try:
            if digest_of(store, Ref(*place)).hex() != a["sha256"]:
                faults.append(f"{place} has other bytes")
        except RadmeshError as error:
            if place[:2] not in leaving or error.reason != "OBJECT_NOT_FOUND":
                faults.append(f"{place} cannot be read: {error.reason}")
        if place in permanent and store.residence(Ref(*place)) == Residence.CACHE:
            faults.append(f"{place} is no longer permanent")
    # What nobody was told of is whole all the same.
    for place, row in there.items():
        if place not in stored:
            try:
                if digest_of(store, row.ref) != row.sha256:
                    faults.append(f"{place}, never acknowledged, has other bytes")
            except RadmeshError as error:
                if place[:2] not in leaving:
                    faults.append(f"{place}, never acknowledged, cannot be read: {error.reason}")
    states = {(s.study_hash, s.generation): s.state for s in store.studies()}
    faults += [f"{key} was evicted and is {states.get(key)}" for key in gone if states.get(key) != "PERMANENT_ONLY"]


def outbox(store: Any, registered: Any, faults: list[str]) -> None:
    """Everything behind the mark is offered again, and the mark is where it was acknowledged."""
    left = {(h, g): (done, last) for h, g, done, last in store.unregistered()}
    for state in store.studies():
        key = (state.study_hash, state.generation)
        done, last = left.get(key, (state.registered, state.registered))
        if done < registered[key]:
            faults.append(f"{key} is registered up to {done}, acknowledged was {registered[key]}")
        sequences = [row.ref.sequence for row in store.rows(*key, limit=1 << 20)]
        if sequences != list(range(1, len(sequences) + 1)):
            faults.append(f"{key} has gaps: {sequences}")
        if sequences and max(sequences) > max(done, last):
            faults.append(f"{key} has rows up to {max(sequences)} that nobody would register")


def database(store: Any, path: Path, faults: list[str]) -> int:
    """Whatever the store holds to be registered is in the database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        faults += [f"database: {line}" for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
        made = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'locations'").fetchone()
        known = set(connection.execute("SELECT study_hash, generation, sequence FROM locations")) if made else set()
    for state in store.studies():
        for sequence in range(1, state.registered + 1):
            if (state.study_hash, state.generation, sequence) not in known:
                faults.append(f"{state.study_hash} {sequence} counts as registered, and the database does not have it")
    return len(known)


for line in sys.stdin:
    task = json.loads(line)
    try:
        found, objects = check(Path(task["root"]), task["acknowledged"])
    except Exception as error:  # whatever it is, the store did not start
        found, objects = [f"recovery failed: {type(error).__name__}: {error}"], 0
    print(json.dumps({"faults": found, "objects": objects}), flush=True)
