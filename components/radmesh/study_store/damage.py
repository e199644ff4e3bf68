"""What a store knows to be wrong: objects whose bytes are not what was stored, and what somebody is told of them."""

import contextlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.catalogue import Catalogue
from radmesh.study_store.environment import Content
from radmesh.study_store.store import Ref

if TYPE_CHECKING:
    from radmesh.study_store.lmdb_store import LmdbStudyStore

_TEXTS: Final = {
    "OBJECT_CORRUPT": "an object in the cache is not what was stored, and there is no other copy: send its study again",
    "CACHE_COPY_LOST": "an object in the cache is damaged: the permanent tier serves it; evict its study",
}


class Alarms:
    """Conditions by what each is about: a reason is over when it holds for nothing any more."""

    def __init__(self, begin: Callable[[str, str], None], end: Callable[[str], None]) -> None:
        self._begin = begin
        self._end = end
        self._lock = threading.Lock()
        self._about: dict[str, set[Hashable]] = {}

    def begin(self, reason: str, about: Hashable, message: str) -> None:
        """It holds for `about`; the message last given is shown."""
        with self._lock:
            self._about.setdefault(reason, set()).add(about)
            self._begin(reason, message)

    def end(self, reason: str, about: Hashable) -> None:
        """It does not hold for `about`."""
        if not self._about.get(reason):
            return  # cheap, for it is asked at every commit
        with self._lock:
            rest = self._about[reason]
            if about in rest:
                rest.discard(about)
                if not rest:
                    self._end(reason)

    def about(self, reason: str) -> list[Hashable]:
        """Return what it holds for."""
        with self._lock:
            return list(self._about.get(reason, ()))


class Damage:
    """Objects in the cache that were hashed again, and are not what was committed.

    Nothing is done to them. What has the same content is stored anew, and read in their place; of what is permanent the
    permanent copy is read. Known in memory, kept in the catalogue.
    """

    def __init__(
        self, store: "LmdbStudyStore", catalogue: Catalogue, alarms: Alarms, background: ThreadPoolExecutor
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._alarms = alarms
        self._background = background
        self._lock = threading.Lock()
        self._refs = set(catalogue.damaged())
        # What somebody could not read, and will be hashed.
        self._questioned: set[Ref] = set()
        self._reviewing = False

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._refs

    def __bool__(self) -> bool:
        return bool(self._refs)

    def refs(self, study_hash: str = "", generation: int = 0) -> list[Ref]:
        """Return all, or those of a generation, in order."""
        here = (study_hash, generation)
        return sorted(ref for ref in self._refs.copy() if not study_hash or (ref.study_hash, ref.generation) == here)

    # -- finding it

    def look_at(self, ref: Ref) -> bool:
        """Hash an object again; return whether it is damaged. If so, it is marked.

        Raises:
            RadmeshError: it cannot be said now.
        """
        if ref not in self._refs:
            if self._intact(ref):
                return False
            self.note(ref)
            self.review()
        return True

    def question(self, ref: Ref) -> None:
        """Look at an object that somebody could not read, soon."""
        with self._lock, contextlib.suppress(RuntimeError):  # the store is being closed
            if ref not in self._questioned and ref not in self._refs:
                self._questioned.add(ref)
                self._background.submit(self._answer, ref)

    def _answer(self, ref: Ref) -> None:
        with contextlib.suppress(RadmeshError):
            self.look_at(ref)
        self._questioned.discard(ref)

    def _intact(self, ref: Ref) -> bool:
        try:
            return self._store.intact(self._store.row(ref))
        except RadmeshError as error:
            if error.reason != "OBJECT_CORRUPT":
                raise
            return False

    def note(self, ref: Ref) -> None:
        """Mark an object; later ones of its study go to another environment."""
        self._store.take_no_more(ref.study_hash, ref.generation)
        self._refs.add(ref)
        # If the catalogue cannot be told, a later process finds it as this one did.
        with contextlib.suppress(RadmeshError):
            self._catalogue.mark_damaged(ref)

    def hash_again(self) -> None:
        """Take marks back from what is whole: a file was put back, or a bit had fallen over in memory alone."""
        for ref in self.refs():
            if self._store.closing:
                return
            with contextlib.suppress(RadmeshError):
                if self._intact(ref):
                    self._drop(ref)
        self.review()

    def _drop(self, ref: Ref) -> None:
        self._catalogue.mark_damaged(ref, damaged=False)
        self._refs.discard(ref)
        self._show(ref, "")

    def forget(self, study_hash: str, generation: int) -> None:
        """A generation was removed, and its rows in the catalogue with it."""
        for ref in self.refs(study_hash, generation):
            self._refs.discard(ref)
            self._show(ref, "")

    # -- what is read instead

    def current(self, ref: Ref) -> Ref:
        """Return what is read for an object: another with the same content, if it is damaged and not permanent.

        Raises:
            RadmeshError: OBJECT_CORRUPT: there is no other; OBJECT_NOT_FOUND, STORE_BUSY.
        """
        if ref not in self._refs:
            return ref
        with self._store.environment(ref) as environment:
            if environment.mark(b"p", ref.sequence) is not None:
                return ref
        row = self._store.row(ref)
        content = Content(row.transfer_id, row.header, row.length, row.sha256)
        for state in self._store.generations(ref.study_hash):
            place = Ref(ref.study_hash, state.generation, 0)
            with contextlib.suppress(RadmeshError), self._store.environment(place) as environment:
                found = environment.find(content)
                if found is not None and found[0]:
                    return replace(place, sequence=found[0])
        raise RadmeshError("OBJECT_CORRUPT", "the object is damaged in the cache: send it again")

    def replaced(self, ref: Ref) -> bool:
        """Return whether another object is read for this one."""
        try:
            return self.current(ref) != ref
        except RadmeshError:
            return False

    # -- what is said of it

    def review_soon(self) -> None:
        """Something changed: see what is to be said of each."""
        with self._lock, contextlib.suppress(RuntimeError):  # the store is being closed
            if not self._reviewing:
                self._reviewing = True
                self._background.submit(self.review)

    def review(self) -> None:
        """See what is to be said of each."""
        self._reviewing = False
        for ref in self.refs():
            if self._store.closing:
                return
            with contextlib.suppress(RadmeshError):
                self._show(ref, self._state(ref))

    def _state(self, ref: Ref) -> str:
        """Return the reason that holds; empty: there is nothing to do about it."""
        try:
            if self.current(ref) != ref:
                return ""
            with self._store.environment(ref) as environment:
                if environment.rows_only:
                    self._drop(ref)
                    return ""
        except RadmeshError as error:
            if error.reason == "OBJECT_NOT_FOUND":
                return ""
            if error.reason != "OBJECT_CORRUPT":
                raise
            return "OBJECT_CORRUPT"
        return "CACHE_COPY_LOST"

    def _show(self, ref: Ref, reason: str) -> None:
        for one, text in _TEXTS.items():
            if one == reason:
                self._alarms.begin(one, ref, text)
            else:
                self._alarms.end(one, ref)
