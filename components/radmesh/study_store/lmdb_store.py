"""The StudyStore on LMDB.

    root/LOCK                          held by the one process that has the store open
    root/catalogue/                    which generations of which studies there are
    root/studies/<2 hex>/<hash>.<gen>  a generation's environment
    root/rows/<2 hex>/<hash>.<gen>     what is kept of an evicted generation
    root/trash/                        environments on their way out

Order of writes for the first object of a generation: the catalogue's row, the environment's file, its directory entry;
only then may an object be acknowledged. A file gets its name when it is whole, so that one that cannot be opened is
damaged, not new. Recovery adopts a file without a row and never unlinks one.

Locks, in the order in which they are taken: a study's (opening and leaving of its generations), the store's own (which
environments are open, by whom), the catalogue's transaction. No commit of objects is made under any of them.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import resource
import secrets
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import lmdb

from radmesh.dicom.uids import study_hash as hash_of
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory
from radmesh.study_store import catalogue as states
from radmesh.study_store import rows as row_format
from radmesh.study_store.catalogue import Catalogue, Generation
from radmesh.study_store.checks import check_begin, check_commit
from radmesh.study_store.committer import Budget, Operation
from radmesh.study_store.damage import Alarms, Damage
from radmesh.study_store.environment import RESUME_SECONDS, Content, Environment
from radmesh.study_store.reader import CacheReader
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
from radmesh.study_store.transfer import WAIT_SECONDS, LmdbTransfer

UNCOMMITTED_MAX: Final = 64 * 1024 * 1024
OPEN_MAX: Final = 512
# Data file twice (LMDB writes its meta pages through another descriptor), lock file.
FILES_EACH: Final = 3
FILES_ELSE: Final = 512
IDLE_SECONDS: Final = 60.0
# How long an eviction waits for readers, and who comes meanwhile for the eviction.
EVICT_SECONDS = 1.0
# Pages that an object takes beside its own bytes, about.
OVERHEAD: Final = 16_384
_FREE_EVERY: Final = 0.2
_SWEEP_EVERY: Final = 60.0

# Of a generation: the study's hash, and its number.
_FILE_NAME: Final = re.compile(r"([0-9a-f]{32})\.([1-9]\d{0,8})")

Key = tuple[str, int]


def _nobody(*_told: str) -> None:
    return


class LmdbStudyStore:
    """A store under `root`.

    Args:
        root: made if missing; must be a local file system (LMDB).
        store_id: such as "archive-0".
        clock: for receive times.
        reserve: bytes of the file system that are left free; below, nothing new is taken. None: 2 %, at least 1 GiB.
        spool: objects here are on their way to an archive.
        alarm: told (reason, message) of what somebody should look at.
        clear: told the reason of what is over.
        sync: False only in tests that show what the disk's sync is for.

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
        alarm: Callable[[str, str], None] = _nobody,
        clear: Callable[[str], None] = _nobody,
        sync: bool = True,
    ) -> None:
        self.root = root
        self.store_id = store_id
        self.epoch = secrets.token_bytes(16)
        self.clock = clock
        self._reserve = reserve
        self._spool = spool
        self._alarms = Alarms(alarm, clear)
        self._sync = sync
        self._budget = Budget(UNCOMMITTED_MAX)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="commit")
        # What takes long and can wait: unlinking, hashing again, sweeping.
        self._background = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._open_max = _open_max()
        self._lock = threading.RLock()
        # Notified when an environment has one reference less, or is no longer being evicted.
        self._changed = threading.Condition(self._lock)
        self._study_locks = [threading.Lock() for _ in range(256)]
        self.closing = False
        self._open: OrderedDict[Key, Environment] = OrderedDict()
        self._making: set[Key] = set()
        self._writable_now: dict[str, Environment] = {}
        # Sealed in this process: also if the catalogue could not be told.
        self._sealed: set[Key] = set()
        # Sealed, and not hashed again yet, or it could not be; of these nobody has looked yet.
        self._suspect: set[Key] = set()
        self._hashing: set[Key] = set()
        # Folders of which this process knows that their names are durable.
        self._folders: set[Path] = set()
        # [registered sequence, last sequence] of what has changed since it was opened, or is not all registered.
        self._progress: dict[Key, list[int]] = {}
        # What has records of transfers that did not end.
        self._unfinished: set[Key] = set()
        self._live: dict[bytes, LmdbTransfer] = {}
        self._callbacks: list[Callable[[Ref], None]] = []
        self._free_at, self._free = -1.0, 0
        self._swept_at = clock.monotonic()
        self.on_commit_seconds: Callable[[float], None] = lambda _seconds: None
        self.on_stored: Callable[[Outcome, int], None] = lambda _outcome, _size: None
        self.objects_committed = 0
        self.bytes_committed = 0
        self._lock_file = self._take_folder()
        try:
            self._catalogue = Catalogue(root / "catalogue")
            self.damage = Damage(self, self._catalogue, self._alarms, self._background)
            self._recover()
            self._catalogue.started()
        except BaseException:
            os.close(self._lock_file)
            raise

    # -- start ---------------------------------------------------------------------------------------------------------

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
        sync_directory(self.root)
        sync_directory(self.root.parent)
        return descriptor

    def _recover(self) -> None:
        """Make files and catalogue agree; nothing that was acknowledged is touched."""
        if self._catalogue.replaced:
            text = "the store's catalogue could not be opened: a new one was made of the files (till the next start)"
            self._alarms.begin("CATALOGUE_REPLACED", "", text)
        for left in (self.root / "trash").iterdir():
            self._unlink(left)
        studies, rows = self._files("studies"), self._files("rows")
        known = set()
        for g in self._catalogue.all():
            key = (g.study_hash, g.number)
            known.add(key)
            if g.state in (states.EVICTING, states.REMOVED):
                self._go_on_leaving(g, present=key in studies)
            elif g.state in states.IN_CACHE and key not in studies and g.registered:
                self._lose(key, "is gone")
            elif g.state == states.LOST and key in studies:
                self._find_again(g)
            elif g.state == states.SEALED and key in studies:
                # The process that sealed it may have ended before it had looked.
                self._hash_again(key)
            # OPEN, without a file, and nothing was ever registered: it had not been made yet.
        for key in studies - known:
            self._adopt(key, states.OPEN)
        for key in rows - known - studies:
            self._adopt(key, states.PERMANENT_ONLY)
        for key in self._catalogue.marked():
            self._look_into(key)
        if self.damage:
            for ref in self.damage.refs():
                self.take_no_more(ref.study_hash, ref.generation)
            # A file that was put back, or a bit that had fallen over in memory: it may be over.
            self._background.submit(self.damage.hash_again)

    def _files(self, kind: str) -> set[Key]:
        found = set()
        for folder in filter(Path.is_dir, (self.root / kind).iterdir()):
            for path in folder.iterdir():
                named = _FILE_NAME.fullmatch(path.name)
                if named:
                    found.add((named[1], int(named[2])))
                elif path.name.endswith((".new", ".new-lock")):
                    # It did not get its name: nothing in it was acknowledged.
                    path.unlink()
        return found

    def _find_again(self, g: Generation) -> None:
        """Take a generation back whose file was put back, or can be opened now; nothing is stored in it any more."""
        key = (g.study_hash, g.number)
        with (
            contextlib.suppress(lmdb.Error, OSError, ValueError),
            contextlib.closing(self._make_environment(self._path(*key), *key)) as environment,
        ):
            uid = environment.study_instance_uid()
            self._catalogue.add(replace(g, study_instance_uid=uid, state=states.SEALED, registered=0), mark=True)
            self._hash_again(key)

    def _hash_again(self, key: Key) -> None:
        self._suspect.add(key)
        self._hashing.add(key)
        self.take_no_more(*key)
        with contextlib.suppress(RuntimeError):  # the store is being closed
            self._background.submit(self._verify, *key)

    def _go_on_leaving(self, g: Generation, *, present: bool) -> None:
        """Finish what a crash has cut short; not if more is in the file than was to go, or its rows were not saved."""
        key = (g.study_hash, g.number)
        stays = present and g.state == states.EVICTING and not self._rows_path(*key).exists()
        if present and not stays:
            with (
                contextlib.suppress(lmdb.Error, OSError),
                contextlib.closing(self._make_environment(self._path(*key), *key)) as environment,
            ):
                stays = environment.last_sequence > g.last
        if stays:
            self._catalogue.update(*key, state=states.SEALED)
            self._catalogue.mark(*key)
        elif g.state == states.EVICTING:
            self._finish_eviction(*key)
        else:
            self._finish_removal(*key)

    def _adopt(self, key: Key, state: str) -> None:
        """Take a file that the catalogue does not know: what is in the cache is registered again."""
        evicted = state == states.PERMANENT_ONLY
        path = (self._rows_path if evicted else self._path)(*key)
        # The name may be there only because its process was killed, not because it is durable.
        self._sync_name(path)
        try:
            with contextlib.closing(self._make_environment(path, *key, rows_only=evicted)) as environment:
                uid, last = environment.study_instance_uid(), environment.last_sequence
        except (lmdb.Error, OSError, ValueError):
            self._catalogue.add(Generation(*key, "", states.LOST), mark=False)
            text = "a file in the cache cannot be opened: it is left as it is (till the next start)"
            self._alarms.begin("CACHE_COPY_LOST", key, text)
            return
        registered = last if evicted else 0
        self._catalogue.add(Generation(*key, uid, state, registered, last if evicted else 0), mark=not evicted)

    def _look_into(self, key: Key) -> None:
        """Find what a generation still has to register, and drop transfers that nobody will resume."""
        g = self._catalogue.get(*key)
        if g is None or g.state not in states.IN_CACHE or not self._path(*key).exists():
            return
        try:
            with self.environment(Ref(*key, 0)) as environment:
                # What was being committed when the process was killed is answered from now on: now it must be on disk.
                try:
                    environment.sync()
                except lmdb.Error:
                    self._seal(environment)
                # Where that cannot be done, as on a full disk, it is later.
                with contextlib.suppress(RadmeshError):
                    environment.drop_stale_transfers(self.clock.now(), (), WAIT_SECONDS)
                last, unfinished = environment.last_sequence, environment.unfinished()
        except RadmeshError as error:
            if error.reason != "OBJECT_CORRUPT":
                raise
            self._lose(key, "cannot be opened")
            return
        if unfinished:
            self._unfinished.add(key)
        if last > g.registered:
            self._progress[key] = [g.registered, last]
        elif not unfinished:
            self._catalogue.unmark([key])

    def _lose(self, key: Key, what: str) -> None:
        self._catalogue.update(*key, unmark=True, state=states.LOST)
        text = f"a study's cache file {what}: the permanent tier serves it (till the next start)"
        self._alarms.begin("CACHE_COPY_LOST", key, text)

    # -- environments --------------------------------------------------------------------------------------------------

    def _path(self, study_hash: str, number: int) -> Path:
        return self.root / "studies" / study_hash[:2] / f"{study_hash}.{number}"

    def _rows_path(self, study_hash: str, number: int) -> Path:
        return self.root / "rows" / study_hash[:2] / f"{study_hash}.{number}"

    def _sync_name(self, path: Path) -> None:
        """Make the name of a study's file durable, and that of its folder."""
        sync_directory(path.parent)
        if path.parent not in self._folders:
            sync_directory(path.parent.parent)
            self._folders.add(path.parent)

    def _make_environment(
        self, path: Path, study_hash: str, number: int, *, create: bool = False, rows_only: bool = False
    ) -> Environment:
        return Environment(
            path,
            study_hash,
            number,
            commit=self._commit,
            after=self._after,
            pool=self._pool,
            damaged=lambda sequence: Ref(study_hash, number, sequence) in self.damage,
            create=create,
            rows_only=rows_only,
            sync=self._sync,
        )

    @contextlib.contextmanager
    def environment(self, ref: Ref) -> Iterator[Environment]:
        """An open environment, kept open meanwhile.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, OBJECT_CORRUPT, STORE_BUSY.
        """
        environment = self._acquire(ref.study_hash, ref.generation)
        try:
            yield environment
        except lmdb.ReadersFullError as error:
            raise RadmeshError("STORE_BUSY", "too many readers of one study: try again") from error
        except (lmdb.Error, ValueError, struct.error) as error:
            raise RadmeshError("OBJECT_CORRUPT", "the study's cache file cannot be read") from error
        finally:
            self._release(environment)

    def _acquire(self, study_hash: str, number: int) -> Environment:
        """Return an open environment, kept open until it is released.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND: there is nothing of it; OBJECT_CORRUPT, STORE_BUSY.
        """
        key = (study_hash, number)
        with self._lock:
            while (environment := self._open.get(key)) is not None and environment.evicting:
                if not self._changed.wait(WAIT_SECONDS):
                    raise RadmeshError("STORE_BUSY", "the study is being evicted: try again")
            if environment is None:
                g = None if key in self._making else self._catalogue.get(study_hash, number)
                if g is None or g.state not in states.IN_CACHE + states.ROWS_ONLY or self.closing:
                    raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")
                environment = self._open[key] = self._open_file(g)
            self._open.move_to_end(key)
            environment.references += 1
            self._close_some()
            return environment

    def _open_file(self, g: Generation) -> Environment:
        rows_only = g.state in states.ROWS_ONLY
        path = (self._rows_path if rows_only else self._path)(g.study_hash, g.number)
        try:
            environment = self._make_environment(path, g.study_hash, g.number, rows_only=rows_only)
        except FileNotFoundError as error:
            raise RadmeshError("OBJECT_NOT_FOUND", "the study's cache file is gone") from error
        except OSError as error:
            raise self._failure(error) from error
        except lmdb.Error as error:
            raise RadmeshError("OBJECT_CORRUPT", "the study's cache file cannot be opened") from error
        environment.sealed = g.state != states.OPEN or (g.study_hash, g.number) in self._sealed
        return environment

    def _release(self, environment: Environment) -> None:
        with self._lock:
            environment.references -= 1
            self._changed.notify_all()

    def _close_some(self) -> None:
        """Close the environments used longest ago, if too many are open; called under the lock."""
        if len(self._open) <= self._open_max:
            return
        settled = []
        for key, environment in list(self._open.items()):
            if len(self._open) <= self._open_max * 3 // 4:
                break
            if environment.references or environment.evicting or not environment.committer.idle:
                continue
            if self._writable_now.get(key[0]) is environment:
                del self._writable_now[key[0]]
            registered, last = self._progress.get(key, (0, 0))
            if registered >= last and key not in self._unfinished and self._progress.pop(key, None) is not None:
                settled.append(key)
            del self._open[key]
            environment.close()
        if settled:
            # A mark that stays costs a look at the next start, no more.
            with contextlib.suppress(RadmeshError):
                self._catalogue.unmark(settled)
        if len(self._open) > self._open_max:
            # Held by transfers whose streams were cut: they are resumed from the disk.
            self._forget_transfers(IDLE_SECONDS)

    # -- generations that take objects ---------------------------------------------------------------------------------

    def _writable(self, study_hash: str, study_instance_uid: str) -> Environment:
        """Return the environment that takes a study's objects now, kept open; makes the next generation if needed."""
        environment = self._current(study_hash)
        if environment is None:
            with self._study_locks[int(study_hash[:2], 16)]:
                environment = self._current(study_hash) or self._open_writable(study_hash, study_instance_uid)
        return environment

    def _current(self, study_hash: str) -> Environment | None:
        with self._lock:
            if self.closing:
                raise RadmeshError("DRAINING", "the store is being closed")
            environment = self._writable_now.get(study_hash)
            if environment is None or environment.sealed or environment.evicting:
                return None
            environment.references += 1
            self._open.move_to_end((study_hash, environment.generation))
            return environment

    def _open_writable(self, study_hash: str, study_instance_uid: str) -> Environment:
        """Open the study's last generation, or make the next; called under the study's lock."""
        generations = self._catalogue.generations(study_hash)
        environment = self._reopen(generations[-1]) if generations else None
        if environment is None:
            number = self._catalogue.next_number(study_hash)
            self._catalogue.add(Generation(study_hash, number, study_instance_uid), mark=True)
            environment = self._make_file(study_hash, number, study_instance_uid)
        environment.earlier = tuple(
            g.number
            for g in generations
            if g.number < environment.generation and g.state not in (states.LOST, states.REMOVED)
        )
        with self._lock:
            self._writable_now[study_hash] = environment
        return environment

    def _reopen(self, g: Generation) -> Environment | None:
        """Open a generation for more objects; None if it takes no more."""
        key = (g.study_hash, g.number)
        if g.state != states.OPEN or key in self._sealed:
            return None
        try:
            environment = self._acquire(*key)
        except RadmeshError as error:
            if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                raise
            if error.reason == "OBJECT_NOT_FOUND" and not g.registered and key not in self._progress:
                # Its row was written, and then the file was not.
                return self._make_file(*key, g.study_instance_uid)
            self._lose(key, "is gone" if error.reason == "OBJECT_NOT_FOUND" else "cannot be opened")
            return None
        try:
            if not environment.last_sequence:
                # Its name may be there only because the process that made it was killed, not because it is durable.
                self._sync_name(environment.path)
            if key not in self._progress:
                # Before the first acknowledgement: rows may come that a later start has to look for.
                self._catalogue.mark(*key)
                with self._lock:
                    self._progress[key] = [g.registered, environment.last_sequence]
        except BaseException as error:
            self._release(environment)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        return environment

    def _make_file(self, study_hash: str, number: int, study_instance_uid: str) -> Environment:
        """Make a generation's file, under its name only when it is whole; durable, name and all, when it returns."""
        key = (study_hash, number)
        path = self._path(*key)
        new = path.with_name(path.name + ".new")
        with self._lock:
            self._making.add(key)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            for left in (new, new.with_name(new.name + "-lock")):
                left.unlink(missing_ok=True)
            environment = self._make_environment(new, *key, create=True)
            try:
                with environment.lmdb.begin(write=True) as transaction:
                    transaction.put(b"m", study_instance_uid.encode())
                new.with_name(new.name + "-lock").rename(path.with_name(path.name + "-lock"))
                new.rename(path)
                self._sync_name(path)
            except BaseException:
                environment.close()
                raise
            environment.path = path
            with self._lock:
                environment.references = 1
                self._open[key] = environment
                self._progress[key] = [0, 0]
                self._close_some()
        except (lmdb.Error, OSError) as error:
            raise self._failure(error) from error
        finally:
            with self._lock:
                self._making.discard(key)
        return environment

    # -- committing ----------------------------------------------------------------------------------------------------

    def _failure(self, error: BaseException) -> RadmeshError:
        self._free_at = -1.0
        if "No space left" in str(error) or self._measure_free() <= 0:
            return RadmeshError("STORAGE_FULL", "the store's file system is full")
        return RadmeshError("COMMIT_FAILED", f"the store's file system failed: {type(error).__name__}")

    def _commit(self, environment: Environment, batch: list[Operation]) -> None:
        """Run a batch in one durable transaction. After any failure the environment takes no more objects."""
        if environment.sealed:
            for operation in batch:
                operation.error = self._refusal(environment, operation)
            batch = [operation for operation in batch if operation.error is None]
            if not batch:
                return
        start = time.perf_counter()
        environment.begin_batch()
        try:
            with environment.lmdb.begin(write=True) as transaction:
                for operation in batch:
                    operation.run(transaction)
        except Exception as error:
            self._seal(environment)
            raise self._failure(error) from error
        environment.end_batch()
        self.on_commit_seconds(time.perf_counter() - start)

    def _seal(self, environment: Environment) -> None:
        key = (environment.study_hash, environment.generation)
        # On a full disk this fails too; a later start then finds it open, and whole.
        with contextlib.suppress(RadmeshError):
            self._catalogue.update(*key, state=states.SEALED)
        text = "a commit failed: the study's environment is sealed, later objects go to the next"
        self._alarms.begin("COMMIT_FAILED", key, text)
        self._hash_again(key)

    def _verify(self, study_hash: str, number: int) -> None:
        """Hash again what a sealed environment has committed: from the disk, not from what is in memory."""
        key = (study_hash, number)
        with self._lock:
            environment = self._open.get(key)
            self._forget_transfers(0.0, environment)
            if environment is not None and self._changed.wait_for(lambda: not environment.references, WAIT_SECONDS):
                self._open.pop(key, None)
                environment.close()
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path(*key), os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        after = 0
        try:
            while page := self.rows(study_hash, number, after=after):
                for row in page:
                    if self.closing:
                        return  # the next start looks again
                    if not self.intact(row):
                        self.damage.note(row.ref)
                after = page[-1].ref.sequence
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                text = "a sealed environment cannot be hashed again as a whole: what is read of it may be damaged"
                self._alarms.begin("OBJECT_CORRUPT", key, text)
        else:
            self._suspect.discard(key)
        self._hashing.discard(key)
        self.damage.review()
        self._settle_failures()

    def _settle_failures(self) -> None:
        """A failed commit is over when what had been committed was hashed again, and the disk takes writes."""
        failed = [key for key in self._alarms.about("COMMIT_FAILED") if key not in self._hashing]
        if failed:
            with contextlib.suppress(RadmeshError):
                self._catalogue.probe()
                for key in failed:
                    self._alarms.end("COMMIT_FAILED", key)

    def _refusal(self, environment: Environment, operation: Operation) -> RadmeshError | None:
        """Return why a sealed environment does not take an operation; None: it does."""
        if not operation.mark:
            return RadmeshError("COMMIT_FAILED", "an earlier commit of the study failed: send the object again")
        if (environment.study_hash, environment.generation) in self._hashing:
            return RadmeshError("STORE_BUSY", "what the study has is hashed again after a failed commit: try again")
        return None

    def intact(self, row: IndexRow) -> bool:
        """Whether what is read of an object has the digest that it was committed with.

        Raises:
            RadmeshError: it cannot be said now.
        """
        digest = hashlib.sha256()
        try:
            with self._open_reader(row.ref, 0, 0) as reader:
                for piece in reader:
                    digest.update(piece)
        except RadmeshError as error:
            if error.reason != "OBJECT_CORRUPT":
                raise
            return False
        return digest.digest() == row.sha256

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
        for result in stored:
            for callback in self._callbacks:
                try:
                    callback(result.ref)
                except Exception as error:  # noqa: BLE001 - a listener that fails does not undo what is durable
                    text = f"a listener of the store failed with {type(error).__name__}"
                    self._alarms.begin("LISTENER_FAILED", callback, text)
                else:
                    self._alarms.end("LISTENER_FAILED", callback)
        if self.damage:
            self.damage.review_soon()

    # -- room ----------------------------------------------------------------------------------------------------------

    def _measure_free(self) -> int:
        now = self.clock.monotonic()
        if self._free_at < 0 or not 0 <= now - self._free_at < _FREE_EVERY:
            figures = os.statvfs(self.root)
            total = figures.f_blocks * figures.f_frsize
            reserve = self._reserve if self._reserve is not None else max(1 << 30, total // 50)
            self._free = figures.f_bavail * figures.f_frsize - reserve
            self._free_at = now
        return self._free

    def free_bytes(self) -> int:
        """Room above the reserve."""
        self._sweep_now_and_then()
        return max(0, self._measure_free() - self._budget.used)

    @property
    def accepting(self) -> bool:
        """Whether there is room above the reserve."""
        return self.free_bytes() > 0

    def _check_room(self, size: int) -> None:
        size += OVERHEAD
        if self._measure_free() - self._budget.used < size:
            self._free_at = -1.0  # what was measured may be of before an eviction
            if self._measure_free() - self._budget.used < size:
                raise RadmeshError("STORAGE_FULL", "no room above the reserve of the store's file system")
        # Until it is measured again: a fast sender must not eat up the reserve.
        self._free -= size

    def take_room(self, size: int) -> None:
        """Take room on the disk and among what is uncommitted; the commit gives the latter back.

        Raises:
            RadmeshError: STORAGE_FULL, STORE_BUSY.
        """
        self._check_room(size)
        self._budget.take(size, WAIT_SECONDS)

    # -- storing -------------------------------------------------------------------------------------------------------

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
        check_begin(transfer_id, header)
        check_commit(sha256, queryable, remarks)
        size = len(data)
        if size > CHUNK_MAX:
            raise RadmeshError("CHUNK_TOO_LARGE", f"at most {CHUNK_MAX} bytes at once")
        self._check_room(size)
        content = Content(transfer_id, header, size, sha256)
        environment = self._writable(hash_of(header.study_instance_uid), header.study_instance_uid)
        try:
            known = self.find_earlier(environment, content)
            if isinstance(known, Stored):
                self.count(known, size)
                return known
            self._budget.take(size, WAIT_SECONDS)
            stored: Stored = environment.committer.run(
                Operation(
                    lambda transaction: environment.finish(
                        transaction,
                        content,
                        number=environment.new_object(),
                        queryable=queryable,
                        remarks=tuple(remarks),
                        now=self.clock.now(),
                        data=data,
                        variant=known,
                    ),
                    size,
                ),
                WAIT_SECONDS,
            )
        finally:
            self._release(environment)
        self.count(stored, size)
        return stored

    def count(self, stored: Stored, size: int) -> None:
        """An object of so many bytes was answered."""
        if stored.outcome is not Outcome.ALREADY:
            with self._lock:
                self.objects_committed += 1
                self.bytes_committed += size
        self.on_stored(stored.outcome, size)

    def find_earlier(self, environment: Environment, content: Content) -> Stored | bool:
        """Return what an earlier generation has of a content; else whether one has other content of the instance.

        Raises:
            RadmeshError: TRANSFER_INVALID.
        """
        variant = False
        for number in environment.earlier:
            try:
                with self.environment(Ref(environment.study_hash, number, 0)) as earlier:
                    found = earlier.find(content)
                if found is None:
                    continue
                sequence, outcome = found
                ref = Ref(environment.study_hash, number, sequence)
                if sequence and ((ref.study_hash, number) not in self._suspect or self.intact(self.row(ref))):
                    return Stored(ref, outcome)
                variant = variant or not sequence
            except RadmeshError as error:
                if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                    raise
        return variant

    def begin(self, transfer_id: bytes, header: ObjectHeader) -> LmdbTransfer:
        """Begin a transfer, or go on with it."""
        check_begin(transfer_id, header)
        self._check_room(0)
        self._sweep_now_and_then()
        with self._lock:
            older = self._live.pop(transfer_id, None)
        if older is not None:
            older.replace()
        environment = self._writable(hash_of(header.study_instance_uid), header.study_instance_uid)
        try:
            transfer = self._transfer(environment, transfer_id, header)
        except BaseException:
            self._release(environment)
            raise
        if transfer.stored is not None:
            transfer.let_go()
            return transfer
        with self._lock:
            # Two that begin at the same moment: the later one has it.
            older, self._live[transfer_id] = self._live.get(transfer_id), transfer
        if older is not None:
            older.let_go()
        return transfer

    def _transfer(self, environment: Environment, transfer_id: bytes, header: ObjectHeader) -> LmdbTransfer:
        stored = self._committed(environment, transfer_id, header)
        pending = None if stored is not None else environment.pending(transfer_id, self.clock.now())
        if pending is not None and pending[2] != row_format.encode_header(header):
            raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
        number, offset = pending[:2] if pending else (environment.new_object(), 0)
        transfer = LmdbTransfer(
            self, environment, transfer_id, header, number=number, offset=offset, release=self._release
        )
        transfer.stored = stored
        return transfer

    def _committed(self, environment: Environment, transfer_id: bytes, header: ObjectHeader) -> Stored | None:
        """Return what a transfer was committed as, in whichever generation."""
        for number in (environment.generation, *environment.earlier):
            try:
                with self.environment(Ref(environment.study_hash, number, 0)) as one:
                    sequence = one.committed(transfer_id, header)
            except RadmeshError as error:
                if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                    raise
                continue
            if sequence:
                return Stored(Ref(environment.study_hash, number, sequence), Outcome.STORED)
        return None

    def end_transfer(self, transfer: LmdbTransfer) -> None:
        """A transfer was committed, aborted, or has failed."""
        with self._lock:
            if self._live.get(transfer.transfer_id) is transfer:
                del self._live[transfer.transfer_id]
        transfer.let_go()

    def note_unfinished(self, environment: Environment) -> None:
        """Records of an unfinished transfer are about to be written."""
        self._unfinished.add((environment.study_hash, environment.generation))

    def _forget_transfers(self, seconds: float, environment: Environment | None = None) -> None:
        """Let go of transfers (of one environment) that were idle for so long; called under the lock."""
        now = self.clock.monotonic()
        for transfer_id, transfer in list(self._live.items()):
            if now - transfer.active_at >= seconds and environment in (None, transfer.environment):
                del self._live[transfer_id]
                transfer.let_go()

    def _sweep_now_and_then(self) -> None:
        now = self.clock.monotonic()
        if now - self._swept_at >= _SWEEP_EVERY and not self.closing:
            self._swept_at = now
            with contextlib.suppress(RuntimeError):  # the store is being closed
                self._background.submit(self._sweep)

    def _sweep(self) -> None:
        """Remove what is left of transfers that nobody has gone on with."""
        with self._lock:
            self._forget_transfers(RESUME_SECONDS)
            alive = set(self._live)
            keys = set(self._unfinished)
        self._settle_failures()
        for key in keys:
            with contextlib.suppress(RadmeshError), self.environment(Ref(*key, 0)) as environment:
                if not environment.sealed:
                    environment.drop_stale_transfers(self.clock.now(), alive, WAIT_SECONDS)
                with self._lock:
                    used = any(transfer.environment is environment for transfer in self._live.values())
                    if environment.sealed or not (used or environment.unfinished()):
                        self._unfinished.discard(key)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, ref: Ref, offset: int = 0, length: int = 0) -> CacheReader:
        """Open a part of an object that is in the cache."""
        ref = self.damage.current(ref)
        if ref in self.damage:
            raise RadmeshError("OBJECT_CORRUPT", "the object is damaged in the cache: the permanent tier has it")
        return self._open_reader(ref, offset, length)

    def _open_reader(self, ref: Ref, offset: int, length: int) -> CacheReader:
        with self.environment(ref) as environment:
            if environment.rows_only:
                raise RadmeshError("OBJECT_NOT_FOUND", "the object is not in the cache")
            row, number = _decode(environment, ref)
            if offset < 0 or length < 0 or (offset >= row.length and (offset or row.length)):
                raise RadmeshError("RANGE_INVALID", f"the object has {row.length} bytes")
            end = min(row.length, offset + length) if length else row.length
            residence = self._residence(environment, ref.sequence)
            with self._lock:
                environment.references += 1
            return CacheReader(environment, self._release, row, residence, number=number, offset=offset, end=end)

    def row(self, ref: Ref) -> IndexRow:
        """Return an index row, of an evicted object too."""
        with self.environment(ref) as environment:
            return _decode(environment, ref)[0]

    def rows(self, study_hash: str, generation: int, after: int = 0, limit: int = 256) -> list[IndexRow]:
        """Return rows behind `after`, in order."""
        try:
            with self.environment(Ref(study_hash, generation, 0)) as environment:
                return self._rows(environment, after, limit)
        except RadmeshError as error:
            if error.reason != "OBJECT_NOT_FOUND":
                raise
            return []

    def _rows(self, environment: Environment, after: int, limit: int) -> list[IndexRow]:
        """Return rows, as far as they can be read: of an object whose row is damaged nothing can be told."""
        found: list[IndexRow] = []
        while page := environment.raw_rows(after, limit - len(found)):
            for sequence, raw in page:
                ref = Ref(environment.study_hash, environment.generation, sequence)
                try:
                    found.append(row_format.decode(ref, raw)[0])
                except row_format.DamagedError:
                    self.damage.question(ref)
            after = page[-1][0]
        return found

    def studies(self, after: Key = ("", 0)) -> Iterator[StudyState]:
        """Yield every generation behind `after`."""
        return map(self._state, self._catalogue.all(after))

    def generations(self, study_hash: str) -> list[StudyState]:
        """Return every generation of one study."""
        return [self._state(g) for g in self._catalogue.generations(study_hash)]

    def _state(self, g: Generation) -> StudyState:
        key = (g.study_hash, g.number)
        with self._lock:
            # What is not there has been registered as a whole.
            registered, last = self._progress.get(key, (g.registered, max(g.registered, g.last)))
        size = g.bytes
        if g.state in states.IN_CACHE:
            with contextlib.suppress(OSError):
                size = self._path(*key).stat().st_blocks * 512
        return StudyState(*key, g.study_instance_uid, g.state, registered, last, size)

    # -- what became of objects ----------------------------------------------------------------------------------------

    def unregistered(self) -> list[tuple[str, int, int, int]]:
        """Return what the registration pump has to look at."""
        with self._lock:
            return [(h, g, registered, last) for (h, g), (registered, last) in self._progress.items()]

    def mark_registered(self, study_hash: str, generation: int, sequence: int) -> None:
        """Move the mark forward."""
        key = (study_hash, generation)
        with self._lock:
            progress = self._progress.get(key)
            if progress is None:
                return  # all of it is registered
            last = progress[1]
            sequence = min(sequence, last)
            if sequence <= progress[0]:
                return
            if sequence == last and key not in self._open and key not in self._unfinished:
                self._catalogue.register(*key, sequence, last, unmark=True)
                del self._progress[key]
                return
        self._catalogue.register(*key, sequence, last, unmark=False)
        with self._lock:
            progress[0] = max(progress[0], sequence)

    def _residence(self, environment: Environment, sequence: int) -> Residence:
        if self._spool:
            return Residence.SPOOL
        return Residence.CACHE if environment.mark(b"p", sequence) is None else Residence.CACHE_AND_PERMANENT

    def residence(self, ref: Ref) -> Residence:
        """Return where copies of an object are."""
        try:
            with self.environment(ref) as environment:
                _decode(environment, ref)
                return Residence.PERMANENT if environment.rows_only else self._residence(environment, ref.sequence)
        except RadmeshError as error:
            g = self._catalogue.get(ref.study_hash, ref.generation)
            if error.reason == "OBJECT_NOT_FOUND" and g is not None and g.state == states.LOST:
                return Residence.PERMANENT
            raise

    def set_permanent(self, refs: list[Ref]) -> None:
        """Remember that objects are in the permanent tier."""
        by_generation: dict[Key, dict[int, bytes]] = {}
        for ref in refs:
            by_generation.setdefault((ref.study_hash, ref.generation), {})[ref.sequence] = b""
        for key, values in by_generation.items():
            self._set_marks(key, b"p", values)

    def set_checked(self, ref: Ref, defect: str) -> None:
        """Remember that pixel data was checked."""
        self._set_marks((ref.study_hash, ref.generation), b"d", {ref.sequence: defect.encode()[:64]})

    def _set_marks(self, key: Key, kind: bytes, values: dict[int, bytes]) -> None:
        with self.environment(Ref(*key, 0)) as environment:
            if environment.rows_only:
                raise RadmeshError("OBJECT_NOT_FOUND", "the object is not in the cache")
            environment.set_marks(kind, values, WAIT_SECONDS)

    def defect(self, ref: Ref) -> str:
        """Return why pixel data is defective."""
        with self.environment(ref) as environment:
            return (environment.mark(b"d", ref.sequence) or b"").decode(errors="replace")

    def unchecked(self, study_hash: str, generation: int) -> list[Ref]:
        """Return objects whose pixel data was not yet checked, in order."""
        return self._unmarked(b"d", study_hash, generation)

    def unsettled(self, study_hash: str, generation: int) -> list[Ref]:
        """Return objects that are not yet in the permanent tier, in order."""
        return self._unmarked(b"p", study_hash, generation)

    def _unmarked(self, kind: bytes, study_hash: str, generation: int) -> list[Ref]:
        with self.environment(Ref(study_hash, generation, 0)) as environment:
            if environment.rows_only:
                return []
            if (study_hash, generation) in self._hashing:
                raise RadmeshError("STORE_BUSY", "what the study has is hashed again after a failed commit: try again")
            refs = [Ref(study_hash, generation, sequence) for sequence in environment.unmarked(kind)]
        # Of a damaged object there is nothing to be copied or checked; its content comes anew, as another.
        return [ref for ref in refs if ref not in self.damage] if self.damage else refs

    # -- leaving -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, study_hash: str, generation: int) -> Iterator[Environment]:
        """An environment that nobody else uses; who comes meanwhile waits. Under the study's lock.

        Raises:
            RadmeshError: STUDY_NOT_FOUND: it is not in the cache; STORE_BUSY: it is being read or received.
        """
        try:
            environment = self._acquire(study_hash, generation)
        except RadmeshError as error:
            raise RadmeshError("STUDY_NOT_FOUND", "the cache does not have the study") from error
        try:
            if environment.rows_only:
                raise RadmeshError("STUDY_NOT_FOUND", "the cache does not have the study")
            if not environment.sealed and environment.unfinished():
                raise RadmeshError("STORE_BUSY", "an object of the study is being received: try again")
            with self._lock:
                self._forget_transfers(IDLE_SECONDS, environment)
                environment.evicting = True
                if not self._changed.wait_for(lambda: environment.references == 1, EVICT_SECONDS):
                    raise RadmeshError("STORE_BUSY", "the study is being read or received: try again")
            yield environment
        except (lmdb.Error, OSError) as error:
            raise self._failure(error) from error
        finally:
            with self._lock:
                environment.references -= 1
                environment.evicting = False
                self._changed.notify_all()

    def _close_for_good(self, environment: Environment) -> None:
        """Close what leaves, while it is held alone."""
        key = (environment.study_hash, environment.generation)
        with self._lock:
            self._open.pop(key, None)
            self._progress.pop(key, None)
            self._unfinished.discard(key)
            if self._writable_now.get(environment.study_hash) is environment:
                del self._writable_now[environment.study_hash]
        for reason in ("COMMIT_FAILED", "OBJECT_CORRUPT"):
            self._alarms.end(reason, key)
        environment.close()

    def evict(self, study_hash: str, generation: int) -> int:
        """Drop a generation's environment; its rows are kept."""
        replaced = {ref.sequence for ref in self.damage.refs(study_hash, generation) if self.damage.replaced(ref)}
        with self._study_lock(study_hash), self._alone(study_hash, generation) as environment:
            g = self._catalogue.get(study_hash, generation)
            missing, last = len(set(environment.unmarked(b"p")) - replaced), environment.last_sequence
            if missing or g is None or g.registered < last:
                raise RadmeshError(
                    "NOT_PERMANENT",
                    f"{missing} objects are not yet in the permanent tier, or not all are registered",
                    metadata={"objects": str(missing)},
                )
            size = environment.size()
            rows = self._rows_path(study_hash, generation)
            rows.parent.mkdir(exist_ok=True, mode=0o700)
            environment.save_rows(rows)
            self._sync_name(rows)
            # From here on it takes nothing more, whatever happens: it may be that the catalogue has it as leaving.
            self.take_no_more(study_hash, generation)
            self._catalogue.update(study_hash, generation, unmark=True, state=states.EVICTING, last=last, bytes=size)
            self._close_for_good(environment)
            self._finish_eviction(study_hash, generation)
        if self.damage:
            self.damage.review_soon()
        return size

    def take_no_more(self, study_hash: str, generation: int) -> None:
        """Store no more objects in a generation, as long as this process lives."""
        key = (study_hash, generation)
        with self._lock:
            self._sealed.add(key)
            environment = self._open.get(key)
            if environment is not None:
                environment.sealed = True
                if self._writable_now.get(study_hash) is environment:
                    del self._writable_now[study_hash]

    def _finish_eviction(self, study_hash: str, generation: int) -> None:
        """From EVICTING on: rename, PERMANENT_ONLY, unlink; can be done again after a crash anywhere between."""
        trash = self._to_trash(study_hash, generation)
        self._catalogue.update(study_hash, generation, unmark=True, state=states.PERMANENT_ONLY)
        self._background.submit(self._unlink, trash)

    def _to_trash(self, study_hash: str, generation: int) -> Path:
        path = self._path(study_hash, generation)
        trash = self.root / "trash" / path.name
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
        path.with_name(path.name + "-lock").unlink(missing_ok=True)
        sync_directory(path.parent)
        sync_directory(trash.parent)
        return trash

    def _unlink(self, path: Path) -> None:
        """Unlink what is in the trash; what cannot be is tried again at the next start."""
        with contextlib.suppress(OSError):
            path.unlink()

    def remove_study(self, study_hash: str, generation: int, last: int) -> None:
        """Drop a generation whose objects, up to sequence `last`, are durable and registered elsewhere."""
        with self._study_lock(study_hash):
            g = self._catalogue.get(study_hash, generation)
            if g is None or g.state == states.REMOVED:
                return
            with self._alone(study_hash, generation) as environment:
                if environment.last_sequence != last:
                    raise RadmeshError("STORE_BUSY", "more of the study has come: look again")
                self.take_no_more(study_hash, generation)
                self._catalogue.update(
                    study_hash, generation, unmark=True, state=states.REMOVED, registered=last, last=last
                )
                self._close_for_good(environment)
                self._finish_removal(study_hash, generation)

    def _finish_removal(self, study_hash: str, generation: int) -> None:
        """From REMOVED on: rename, drop the row, unlink; can be done again after a crash anywhere between."""
        trash = self._to_trash(study_hash, generation)
        self._catalogue.retire(study_hash, generation)
        self.damage.forget(study_hash, generation)
        self._background.submit(self._unlink, trash)

    def _study_lock(self, study_hash: str) -> threading.Lock:
        try:
            return self._study_locks[int(study_hash[:2], 16)]
        except ValueError:
            raise RadmeshError("STUDY_NOT_FOUND", "the cache does not have the study") from None

    def on_commit(self, callback: Callable[[Ref], None]) -> None:
        """Call `callback` after each commit."""
        self._callbacks.append(callback)

    def close(self) -> None:
        """Finish what was begun, and let go."""
        with self._lock:
            if self.closing:
                return
            self.closing = True
            self._forget_transfers(0.0)
            until = time.monotonic() + WAIT_SECONDS
            while not all(_unused(e) for e in self._open.values()) and time.monotonic() < until:
                self._changed.wait(0.01)  # the end of a commit notifies nobody
        self._pool.shutdown(wait=True)
        self._background.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for environment in self._open.values():
                environment.close()
            self._open.clear()
            self._writable_now.clear()
        self._catalogue.close()
        os.close(self._lock_file)


def _decode(environment: Environment, ref: Ref) -> tuple[IndexRow, int]:
    raw = environment.raw_row(ref.sequence)
    if raw is None:
        raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")
    return row_format.decode(ref, raw)


def _unused(environment: Environment) -> bool:
    return not environment.references and environment.committer.idle


def _open_max() -> int:
    """Return how many environments this process may have open, having asked for as many files as that takes."""
    wanted = OPEN_MAX * FILES_EACH + FILES_ELSE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(8, min(OPEN_MAX, (soft - FILES_ELSE // 2) // FILES_EACH))
    return OPEN_MAX
