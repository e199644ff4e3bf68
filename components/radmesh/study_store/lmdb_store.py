"""The StudyStore on LMDB: see CORRECTNESS rules 1 to 5 and 13 in docs/reference/durability.md for what it promises.

    root/LOCK                          held by the one process that has the store open
    root/catalogue/                    which generations of which studies there are
    root/studies/<2 hex>/<hash>.<gen>  a generation's environment
    root/rows/<2 hex>/<hash>.<gen>     rows of an evicted generation
    root/trash/                        evicted environments on their way out

Order of writes for the first object of a generation: the catalogue's row, the environment's file, its directory
entry; only then may an object be acknowledged. Recovery adopts a file without a row and never unlinks one.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import lmdb

from radmesh.dicom.uids import study_hash as hash_of
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory, write_atomic
from radmesh.study_store import catalogue as states
from radmesh.study_store import rows as row_format
from radmesh.study_store.catalogue import Catalogue, Generation
from radmesh.study_store.committer import Budget, Operation
from radmesh.study_store.environment import RESUME_SECONDS, Environment, drop_records
from radmesh.study_store.store import (
    CHUNK_MAX,
    Buffer,
    IndexRow,
    ObjectHeader,
    Outcome,
    Ref,
    Residence,
    Stored,
    StudyState,
)

UNCOMMITTED_MAX: Final = 64 * 1024 * 1024
OPEN_MAX: Final = 512
WAIT_SECONDS: Final = 30.0
_FREE_EVERY: Final = 0.2

Alarm = Callable[[str, str], None]


def _no_alarm(_reason: str, _message: str) -> None:
    return


class LmdbStudyStore:
    """A store under `root`.

    Args:
        root: made if missing; must be a local file system (LMDB).
        store_id: such as "archive-0".
        clock: for receive times.
        reserve: bytes of the file system that are left free; below, nothing new is taken. None: 2 %, and 1 GiB at
        least. spool: objects here are on their way to an archive.
        alarm: told (reason, message) of what somebody should look at.

    Raises:
        RadmeshError: DATA_IN_USE: another process has it open.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        clock: Clock,
        *,
        reserve: int | None = None,
        spool: bool = False,
        alarm: Alarm = _no_alarm,
        sync: bool = True,
    ) -> None:
        self.root = root
        self.store_id = store_id
        self.epoch = secrets.token_bytes(16)
        self._clock = clock
        self._reserve = reserve
        self._spool = spool
        self._alarm = alarm
        self._sync = sync
        self._budget = Budget(UNCOMMITTED_MAX)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="commit")
        self._lock = threading.RLock()
        self._released = threading.Condition(self._lock)
        self._open: OrderedDict[tuple[str, int], Environment] = OrderedDict()
        self._writable_now: dict[str, Environment] = {}
        self._progress: dict[tuple[str, int], list[int]] = {}
        self._live: dict[bytes, LmdbTransfer] = {}
        self._callbacks: list[Callable[[Ref], None]] = []
        self._rows_cache: OrderedDict[tuple[str, int], dict[int, tuple[bytes, bytes]]] = OrderedDict()
        self._free_at, self._free = -1.0, 0
        self.on_commit_seconds: Callable[[float], None] = lambda _seconds: None
        self.objects_committed = 0
        self.bytes_committed = 0
        self._lock_file = self._take_folder()
        self._catalogue = Catalogue(root / "catalogue")
        self._recover()

    # -- start
    # ----------------------------------------------------------------------------------------------------------

    def _take_folder(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise RadmeshError("DATA_IN_USE", f"another process has the store in {self.root} open") from None
        for name in ("catalogue", "trash", "studies", "rows"):
            (self.root / name).mkdir(exist_ok=True, mode=0o700)
        for name in ("studies", "rows"):
            # All at once, so that no intake has to make one and sync its parent.
            for number in range(256):
                (self.root / name / f"{number:02x}").mkdir(exist_ok=True, mode=0o700)
            sync_directory(self.root / name)
        sync_directory(self.root)
        return descriptor

    def _recover(self) -> None:
        """Make files and catalogue agree; nothing that was acknowledged is touched."""
        for left in (self.root / "trash").iterdir():
            left.unlink()
        found = set()
        for folder in (self.root / "studies").iterdir():
            for path in folder.iterdir():
                name, _, digits = path.name.partition(".")
                if len(name) == 32 and digits.isdigit():
                    found.add((name, int(digits)))
        for g in self._catalogue.all():
            present = (g.study_hash, g.number) in found
            found.discard((g.study_hash, g.number))
            self._recover_generation(g, present=present)
        for name, number in found:
            self._adopt(name, number)
        for name, number in self._catalogue.marked():
            known = self._catalogue.get(name, number)
            if known is not None and known.state in (states.OPEN, states.SEALED):
                self._recover_mark(known)

    def _recover_generation(self, g: Generation, *, present: bool) -> None:
        if g.state == states.EVICTING:
            # The rows were saved before the state was; the rest can be done again.
            self._finish_eviction(g.study_hash, g.number)
        elif g.state == states.REMOVED and present:
            self._finish_removal(g.study_hash, g.number)
        elif g.state in (states.OPEN, states.SEALED) and not present:
            if g.registered == 0:
                # The row was written and the file was not: nothing can have been acknowledged.
                self._catalogue.drop(g.study_hash, g.number)
            else:
                self._catalogue.update(g.study_hash, g.number, state=states.LOST)
                self._alarm("CACHE_COPY_LOST", "a study's cache file is gone: the permanent tier serves it")

    def _recover_mark(self, g: Generation) -> None:
        with self._environment(Ref(g.study_hash, g.number, 0)) as environment:
            last = environment.last_sequence
            environment.drop_stale_transfers(time.time(), WAIT_SECONDS)
        if last > g.registered:
            self._progress[g.study_hash, g.number] = [g.registered, last]
        else:
            self._catalogue.put(g, mark=False)

    def _adopt(self, name: str, number: int) -> None:
        """Take a file that the catalogue does not know: everything in it is registered again."""
        with self._environment(Ref(name, number, 0), known=False) as environment:
            uid = environment.study_instance_uid()
        self._catalogue.put(Generation(name, number, uid), mark=True)

    # -- environments
    # ---------------------------------------------------------------------------------------------------

    def _path(self, study_hash: str, number: int) -> Path:
        return self.root / "studies" / study_hash[:2] / f"{study_hash}.{number}"

    def _rows_path(self, study_hash: str, number: int) -> Path:
        return self.root / "rows" / study_hash[:2] / f"{study_hash}.{number}"

    def _make_environment(self, study_hash: str, number: int, *, create: bool) -> Environment:
        return Environment(
            self._path(study_hash, number),
            study_hash,
            number,
            commit=self._commit,
            after=self._after,
            pool=self._pool,
            create=create,
            sync=self._sync,
        )

    @contextlib.contextmanager
    def _environment(self, ref: Ref, *, known: bool = True) -> Iterator[Environment]:
        environment = self._acquire(ref.study_hash, ref.generation, known=known)
        try:
            yield environment
        finally:
            self._release(environment)

    def _acquire(self, study_hash: str, number: int, *, known: bool = True) -> Environment:
        """Return an open environment, kept open until it is released.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND: it is not in the cache.
        """
        key = (study_hash, number)
        with self._lock:
            environment = self._open.get(key)
            if environment is None:
                if known:
                    g = self._catalogue.get(study_hash, number)
                    if g is None or g.state not in (states.OPEN, states.SEALED):
                        raise RadmeshError("OBJECT_NOT_FOUND", "the object is not in the cache")
                try:
                    environment = self._make_environment(study_hash, number, create=False)
                except lmdb.Error as error:
                    if not self._path(study_hash, number).exists():
                        raise RadmeshError("OBJECT_NOT_FOUND", "the study's cache file is gone") from error
                    raise RadmeshError("OBJECT_CORRUPT", "the study's cache file cannot be opened") from error
                self._open[key] = environment
            else:
                self._open.move_to_end(key)
            environment.references += 1
            if len(self._open) > OPEN_MAX:
                self._close_idle()
            return environment

    def _release(self, environment: Environment) -> None:
        with self._lock:
            environment.references -= 1
            self._released.notify_all()

    def _close_idle(self) -> None:
        """Close the environments used longest ago, as many as are too many; called under the lock."""
        for key, environment in list(self._open.items()):
            if len(self._open) <= OPEN_MAX * 3 // 4:
                return
            registered, last = self._progress.get(key, (0, 0))
            if environment.references or registered < last or not environment.committer.idle:
                continue
            if self._writable_now.get(key[0]) is environment:
                del self._writable_now[key[0]]
            if self._progress.pop(key, None) is not None:
                g = self._catalogue.get(*key)
                if g is not None:
                    self._catalogue.put(g, mark=False)
            del self._open[key]
            environment.close()

    def _writable(self, study_hash: str, study_instance_uid: str) -> Environment:
        """Return the environment that takes a study's objects now, kept open; makes the next generation if needed."""
        with self._lock:
            environment = self._writable_now.get(study_hash)
            if environment is not None and not environment.sealed and not environment.evicting:
                environment.references += 1
                self._open.move_to_end((study_hash, environment.generation))
                return environment
            g = self._catalogue.latest(study_hash)
            open_now = None if g is None else self._open.get((study_hash, g.number))
            refused = open_now is not None and (open_now.sealed or open_now.evicting)
            if g is not None and g.state == states.OPEN and not refused:
                environment = self._acquire(study_hash, g.number)
                if (study_hash, g.number) not in self._progress:
                    # Before the first acknowledgement: rows may come that a later start has to look for.
                    self._catalogue.put(g, mark=True)
                    self._progress[study_hash, g.number] = [g.registered, environment.last_sequence]
                    environment.drop_stale_transfers(time.time(), WAIT_SECONDS)
            else:
                environment = self._new_generation(study_hash, study_instance_uid, 1 if g is None else g.number + 1)
            self._writable_now[study_hash] = environment
            return environment

    def _new_generation(self, study_hash: str, study_instance_uid: str, number: int) -> Environment:
        try:
            self._catalogue.put(Generation(study_hash, number, study_instance_uid), mark=True)
            environment = self._make_environment(study_hash, number, create=True)
            with environment.lmdb.begin(write=True) as transaction:
                transaction.put(b"m", study_instance_uid.encode())
            sync_directory(environment.path.parent)
        except (lmdb.Error, OSError) as error:
            raise self._failure(error) from error
        self._progress[study_hash, number] = [0, 0]
        environment.references = 1
        self._open[study_hash, number] = environment
        if len(self._open) > OPEN_MAX:
            self._close_idle()
        return environment

    # -- committing
    # -----------------------------------------------------------------------------------------------------

    def _failure(self, error: BaseException) -> RadmeshError:
        self._free_at = -1.0
        if "No space left" in str(error) or self._measure_free() <= 0:
            return RadmeshError("STORAGE_FULL", "the store's file system is full")
        return RadmeshError("COMMIT_FAILED", f"the store's file system failed: {type(error).__name__}")

    def _commit(self, environment: Environment, batch: list[Operation]) -> None:
        """Run a batch in one durable transaction. After any failure the environment takes nothing more."""
        if environment.sealed:
            raise RadmeshError("COMMIT_FAILED", "an earlier commit of the study failed: send the object again")
        start = time.perf_counter()
        try:
            with environment.lmdb.begin(write=True) as transaction:
                for operation in batch:
                    try:
                        operation.result = operation.apply(transaction)
                    except RadmeshError as error:
                        operation.error = error
        except (lmdb.Error, OSError) as error:
            self._seal(environment)
            raise self._failure(error) from error
        self.on_commit_seconds(time.perf_counter() - start)

    def _seal(self, environment: Environment) -> None:
        environment.sealed = True
        with self._lock:
            if self._writable_now.get(environment.study_hash) is environment:
                del self._writable_now[environment.study_hash]
            # On a full disk this fails too; a later start then finds it open, and whole.
            with contextlib.suppress(lmdb.Error, OSError):
                self._catalogue.update(environment.study_hash, environment.generation, state=states.SEALED)
        self._alarm("COMMIT_FAILED", "a commit failed: the study's environment is sealed, later objects go to the next")
        self._pool.submit(self._verify, environment.study_hash, environment.generation)

    def _verify(self, study_hash: str, number: int) -> None:
        """Hash again what a sealed environment has committed."""
        bad = 0
        after = 0
        while page := self.rows(study_hash, number, after=after):
            for row in page:
                with contextlib.suppress(RadmeshError), self.read(row.ref) as reader:
                    digest = hashlib.sha256()
                    for piece in reader:
                        digest.update(piece)
                    if digest.digest() == row.sha256:
                        continue
                bad += 1
            after = page[-1].ref.sequence
        if bad:
            self._alarm("OBJECT_CORRUPT", f"{bad} committed objects of a sealed environment are not what was stored")

    def _after(self, environment: Environment, batch: list[Operation]) -> None:
        size = sum(operation.size for operation in batch)
        if size:
            self._budget.give(size)
        stored = [o.result for o in batch if isinstance(o.result, Stored) and o.error is None]
        if not stored:
            return
        with self._lock:
            progress = self._progress.get((environment.study_hash, environment.generation))
            if progress is not None:
                progress[1] = max(progress[1], environment.last_sequence)
        self.objects_committed += len(stored)
        for result in stored:
            for callback in self._callbacks:
                callback(result.ref)

    # -- storing
    # --------------------------------------------------------------------------------------------------------

    def _measure_free(self) -> int:
        now = self._clock.monotonic()
        if self._free_at < 0 or not 0 <= now - self._free_at < _FREE_EVERY:
            figures = os.statvfs(self.root)
            total = figures.f_blocks * figures.f_frsize
            reserve = self._reserve if self._reserve is not None else max(1 << 30, total // 50)
            self._free = figures.f_bavail * figures.f_frsize - reserve
            self._free_at = now
        return self._free

    def free_bytes(self) -> int:
        """Room above the reserve."""
        return max(0, self._measure_free() - self._budget.used)

    @property
    def accepting(self) -> bool:
        """Whether there is room above the reserve."""
        return self.free_bytes() > 0

    def _check_room(self, size: int) -> None:
        if self._measure_free() - self._budget.used < size:
            self._free_at = -1.0
            raise RadmeshError("STORAGE_FULL", "no room above the reserve of the store's file system")

    def put(
        self,
        transfer_id: bytes,
        header: ObjectHeader,
        data: Buffer,
        *,
        sha256: bytes,
        queryable: bytes,
        remarks: tuple[str, ...],
    ) -> Stored:
        """Store a whole small object."""
        size = len(data)
        if size > CHUNK_MAX:
            raise RadmeshError("CHUNK_TOO_LARGE", f"at most {CHUNK_MAX} bytes at once")
        self._check_room(size)
        environment = self._writable(hash_of(header.study_instance_uid), header.study_instance_uid)
        try:
            self._budget.take(size, WAIT_SECONDS)
            stored: Stored = environment.committer.run(
                Operation(
                    lambda transaction: environment.finish(
                        transaction,
                        transfer_id=transfer_id,
                        number=environment.new_object(),
                        header=header,
                        length=size,
                        sha256=sha256,
                        queryable=queryable,
                        remarks=remarks,
                        now=self._clock.now(),
                        data=data,
                    ),
                    size,
                ),
                WAIT_SECONDS,
            )
        finally:
            self._release(environment)
        self.bytes_committed += size
        return stored

    def begin(self, transfer_id: bytes, header: ObjectHeader) -> "LmdbTransfer":
        """Begin a transfer, or go on with it."""
        self._check_room(0)
        environment = self._writable(hash_of(header.study_instance_uid), header.study_instance_uid)
        try:
            with self._lock:
                self._forget_old_transfers()
                older = self._live.pop(transfer_id, None)
            if older is not None:
                older.replace()
                if older.environment is not environment:
                    # The environment it wrote to was sealed meanwhile: the object begins anew.
                    older = None
            what = row_format.encode_header(header)
            sequence = environment.committed(transfer_id)
            if sequence is not None:
                row, _ = self._decode(Ref(environment.study_hash, environment.generation, sequence), environment)
                if row.header.sop_instance_uid != header.sop_instance_uid:
                    raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
                return LmdbTransfer(self, environment, transfer_id, header, 0, 0, Stored(row.ref, Outcome.STORED))
            pending = environment.pending(transfer_id)
            if pending is not None and pending[2] != what:
                raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
            number, offset = pending[:2] if pending else (environment.new_object(), 0)
            transfer = LmdbTransfer(self, environment, transfer_id, header, number, offset, None)
            with self._lock:
                self._live[transfer_id] = transfer
            return transfer
        except BaseException:
            self._release(environment)
            raise

    def _forget_old_transfers(self) -> None:
        """Let go of transfers whose stream ended long ago; called under the lock."""
        now = self._clock.monotonic()
        for transfer_id, transfer in list(self._live.items()):
            if now - transfer.active_at > RESUME_SECONDS:
                del self._live[transfer_id]
                transfer.let_go()

    # -- reading
    # --------------------------------------------------------------------------------------------------------

    def _decode(self, ref: Ref, environment: Environment) -> tuple[IndexRow, int]:
        raw = environment.raw_row(ref.sequence)
        if raw is None:
            raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")
        return row_format.decode(ref, raw)

    def read(self, ref: Ref, offset: int = 0, length: int = 0) -> "CacheReader":
        """Open a part of an object that is in the cache."""
        environment = self._acquire(ref.study_hash, ref.generation)
        try:
            row, number = self._decode(ref, environment)
            if offset < 0 or length < 0 or (offset >= row.length and (offset or row.length)):
                raise RadmeshError("RANGE_INVALID", f"the object has {row.length} bytes")
            end = min(row.length, offset + length) if length else row.length
            residence = self._residence(environment, ref.sequence)
            return CacheReader(self, environment, row, number, offset, end, residence)
        except BaseException:
            self._release(environment)
            raise

    def row(self, ref: Ref) -> IndexRow:
        """Return an index row, of an evicted object too."""
        found = self.rows(ref.study_hash, ref.generation, after=ref.sequence - 1, limit=1)
        if not found or found[0].ref != ref:
            raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")
        return found[0]

    def rows(self, study_hash: str, generation: int, after: int = 0, limit: int = 256) -> list[IndexRow]:
        """Return rows behind `after`, in order."""
        try:
            with self._environment(Ref(study_hash, generation, 0)) as environment:
                raw = environment.raw_rows(after, limit)
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                raise
            kept = self._kept_rows(study_hash, generation)
            raw = [(s, kept[s][0]) for s in sorted(kept) if s > after][:limit]
        return [row_format.decode(Ref(study_hash, generation, s), data)[0] for s, data in raw]

    def _kept_rows(self, study_hash: str, generation: int) -> dict[int, tuple[bytes, bytes]]:
        """Return {sequence: (row, defect)} of an evicted generation; empty if there is none."""
        key = (study_hash, generation)
        with self._lock:
            if key in self._rows_cache:
                self._rows_cache.move_to_end(key)
                return self._rows_cache[key]
        try:
            data = self._rows_path(study_hash, generation).read_bytes()
        except FileNotFoundError:
            return {}
        kept = {}
        at = 0
        while at < len(data):
            sequence = int.from_bytes(data[at : at + 8], "big")
            size, defect = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (8, 12))
            at += 16
            kept[sequence] = (data[at : at + size], data[at + size : at + size + defect])
            at += size + defect
        with self._lock:
            self._rows_cache[key] = kept
            while len(self._rows_cache) > 8:
                self._rows_cache.popitem(last=False)
        return kept

    def studies(self) -> Iterator[StudyState]:
        """Yield every generation."""
        for g in self._catalogue.all():
            registered, last = self._progress.get((g.study_hash, g.number), (g.registered, g.last))
            with self._lock:
                environment = self._open.get((g.study_hash, g.number))
            if environment is not None:
                last = environment.last_sequence
            elif g.state in (states.OPEN, states.SEALED):
                with contextlib.suppress(RadmeshError), self._environment(Ref(g.study_hash, g.number, 0)) as opened:
                    last = opened.last_sequence
            size = g.bytes
            if g.state in (states.OPEN, states.SEALED):
                with contextlib.suppress(OSError):
                    size = self._path(g.study_hash, g.number).stat().st_blocks * 512
            yield StudyState(g.study_hash, g.number, g.study_instance_uid, g.state, registered, last, size)

    # -- what became of objects
    # -----------------------------------------------------------------------------------------

    def unregistered(self) -> list[tuple[str, int, int, int]]:
        """Return what the registration pump has to look at."""
        with self._lock:
            return [(h, g, registered, last) for (h, g), (registered, last) in self._progress.items()]

    def mark_registered(self, study_hash: str, generation: int, sequence: int) -> None:
        """Move the mark forward."""
        with self._lock:
            progress = self._progress.get((study_hash, generation))
            if progress is not None and sequence <= progress[0]:
                return
        last = progress[1] if progress is not None else sequence
        self._catalogue.update(study_hash, generation, registered=sequence, last=last)
        if progress is not None:
            with self._lock:
                progress[0] = max(progress[0], sequence)

    def _residence(self, environment: Environment, sequence: int) -> Residence:
        if self._spool:
            return Residence.SPOOL
        return Residence.CACHE if environment.mark(b"p", sequence) is None else Residence.CACHE_AND_PERMANENT

    def residence(self, ref: Ref) -> Residence:
        """Return where copies of an object are."""
        try:
            with self._environment(ref) as environment:
                if environment.raw_row(ref.sequence) is not None:
                    return self._residence(environment, ref.sequence)
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                raise
            g = self._catalogue.get(ref.study_hash, ref.generation)
            if g is not None and g.state in (states.EVICTING, states.PERMANENT_ONLY, states.LOST):
                return Residence.PERMANENT
        raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")

    def set_permanent(self, refs: list[Ref]) -> None:
        """Remember that objects are in the permanent tier."""
        by_generation: dict[tuple[str, int], dict[int, bytes]] = {}
        for ref in refs:
            by_generation.setdefault((ref.study_hash, ref.generation), {})[ref.sequence] = b""
        for (study_hash, generation), values in by_generation.items():
            with self._environment(Ref(study_hash, generation, 0)) as environment:
                environment.set_marks(b"p", values, WAIT_SECONDS)

    def set_checked(self, ref: Ref, defect: str) -> None:
        """Remember that pixel data was checked."""
        with self._environment(ref) as environment:
            environment.set_marks(b"d", {ref.sequence: defect.encode()[:64]}, WAIT_SECONDS)

    def defect(self, ref: Ref) -> str:
        """Return why pixel data is defective."""
        try:
            with self._environment(ref) as environment:
                return (environment.mark(b"d", ref.sequence) or b"").decode()
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                raise
            return self._kept_rows(ref.study_hash, ref.generation).get(ref.sequence, (b"", b""))[1].decode()

    def unchecked(self, study_hash: str, generation: int) -> list[Ref]:
        """Return objects whose pixel data was not yet checked, in order."""
        return self._unmarked(b"d", study_hash, generation)

    def unsettled(self, study_hash: str, generation: int) -> list[Ref]:
        """Return objects that are not yet in the permanent tier, in order."""
        return self._unmarked(b"p", study_hash, generation)

    def _unmarked(self, kind: bytes, study_hash: str, generation: int) -> list[Ref]:
        with self._environment(Ref(study_hash, generation, 0)) as environment:
            marked = environment.marks(kind)
            return [Ref(study_hash, generation, s) for s in range(1, environment.last_sequence + 1) if s not in marked]

    # -- leaving
    # --------------------------------------------------------------------------------------------------------

    def _hold_alone(self, study_hash: str, generation: int) -> Environment:
        """Return an environment that nobody else uses, marked as evicting.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, STORE_BUSY.
        """
        try:
            environment = self._acquire(study_hash, generation)
        except RadmeshError as error:
            raise RadmeshError("STUDY_NOT_FOUND", "the cache does not have the study") from error
        with self._lock:
            if environment.evicting:
                environment.references -= 1
                raise RadmeshError("STORE_BUSY", "the study is being evicted already")
            environment.evicting = True
            self._live = {k: t for k, t in self._live.items() if not (t.environment is environment and t.let_go())}
            if not self._released.wait_for(lambda: environment.references == 1, 10.0):
                environment.evicting = False
                environment.references -= 1
                raise RadmeshError("STORE_BUSY", "the study is being read or written: try again")
            if self._writable_now.get(study_hash) is environment:
                del self._writable_now[study_hash]
        return environment

    def _give_up(self, environment: Environment) -> None:
        with self._lock:
            environment.evicting = False
            environment.references -= 1

    def evict(self, study_hash: str, generation: int) -> int:
        """Drop a generation's environment; its rows are kept."""
        environment = self._hold_alone(study_hash, generation)
        try:
            permanent, defects = environment.marks(b"p"), environment.marks(b"d")
            registered = self._catalogue.get(study_hash, generation)
            kept, missing = [], 0
            for sequence, raw in environment.raw_rows(0, 1 << 40):
                defect = defects.get(sequence, b"")
                kept.append(
                    sequence.to_bytes(8, "big")
                    + len(raw).to_bytes(4, "big")
                    + len(defect).to_bytes(4, "big")
                    + raw
                    + defect
                )
                missing += sequence not in permanent
            if missing or registered is None or registered.registered < environment.last_sequence:
                raise RadmeshError(
                    "NOT_PERMANENT",
                    f"{missing} objects are not yet in the permanent tier, or not yet registered",
                    metadata={"objects": str(missing)},
                )
            size = environment.size()
            write_atomic(self._rows_path(study_hash, generation), b"".join(kept))
            self._catalogue.update(
                study_hash, generation, state=states.EVICTING, last=environment.last_sequence, bytes=size
            )
        except BaseException:
            self._give_up(environment)
            raise
        self._forget(environment)
        self._finish_eviction(study_hash, generation)
        return size

    def _forget(self, environment: Environment) -> None:
        key = (environment.study_hash, environment.generation)
        with self._lock:
            self._open.pop(key, None)
            self._progress.pop(key, None)
        environment.close()

    def _finish_eviction(self, study_hash: str, generation: int) -> None:
        """From EVICTING on: rename, PERMANENT_ONLY, unlink; can be done again after a crash anywhere between."""
        trash = self._to_trash(study_hash, generation)
        g = self._catalogue.update(study_hash, generation, state=states.PERMANENT_ONLY)
        if g is not None:
            self._catalogue.put(g, mark=False)
        self._pool.submit(trash.unlink, missing_ok=True)

    def _to_trash(self, study_hash: str, generation: int) -> Path:
        path = self._path(study_hash, generation)
        trash = self.root / "trash" / path.name
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
        path.with_name(path.name + "-lock").unlink(missing_ok=True)
        sync_directory(path.parent)
        sync_directory(trash.parent)
        return trash

    def remove_study(self, study_hash: str, generation: int, last: int) -> None:
        """Drop a generation whose objects, up to sequence `last`, are durable and registered elsewhere."""
        environment = self._hold_alone(study_hash, generation)
        if environment.last_sequence != last:
            self._give_up(environment)
            raise RadmeshError("STORE_BUSY", "more of the study has come: look again")
        self._forget(environment)
        self._catalogue.update(study_hash, generation, state=states.REMOVED, registered=last, last=last)
        self._finish_removal(study_hash, generation)

    def _finish_removal(self, study_hash: str, generation: int) -> None:
        trash = self._to_trash(study_hash, generation)
        g = self._catalogue.get(study_hash, generation)
        if g is not None:
            self._catalogue.put(g, mark=False)
        self._pool.submit(trash.unlink, missing_ok=True)

    def on_commit(self, callback: Callable[[Ref], None]) -> None:
        """Call `callback` after each commit."""
        self._callbacks.append(callback)

    def close(self) -> None:
        """Finish what was begun, and let go."""
        self._pool.shutdown(wait=True)
        with self._lock:
            for environment in self._open.values():
                environment.close()
            self._open.clear()
            self._writable_now.clear()
        self._catalogue.close()
        os.close(self._lock_file)


class LmdbTransfer:
    """A large object on its way in."""

    def __init__(
        self,
        store: LmdbStudyStore,
        environment: Environment,
        transfer_id: bytes,
        header: ObjectHeader,
        number: int,
        offset: int,
        stored: Stored | None,
    ) -> None:
        self.transfer_id = transfer_id
        self.stored = stored
        self.environment = environment
        self._store = store
        self._header = header
        self._what = row_format.encode_header(header)
        self._number = number
        self._received = offset
        self._acknowledged = offset
        self._operations: list[tuple[int, Operation]] = []
        self._replaced = False
        self._held = True
        self.active_at = store._clock.monotonic()  # noqa: SLF001 - the store's own class
        if stored is not None:
            self.let_go()

    def let_go(self) -> bool:
        """Release the environment; the transfer cannot be used any more."""
        if self._held:
            self._held = False
            self._store._release(self.environment)  # noqa: SLF001
        self._replaced = True
        return True

    def replace(self) -> None:
        """A newer stream takes the transfer over: what is queued is finished first."""
        self._replaced = True
        with contextlib.suppress(RadmeshError):
            for _, operation in self._operations:
                operation.wait(WAIT_SECONDS)
        self.let_go()

    def _check(self) -> None:
        if self._replaced:
            raise RadmeshError("STREAM_REPLACED", "the transfer was taken over, or was idle for too long")
        self.active_at = self._store._clock.monotonic()  # noqa: SLF001

    @property
    def acknowledged_offset(self) -> int:
        """Bytes that are durable."""
        while self._operations and self._operations[0][1].finished:
            end, operation = self._operations[0]
            if operation.error is not None:
                return self._acknowledged
            self._acknowledged = end
            del self._operations[0]
        return self._acknowledged

    def write(self, offset: int, data: Buffer) -> None:
        """Take the next bytes."""
        self._check()
        if offset != self._received:
            raise RadmeshError("OFFSET_UNEXPECTED", f"the transfer has {self._received} bytes: go on there")
        size = len(data)
        if size > CHUNK_MAX:
            raise RadmeshError("CHUNK_TOO_LARGE", f"at most {CHUNK_MAX} bytes at once")
        if not size:
            return
        self._raise_failed()
        self._store._check_room(size)  # noqa: SLF001
        self._store._budget.take(size, WAIT_SECONDS)  # noqa: SLF001
        environment, number, what, transfer_id = self.environment, self._number, self._what, self.transfer_id
        operation = Operation(
            lambda transaction: environment.write_record(transaction, transfer_id, number, offset, data, what), size
        )
        self._operations.append((offset + size, operation))
        self._received += size
        environment.committer.submit(operation)

    def _raise_failed(self) -> None:
        for _, operation in self._operations:
            if operation.finished and operation.error is not None:
                self._end()
                raise operation.error

    def wait(self, offset: int, seconds: float) -> None:
        """Wait until the bytes before `offset` are durable."""
        for end, operation in list(self._operations):
            operation.wait(seconds)
            if end >= offset:
                break

    def commit(self, length: int, sha256: bytes, *, queryable: bytes, remarks: tuple[str, ...]) -> Stored:
        """Make the object visible."""
        self._check()
        if length != self._received:
            raise RadmeshError("DIGEST_MISMATCH", f"the transfer has {self._received} bytes, its commit says {length}")
        self._raise_failed()
        environment = self.environment
        operation = Operation(
            lambda transaction: environment.finish(
                transaction,
                transfer_id=self.transfer_id,
                number=self._number,
                header=self._header,
                length=length,
                sha256=sha256,
                queryable=queryable,
                remarks=remarks,
                now=self._store._clock.now(),  # noqa: SLF001
                data=None,
            ),
            0,
        )
        # Operations run in order; one before that failed has sealed the environment, and this one fails with it.
        stored: Stored = environment.committer.run(operation, WAIT_SECONDS)
        self.stored = stored
        self._store.bytes_committed += length
        self._end()
        return stored

    def abort(self) -> None:
        """Drop what was received."""
        if self._replaced:
            return
        number, transfer_id = self._number, self.transfer_id

        def apply(transaction: Any) -> None:
            drop_records(transaction, number)
            transaction.delete(b"q" + transfer_id)

        try:
            self.environment.committer.run(Operation(apply, 0), WAIT_SECONDS)
        finally:
            self._end()

    def _end(self) -> None:
        with self._store._lock:  # noqa: SLF001
            if self._store._live.get(self.transfer_id) is self:  # noqa: SLF001
                del self._store._live[self.transfer_id]  # noqa: SLF001
        self.let_go()


class CacheReader:
    """A part of an object in the cache, opened."""

    def __init__(
        self,
        store: LmdbStudyStore,
        environment: Environment,
        row: IndexRow,
        number: int,
        offset: int,
        end: int,
        residence: Residence,
    ) -> None:
        self.size = row.length
        self.sha256 = row.sha256
        self.residence = int(residence)
        self._store = store
        self._environment: Environment | None = environment
        self._number = number
        self._offset = offset
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the environment go."""
        environment, self._environment = self._environment, None
        if environment is not None:
            self._store._release(environment)  # noqa: SLF001

    def __iter__(self) -> Iterator[bytes]:
        if self._environment is None:
            raise RadmeshError("OBJECT_NOT_FOUND", "the reader is closed")
        yield from self._environment.records(self._number, self._offset, self._end)
