"""Names that are nearly what was asked for: fuzzy semantic matching of person names (PS3.4 C.2.2.2.1.1)."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.schema import patients
from radmesh.dicom.matching import text_matches
from radmesh.sql.engine import Database

FOUND_MOST: Final = 2000
"""Patients that a name finds."""
# Of so many names the letters are compared.
_LOOKED_AT: Final = 5000
_LONGEST: Final = 64
_WORDS_MOST: Final = 8
_SEPARATORS: Final = re.compile(r"[\s^=.,\-'\u2019]+")
# What has no decomposition, and what is written for letters that a keyboard has not.
_LETTERS: Final = str.maketrans({"ß": "ss", "ø": "o", "æ": "a", "œ": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th"})
_DIGRAPHS: Final = (("ae", "a"), ("oe", "o"), ("ue", "u"))


def words_of(name: str) -> list[str]:
    """Return the words of all component groups, without case, width and diacritics; wildcards stay."""
    text = unicodedata.normalize("NFKD", name.casefold()).translate(_LETTERS)
    text = unicodedata.normalize("NFC", "".join(letter for letter in text if not unicodedata.combining(letter)))
    for two, one in _DIGRAPHS:
        text = text.replace(two, one)
    return [word[:_LONGEST] for word in _SEPARATORS.split(text) if word]


def is_like(wanted: Sequence[str], name: str) -> bool:
    """Whether each of the words has one in the name that is it, but for a letter (two in a long one), in any order."""
    words = words_of(name)
    return all(any(_same(one, word) for word in words) for one in wanted)


def _same(wanted: str, word: str) -> bool:
    if wanted == word:
        return True
    if "*" in wanted or "?" in wanted:
        return text_matches(wanted, word)
    wrong = 0 if len(wanted) < 4 else 1 if len(wanted) < 8 else 2
    return abs(len(wanted) - len(word)) <= wrong and _distance(wanted, word, wrong) <= wrong


def _distance(one: str, other: str, most: int) -> int:
    """Return how many letters are left out, put in, replaced, or swapped with the next; beyond `most` anything more."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row, last = row, [i], before
        for j, its in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                best = min(best, last[j - 2] + 1)
            row.append(best)
        if min(row) > most:
            return most + 1
    return row[-1]


def _pieces(name: str) -> Iterator[str]:
    """Yield three letters each that a name like this one is likely to have in the tables."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    for text in dict.fromkeys((" ".join(_SEPARATORS.split(plain)), " ".join(words_of(name)))):
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
