"""Names that are nearly what was asked for: fuzzy semantic matching of person names (PS3.4 C.2.2.2.1.1)."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from radmesh.dicom.matching import text_matches

_LONGEST: Final = 64
SEPARATORS: Final = re.compile(r"[\s^=.,\-'\u2019]+")
"""What stands between the words of a name."""
# What has no decomposition, and what is written for letters that a keyboard has not.
_LETTERS: Final = str.maketrans({"ß": "ss", "ø": "o", "æ": "a", "œ": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th"})
_DIGRAPHS: Final = (("ae", "a"), ("oe", "o"), ("ue", "u"))


def words_of(name: str) -> list[str]:
    """Return the words of all component groups, without case, width and diacritics; wildcards stay."""
    text = unicodedata.normalize("NFKD", name.casefold()).translate(_LETTERS)
    text = unicodedata.normalize("NFC", "".join(letter for letter in text if not unicodedata.combining(letter)))
    for two, one in _DIGRAPHS:
        text = text.replace(two, one)
    return [word[:_LONGEST] for word in SEPARATORS.split(text) if word]


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
