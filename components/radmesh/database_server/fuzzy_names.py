"""The tables' part in fuzzy semantic matching of person names: which patients are to be compared."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.schema import patients
from radmesh.dicom.fuzzy import SEPARATORS, is_like, words_of
from radmesh.sql.engine import Database

FOUND_MOST: Final = 2000
"""Patients that a name finds."""
# Of so many names the letters are compared.
_LOOKED_AT: Final = 5000
_LONGEST: Final = 64
_WORDS_MOST: Final = 8


def _pieces(name: str) -> Iterator[str]:
    """Yield three letters each that a name like this one is likely to have in the tables."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    for text in dict.fromkeys((" ".join(SEPARATORS.split(plain)), " ".join(words_of(name)))):
        for word in text.split()[:_WORDS_MOST]:
            for start in ("=", "^"):
                for run in re.split(r"[*?]+", f"{start}{word[:_LONGEST]}"):
                    yield from (run[at : at + 3] for at in range(len(run) - 2))


def is_enough(name: str) -> bool:
    """Whether a name has enough letters to be looked for so."""
    return any(_pieces(name))


class FuzzyNames:
    """Finds patients by names that are like one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, connection: sa.Connection, name: str) -> list[int]:
        """Return rows of patients."""
        wanted = words_of(name)[:_WORDS_MOST]
        pieces = list(dict.fromkeys(_pieces(name)))
        if not wanted or not pieces:
            return []
        rows = connection.execute(self._alike(pieces))
        return [row.id for row in rows if is_like(wanted, row.patient_name)][:FOUND_MOST]

    def _alike(self, pieces: Sequence[str]) -> Any:
        """Return the SELECT of patients whose names have some of the pieces, those that have most first."""
        told = sa.select(patients.c.id, patients.c.patient_name)
        if self._database.sqlite:
            quoted = " OR ".join('"' + piece.replace('"', '""') + '"' for piece in pieces)
            found = sa.text(
                "SELECT rowid FROM patient_names WHERE patient_names MATCH :pieces ORDER BY rank LIMIT :most"
            ).bindparams(pieces=quoted, most=_LOOKED_AT)
            return told.where(patients.c.id.in_(found))
        has = [patients.c.name_key.contains(piece, autoescape=True) for piece in pieces]
        share: Any = sum((sa.case((one, 1), else_=0) for one in has), start=sa.literal_column("0"))
        return told.where(sa.or_(*has)).order_by(share.desc()).limit(_LOOKED_AT)
