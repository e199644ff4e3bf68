"""The web cache: a file for each study, and one small catalogue of them.

The catalogue's row is durable before its file is made, and goes before its file does: a file without a row is of no
study. Everything here can be made again; what is here is what was made.
"""

import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import lmdb

from radmesh.curator.model import CachedStudy, Content, Frame, FrameRange, Piece, Rendition
from radmesh.curator.study_file import StudyFile, StudyWriter
from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory
from radmesh.runtime.logs import Logger
from radmesh.study_store.files import extend_to_last_page, prepare_lock

_CATALOGUE_SIZE: Final = 4 << 30
_OPEN_MOST: Final = 64
# When there is no room, so much of it is made at once.
_SPARE: Final = 0.1
# Who adds to a study waits so long for whoever has it.
_PATIENCE: Final = 10.0
# Reads are remembered in memory, and written so often.
_READ_SECONDS: Final = 60.0


class WebCache:
    """Thread-safe; one process has the folder.

    Args:
        folder: of the files, made if it is not there.
        clock: of reads.
        log: of what is dropped.
        size: bytes that all files may have together; 0: as many as the file system has room for.
        reserve: bytes that stay free in the file system.
    """

    def __init__(self, folder: Path, clock: Clock, log: Logger, *, size: int = 0, reserve: int = 0) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._clock = clock
        self._log = log
        self._most = size
        self._reserve = reserve
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._open: OrderedDict[str, StudyFile] = OrderedDict()
        # Studies that somebody has for himself, to add to them or to drop them.
        self._taken: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        self._read: set[str] = set()
        self._read_at = clock.monotonic()
        # True: the folder was made by this process; whatever the database knows of it is not here.
        self.new = not (folder / "catalogue.mdb").exists()
        self.lost: list[str] = []
        self._catalogue = self._open_catalogue()
        self._recover()

    def _open_catalogue(self) -> Any:
        path = self._folder / "catalogue.mdb"
        for last in (False, True):
            try:
                prepare_lock(path.with_name(path.name + "-lock"))
                catalogue = lmdb.open(str(path), subdir=False, map_size=_CATALOGUE_SIZE, max_readers=128, mode=0o600)
                extend_to_last_page(catalogue, path)
                with catalogue.begin() as transaction, transaction.cursor() as cursor:
                    self._rows = {key.decode(): json.loads(value) for key, value in cursor}
                return catalogue
            except (lmdb.Error, ValueError) as error:
                if last:
                    raise RadmeshError("STORAGE_FULL", "the web cache's catalogue cannot be opened") from error
                # Whatever it said, the pictures can be made again.
                self._log.warning("catalogue is damaged: the web cache begins anew", error=type(error).__name__)
                self.new = True
                self._rows = {}
                for name in (path.name, path.name + "-lock"):
                    (self._folder / name).unlink(missing_ok=True)
        raise AssertionError

    def _recover(self) -> None:
        """Files without a row go; rows without a file are told in `lost`."""
        named = {self._path(name, row) for name, row in self._rows.items()}
        for path in self._folder.glob("*.study"):
            if path not in named:
                self._unlink(path)
        for name, row in list(self._rows.items()):
            path = self._path(name, row)
            if not path.exists() or not path.stat().st_size:
                self.lost.append(row["study"])
                self._forget(name)
                self._unlink(path)
            else:
                row["bytes"] = path.stat().st_blocks * 512

    def _path(self, name: str, row: dict[str, Any]) -> Path:
        return self._folder / f"{name}.{row['generation']}.study"

    @staticmethod
    def _unlink(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_name(path.name + "-lock").unlink(missing_ok=True)

    def _keep(self, name: str, row: dict[str, Any]) -> None:
        try:
            with self._catalogue.begin(write=True) as transaction:
                transaction.put(name.encode(), json.dumps(row).encode())
        except lmdb.Error as error:
            raise RadmeshError("STORAGE_FULL", "the web cache's catalogue could not be written") from error

    def _forget(self, name: str) -> None:
        self._rows.pop(name, None)
        try:
            with self._catalogue.begin(write=True) as transaction:
                transaction.delete(name.encode())
        except lmdb.Error as error:
            raise RadmeshError("STORAGE_FULL", "the web cache's catalogue could not be written") from error

    # -- files

    @contextmanager
    def _file(self, study_instance_uid: str) -> Iterator[StudyFile]:
        """The open file of a study.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND.
        """
        name = study_hash(study_instance_uid)
        with self._lock:
            file = self._take(name)
        try:
            yield file
        finally:
            self._give_back(name, file)

    def _take(self, name: str) -> StudyFile:
        row = self._rows.get(name)
        if row is None:
            raise RadmeshError("RENDITION_NOT_FOUND", "the web cache has nothing of the study")
        file = self._open.get(name)
        if file is None:
            try:
                file = StudyFile(self._path(name, row))
            except (OSError, lmdb.Error) as error:
                raise RadmeshError("RENDITION_DAMAGED", "the study's file in the web cache cannot be opened") from error
            self._open[name] = file
            self._close_idle()
        self._open.move_to_end(name)
        file.references += 1
        return file

    def _give_back(self, name: str, file: StudyFile) -> None:
        with self._lock:
            file.references -= 1
            if not file.references and self._open.get(name) is not file:
                file.close()  # it was dropped meanwhile
            self._close_idle()

    def _close_idle(self) -> None:
        if len(self._open) > _OPEN_MOST:
            for name in [n for n, f in self._open.items() if not f.references][: len(self._open) - _OPEN_MOST]:
                self._open.pop(name).close()

    # -- reading

    def studies(self) -> list[CachedStudy]:
        """Return the studies that have a file, the least recently read first."""
        with self._lock:
            rows = sorted(self._rows.values(), key=lambda row: row["read"])
            return [CachedStudy(r["study"], r["bytes"], datetime.fromtimestamp(r["read"], UTC)) for r in rows]

    def contents(self, study_instance_uid: str) -> dict[Content, Rendition]:
        """Return everything that is here of a study.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RENDITION_DAMAGED.
        """
        with self._file(study_instance_uid) as file, _damage():
            return file.contents()

    def manifest(
        self, study_instance_uid: str, series_instance_uid: str = ""
    ) -> Iterator[tuple[Rendition, Iterator[Frame]]]:
        """Yield the newest rendition of each instance, with its frames, which are to be used in turn.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RENDITION_DAMAGED.
        """
        with self._file(study_instance_uid) as file, _damage():
            for number, rendition in file.renditions(series_instance_uid):
                yield rendition, file.frames(number)
        self._was_read(study_instance_uid)

    def read(self, study_instance_uid: str, ranges: list[FrameRange]) -> Iterator[Piece]:
        """Yield the bytes of ranges, in order.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND and RANGE_INVALID, with `index` in the metadata; RENDITION_DAMAGED.
        """
        self._was_read(study_instance_uid)
        try:
            with self._file(study_instance_uid) as file, _damage():
                for index, wanted in enumerate(ranges):
                    yield from file.read(index, wanted)
        except RadmeshError as error:
            error.metadata.setdefault("index", "0")
            raise

    def series_metadata(self, study_instance_uid: str, series_instance_uid: str) -> tuple[str, int, list[bytes]]:
        """Return (tag, number of instances, parts of the gzip) of a series' metadata.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RENDITION_DAMAGED.
        """
        self._was_read(study_instance_uid)
        with self._file(study_instance_uid) as file, _damage():
            return file.series_metadata(series_instance_uid)

    def _was_read(self, study_instance_uid: str) -> None:
        name = study_hash(study_instance_uid)
        with self._lock:
            row = self._rows.get(name)
            if row is not None:
                row["read"] = self._clock.now().timestamp()
                self._read.add(name)

    def remember_reads(self) -> None:
        """Write down now and then what was read.

        Raises:
            RadmeshError: STORAGE_FULL.
        """
        now = self._clock.monotonic()
        with self._lock:
            if now - self._read_at < _READ_SECONDS:
                return
            self._read_at = now
            names, self._read = self._read, set()
            for name in names:
                if name in self._rows:
                    self._keep(name, self._rows[name])

    # -- writing

    @contextmanager
    def _alone(self, name: str, seconds: float) -> Iterator[None]:
        with self._lock:
            if not self._released.wait_for(lambda: name not in self._taken, seconds):
                raise RadmeshError("STORE_BUSY", "the study is being written to: try again in a moment")
            self._taken.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._taken.discard(name)
                self._released.notify_all()

    @contextmanager
    def writer(self, study_instance_uid: str) -> Iterator[StudyWriter]:
        """What adds to a study; one at a time does.

        Raises:
            RadmeshError: STORE_BUSY, STORAGE_FULL, RENDITION_DAMAGED.
        """
        name = study_hash(study_instance_uid)
        with self._alone(name, _PATIENCE):
            with self._lock:
                if name not in self._rows:
                    self._make(name, study_instance_uid)
                file = self._take(name)
            try:
                with _damage():
                    writer = StudyWriter(file)
                yield writer
            finally:
                with self._lock:
                    if name in self._rows:
                        self._rows[name]["bytes"] = file.size()
                self._give_back(name, file)

    @contextmanager
    def alone(self, study_instance_uid: str) -> Iterator[Callable[[], int]]:
        """Have a study for oneself; what is given drops its file, and returns the bytes. Who reads it reads on.

        Raises:
            RadmeshError: STORE_BUSY; the file's dropping: STORAGE_FULL.
        """
        name = study_hash(study_instance_uid)
        with self._alone(name, 0.0):
            yield lambda: self._drop(name)

    def _make(self, name: str, study_instance_uid: str) -> None:
        now = self._clock.now().timestamp()
        # No file ever has the name of an earlier one, which readers may still have open.
        generation = max((row["generation"] for row in self._rows.values()), default=0)
        row = {"study": study_instance_uid, "generation": max(generation + 1, int(now * 1e6)), "bytes": 0, "read": now}
        self._keep(name, row)
        self._rows[name] = row
        try:
            file = StudyFile(self._path(name, row), create=True)
            file.set_study(study_instance_uid)
            sync_directory(self._folder)
        except (OSError, lmdb.Error, RadmeshError) as error:
            with suppress(RadmeshError):
                self._forget(name)
            self._unlink(self._path(name, row))
            raise RadmeshError("STORAGE_FULL", "a file of the web cache could not be made") from error
        self._open[name] = file

    def _drop(self, name: str) -> int:
        with self._lock:
            row = self._rows.get(name)
            if row is None:
                return 0
            self._forget(name)
            file = self._open.pop(name, None)
            if file is not None and not file.references:
                file.close()
            size: int = row["bytes"]
            self._unlink(self._path(name, row))
            return size

    # -- room

    def used(self) -> int:
        """Return the bytes of all files on disk, as of their last change."""
        with self._lock:
            return sum(row["bytes"] for row in self._rows.values())

    def free(self) -> int:
        """Return the room that is left: by the limit, and in the file system above the reserve."""
        room = max(0, shutil.disk_usage(self._folder).free - self._reserve)
        return min(room, max(0, self._most - self.used())) if self._most else room

    def surplus(self) -> int:
        """Return how many bytes are to be dropped; 0: there is room. More than needed, so that it is not done often."""
        with self._lock:
            taken = sum(self._rows[name]["bytes"] for name in self._taken if name in self._rows)
        used = self.used()
        over = max(0, used - self._most) if self._most else 0
        lacking = max(0, self._reserve - shutil.disk_usage(self._folder).free)
        needed = max(over, lacking)
        return min(needed + int(used * _SPARE), used - taken) if needed else 0

    @property
    def nearly_full(self) -> bool:
        """Whether what is made without being asked for would soon make something else go."""
        return self.free() < (self.used() + self.free()) * 2 * _SPARE

    def candidates(self, count: int) -> list[str]:
        """Return the studies to be dropped next."""
        with self._lock:
            rows = sorted((row["read"], row["study"]) for name, row in self._rows.items() if name not in self._taken)
            return [study for _, study in rows[:count]]

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            with suppress(RadmeshError):
                for name in self._read:
                    if name in self._rows:
                        self._keep(name, self._rows[name])
            for file in self._open.values():
                if not file.references:
                    file.close()
            self._open.clear()
            self._catalogue.close()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, ValueError, KeyError, TypeError) as error:
        raise RadmeshError("RENDITION_DAMAGED", "the study's file in the web cache cannot be read") from error
