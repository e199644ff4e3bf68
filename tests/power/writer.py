"""Stores objects as an archive does, and says what was acknowledged: python writer.py ROOT ACKS SEED HOW BEGIN END.

What it does is a function of SEED; it does the steps BEGIN to END, so that a second process can go on. HOW: "" or
"database" (objects are registered in a SQLite database beside the store), or what a test of the test must notice:
"nosync" (no commit is synced), "nodirsync" (no name is), "nonamesync" (that of a study's file is not), "markfirst" (the
mark is moved before the database has answered).
"""

import json
import os
import random
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from store_support import CHUNK, body, header, open_store, put, sha256, transfer_id

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import catalogue, lmdb_store

STUDIES = 5
HEADER = ("sop_instance_uid", "transfer_syntax_uid", "study_instance_uid", "series_instance_uid", "sop_class_uid")
HEADER += ("calling_ae_title", "admission_key", "verification")


class Database:
    """The Database Server's registry, without its server."""

    def __init__(self, path: Path) -> None:
        from database_support import Parts, header

        from radmesh.database_server.schema import MIGRATIONS
        from radmesh.sql.engine import Database as Engine

        self.parts = Parts(Engine(f"sqlite:///{path}", MIGRATIONS))
        self.header = header

    def __call__(self, rows: list[Any]) -> None:
        from radmesh.database_server.registry import Record
        from radmesh.sql.engine import micros

        records = [
            Record(
                store_id="archive-0",
                **asdict(row.ref),
                sha256=row.sha256,
                length=row.length,
                header=self.header(StudyInstanceUID=row.header.study_instance_uid, PatientID="P"),
                receive_time=micros(row.receive_time),
                remarks=row.remarks,
                residence=1,
                **{name: getattr(row.header, name) for name in HEADER},
            )
            for row in rows
        ]
        self.parts.register(*records)


class Writer:
    def __init__(self, root: Path, acks: Path, seed: str, how: str) -> None:
        self.seed = seed
        self.acks = os.open(acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if how == "nodirsync":
            catalogue.sync_directory = lmdb_store.sync_directory = lambda _folder: None
        if how == "nonamesync":
            lmdb_store.LmdbStudyStore._sync_name = lambda _store, _path: None
        self.root, self.how, self.sync = root, how, how != "nosync"
        self.store = open_store(root, sync=self.sync)
        self.register_rows = Database(root.parent / "radmesh.sqlite") if how in ("database", "markfirst") else None

    def say(self, what: str, **values: Any) -> None:
        """One write is one acknowledgement."""
        os.write(self.acks, json.dumps({"what": what, **values}).encode() + b"\n")

    def stored(self, stored: Any, study: int, sop: object, data: bytes) -> None:
        ref = stored.ref
        self.say(
            "stored",
            ref=[ref.study_hash, ref.generation, ref.sequence],
            sop=header(study, sop).sop_instance_uid,
            sha256=sha256(data).hex(),
        )

    def small(self, dice: random.Random, name: str) -> None:
        study = dice.randrange(STUDIES)
        data = body(dice.choice((0, 700, 4080, 9_000, 60_000)), name)
        for _ in range(dice.choice((1, 1, 1, 2))):  # sometimes again
            self.stored(put(self.store, header(study, name), data, name), study, name, data)

    def large(self, dice: random.Random, name: str) -> None:
        study = dice.randrange(STUDIES)
        data = body(dice.randrange(CHUNK, 4 * CHUNK), name)
        transfer = self.store.begin(transfer_id(name), header(study, name))
        if transfer.stored is None:
            for offset in range(transfer.acknowledged_offset, len(data), CHUNK):
                transfer.write(offset, data[offset : offset + CHUNK])
                if dice.random() < 0.5:
                    transfer.wait(offset + CHUNK, 30)
                if transfer.acknowledged_offset:
                    self.say("progress", name=name, study=study, offset=transfer.acknowledged_offset)
                if dice.random() < 0.1:
                    return  # cut; nobody goes on
            transfer.commit(len(data), sha256(data), queryable=b"q", remarks=())
        self.stored(transfer.stored, study, name, data)

    def register(self, dice: random.Random) -> None:
        for name, generation, registered, last in self.store.unregistered():
            if last > registered and dice.random() < 0.7:
                rows = self.store.rows(name, generation, after=registered, limit=1 << 20)
                if self.register_rows is not None and self.how == "database":
                    self.register_rows(rows)
                self.store.mark_registered(name, generation, last)
                if self.register_rows is not None and self.how == "markfirst":
                    self.say("marked")
                    self.register_rows(rows)
                self.say("registered", key=[name, generation], sequence=last)

    def settle(self, dice: random.Random) -> None:
        """What the permanent tier does; sometimes the cache copy goes."""
        for state in list(self.store.studies()):
            key = (state.study_hash, state.generation)
            if state.state != "OPEN" or not state.last or dice.random() < 0.5:
                continue
            refs = self.store.unsettled(*key)
            self.store.set_permanent(refs)
            self.say("permanent", refs=[[r.study_hash, r.generation, r.sequence] for r in refs])
            if dice.random() < 0.5 and self.register_rows is None:
                self.store.mark_registered(*key, state.last)
                self.say("evicting", key=key)
                try:
                    self.store.evict(*key)
                except RadmeshError as error:
                    assert error.reason in ("STORE_BUSY", "NOT_PERMANENT")
                else:
                    self.say("evicted", key=key)

    def step(self, number: int) -> None:
        dice = random.Random(f"{self.seed} {number}")

        def work(lane: int) -> None:
            mine = random.Random(f"{self.seed} {number} {lane}")
            for item in range(4):
                name = f"{number}.{lane}.{item}"
                (self.large if mine.random() < 0.15 else self.small)(mine, name)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.register(dice)
        if dice.random() < 0.4:
            self.settle(dice)
        if dice.random() < 0.2:
            self.store.close()
            self.store = open_store(self.root, sync=self.sync)


def main() -> None:
    root, acks, seed, how, begin, end = sys.argv[1:]
    writer = Writer(Path(root), Path(acks), seed, how)
    for number in range(int(begin), int(end)):
        writer.step(number)
        print(number, flush=True)
    writer.store.close()


main()
