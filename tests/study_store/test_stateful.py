"""Anything in any order, against a dictionary: what the store says of itself is what was done to it."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depth import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from store_support import EXPLICIT, IMPLICIT, all_rows, body, header, open_store, put, read, sha256, transfer_id

from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome, Ref, Residence, Stored, lmdb_store

STUDIES = st.integers(0, 2)
SOPS = st.integers(0, 3)
SYNTAXES = st.sampled_from([EXPLICIT, IMPLICIT])
# Few of them, so that they meet again.
CONTENTS = st.sampled_from([b"", b"one", body(5_000), body(40_000)])
PIECES = st.integers(1, 25_000)
# Taken over, restarted, or its study was evicted while it had nothing to lose: the sender goes on, or sends again.
GONE = ("STREAM_REPLACED", "COMMIT_FAILED")


@dataclass
class Sending:
    """What the sender of a transfer knows."""

    number: int
    study: int
    sop: int
    syntax: str
    data: bytes
    handle: Any
    sent: int = 0
    acknowledged: int = 0


class StoreMachine(RuleBasedStateMachine):
    sendings = Bundle("sendings")
    cuts = Bundle("cuts")

    @initialize()
    def open(self) -> None:
        lmdb_store.EVICT_SECONDS = 0.01  # it is refused while a transfer is open, as often here as not
        self.folder = Path(tempfile.mkdtemp(prefix="radmesh-stateful-"))
        self.clock = ManualClock()
        self.store = open_store(self.folder / "store", self.clock)
        # (study, sop, syntax, content) → reference; reference → content; transfer → reference
        self.known: dict[tuple[int, int, str, bytes], Ref] = {}
        self.contents: dict[Ref, bytes] = {}
        self.committed: dict[int, Ref] = {}
        self.evicted: set[tuple[str, int]] = set()
        self.permanent: set[Ref] = set()
        self.registered: dict[tuple[str, int], int] = {}
        self.last: dict[tuple[str, int], int] = {}
        self.counter = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                self.look()
                self.restart()
                self.look()
            finally:
                self.store.close()
                lmdb_store.EVICT_SECONDS = 1.0
                shutil.rmtree(self.folder)

    # -- the model

    def expected(self, study: int, sop: int, syntax: str, data: bytes) -> tuple[Outcome, Ref | None]:
        key = (study, sop, syntax, data)
        if key in self.known:
            return Outcome.ALREADY, self.known[key]
        variant = any(other[:2] == key[:2] for other in self.known)
        return (Outcome.VARIANT if variant else Outcome.STORED), None

    def generation(self, study: int) -> int:
        name = study_hash(header(study).study_instance_uid)
        return 1 + sum(evicted == name for evicted, _ in self.evicted)

    def note(self, study: int, sop: int, syntax: str, data: bytes, stored: Stored) -> None:
        outcome, ref = self.expected(study, sop, syntax, data)
        assert stored.outcome is outcome
        if ref is None:
            key = (study_hash(header(study).study_instance_uid), self.generation(study))
            self.last[key] = self.last.get(key, 0) + 1
            ref = Ref(*key, self.last[key])
            self.known[study, sop, syntax, data] = ref
            self.contents[ref] = data
        assert stored.ref == ref

    # -- small objects

    @rule(study=STUDIES, sop=SOPS, syntax=SYNTAXES, data=CONTENTS, again=st.booleans())
    def put(self, study: int, sop: int, syntax: str, data: bytes, again: bool) -> None:
        self.counter += 1
        head = header(study, sop, transfer_syntax_uid=syntax)
        stored = put(self.store, head, data, self.counter)
        self.note(study, sop, syntax, data, stored)
        if again:
            assert put(self.store, head, data, self.counter).ref == stored.ref

    # -- large ones

    @rule(target=sendings, study=STUDIES, sop=SOPS, syntax=SYNTAXES, data=CONTENTS)
    def begin(self, study: int, sop: int, syntax: str, data: bytes) -> Sending:
        self.counter += 1
        handle = self.store.begin(transfer_id(self.counter), header(study, sop, transfer_syntax_uid=syntax))
        assert (handle.acknowledged_offset, handle.stored) == (0, None)
        return Sending(self.counter, study, sop, syntax, data, handle)

    @rule(sending=sendings, size=PIECES, wait=st.booleans())
    def write(self, sending: Sending, size: int, wait: bool) -> None:
        if sending.handle is None:
            return
        piece = sending.data[sending.sent : sending.sent + size]
        try:
            sending.handle.write(sending.sent, piece)
        except RadmeshError as error:
            assert error.reason in GONE
            sending.handle = None
            return
        sending.sent += len(piece)
        if wait:
            sending.handle.wait(sending.sent, 10)
            sending.acknowledged = sending.sent
        assert sending.acknowledged <= sending.handle.acknowledged_offset <= sending.sent

    @rule(sending=sendings)
    def write_elsewhere(self, sending: Sending) -> None:
        if sending.handle is None:
            return
        try:
            sending.handle.write(sending.sent + 1, b"x")
        except RadmeshError as error:
            assert error.reason in ("OFFSET_UNEXPECTED", *GONE)
        else:
            raise AssertionError

    @rule(sending=sendings)
    def cut(self, sending: Sending) -> None:
        sending.handle = None

    @rule(sending=sendings)
    def resume(self, sending: Sending) -> None:
        head = header(sending.study, sending.sop, transfer_syntax_uid=sending.syntax, verification=2)
        handle = self.store.begin(transfer_id(sending.number), head)
        if handle.stored is not None:
            assert handle.stored.ref == self.committed[sending.number]
            sending.handle = None
            return
        assert sending.number not in self.committed or self.committed[sending.number].generation != self.generation(
            sending.study
        )
        assert sending.acknowledged <= handle.acknowledged_offset <= sending.sent
        sending.handle, sending.sent = handle, handle.acknowledged_offset

    @rule(sending=consumes(sendings))
    def commit(self, sending: Sending) -> None:
        if sending.handle is None:
            return
        try:
            rest = sending.data[sending.sent :]
            sending.handle.write(sending.sent, rest)
            stored = sending.handle.commit(len(sending.data), sha256(sending.data), queryable=b"", remarks=("R",))
        except RadmeshError as error:
            assert error.reason in GONE
            return
        self.note(sending.study, sending.sop, sending.syntax, sending.data, stored)
        self.committed[sending.number] = stored.ref

    @rule(sending=consumes(sendings))
    def abort(self, sending: Sending) -> None:
        if sending.handle is not None:
            sending.handle.abort()

    # -- what becomes of them

    @rule(study=STUDIES)
    def register(self, study: int) -> None:
        for name, generation, registered, last in self.store.unregistered():
            key = (name, generation)
            assert (registered, last) == (self.registered.get(key, 0), self.last.get(key, 0))
            if name == study_hash(header(study).study_instance_uid) and last:
                self.store.mark_registered(*key, last)
                self.registered[key] = last

    @rule(study=STUDIES, data=st.data())
    def settle(self, study: int, data: Any) -> None:
        key = (study_hash(header(study).study_instance_uid), self.generation(study))
        refs = [Ref(*key, n) for n in range(1, self.last.get(key, 0) + 1)]
        if refs:
            some = data.draw(st.lists(st.sampled_from(refs), unique=True))
            self.store.set_permanent(some)
            self.permanent |= set(some)
            assert self.store.unsettled(*key) == [ref for ref in refs if ref not in self.permanent]

    @rule(study=STUDIES, all_of_it=st.booleans())
    def evict(self, study: int, all_of_it: bool) -> None:
        key = (study_hash(header(study).study_instance_uid), self.generation(study))
        refs = [Ref(*key, n) for n in range(1, self.last.get(key, 0) + 1)]
        if refs and all_of_it:
            self.store.set_permanent(refs)
            self.permanent |= set(refs)
            self.store.mark_registered(*key, len(refs))
            self.registered[key] = len(refs)
        ready = bool(refs) and self.permanent >= set(refs) and self.registered.get(key, 0) == len(refs)
        try:
            self.store.evict(*key)
        except RadmeshError as error:
            assert error.reason in ("STORE_BUSY", "STUDY_NOT_FOUND", "NOT_PERMANENT")
            assert not (ready and error.reason == "NOT_PERMANENT")
        else:
            assert ready or not refs
            self.evicted.add(key)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.folder / "store", self.clock)

    @precondition(lambda self: hasattr(self, "clock"))
    @rule()
    def time_passes(self) -> None:
        """Not so long that transfers are forgotten."""
        self.clock.advance(61)

    # -- what must hold

    @invariant()
    def one_row_each(self) -> None:
        if hasattr(self, "store"):
            assert sum(s.last for s in self.store.studies()) == len(self.contents)

    def look(self) -> None:
        rows = {row.ref: row for row in all_rows(self.store)}
        assert rows.keys() == self.contents.keys()
        for (study, sop, syntax, data), ref in self.known.items():
            row = rows[ref]
            assert (row.header.sop_instance_uid, row.header.transfer_syntax_uid) == (
                header(study, sop).sop_instance_uid,
                syntax,
            )
            assert (row.length, row.sha256) == (len(data), sha256(data))
        for ref, data in self.contents.items():
            if (ref.study_hash, ref.generation) in self.evicted:
                assert self.store.residence(ref) is Residence.PERMANENT
                continue
            assert read(self.store, ref) == data
            assert (self.store.residence(ref) is Residence.CACHE_AND_PERMANENT) == (ref in self.permanent)
        left = {(h, g): (r, n) for h, g, r, n in self.store.unregistered() if n > r}
        assert left == {
            key: (self.registered.get(key, 0), last)
            for key, last in self.last.items()
            if last > self.registered.get(key, 0)
        }


StoreMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("STATEFUL_EXAMPLES", examples(60))),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStore = StoreMachine.TestCase
