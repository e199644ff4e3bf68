"""Study storage: one LMDB environment for each study, and a catalogue. Archive and spool are both made of it."""

from radmesh.study_store.lmdb_store import LmdbStudyStore
from radmesh.study_store.store import (
    CHUNK_MAX,
    IndexRow,
    ObjectHeader,
    ObjectReader,
    Outcome,
    Ref,
    Residence,
    Stored,
    StudyState,
    StudyStore,
    Transfer,
)

__all__ = [
    "CHUNK_MAX",
    "IndexRow",
    "LmdbStudyStore",
    "ObjectHeader",
    "ObjectReader",
    "Outcome",
    "Ref",
    "Residence",
    "Stored",
    "StudyState",
    "StudyStore",
    "Transfer",
]
