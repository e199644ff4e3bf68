"""What the keys of a C-FIND ask of the tables: conditions apart from their values, so that statements are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.dicom_query_model import BY_TAG, Attribute
from radmesh.database_server.prepared import number, padded, text
from radmesh.database_server.queries import (
    NOTHING,
    VALUES_OF_A_GROUP,
    Viewer,
    has_modality,
    has_wildcard,
    like_pattern,
    name_condition,
    name_form,
)
from radmesh.database_server.schema import patients, studies
from radmesh.dicom import matching
from radmesh.sql.engine import Database

_LAST: Final = "\U0010ffff"
# PatientID, AccessionNumber and the UIDs: an index finds what has one value of these.
_EXACT: Final = (0x00100020, 0x00080050, 0x0020000D, 0x0020000E, 0x00080018)
_PATIENT_ID, _PATIENT_NAME, _ACCESSION_NUMBER, _STUDY_DATE = 0x00100020, 0x00100010, 0x00080050, 0x00080020


@dataclass(frozen=True, slots=True)
class Term:
    """A condition but for its values.

    Attributes:
        tag: of the attribute that is matched.
        kind: of the condition, see `Terms`.
        shape: what else the condition is made of; most often how many values it has.
    """

    tag: int
    kind: str
    shape: tuple[Any, ...]


@dataclass(slots=True)
class Terms:
    """The conditions of a query, and the values by the names that they have in its statement.

    Attributes:
        few: an index finds all that matches, which is little.
        probes: terms that may find little, and whether an index tells; else all patients or studies are looked at.
    """

    terms: list[Term] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    few: bool = False
    probes: list[tuple[int, bool]] = field(default_factory=list)

    def _add(self, tag: int, kind: str, shape: Sequence[Any], values: Sequence[Any]) -> None:
        at = len(self.terms)
        self.terms.append(Term(tag, kind, tuple(shape)))
        self.values.update((f"v{at}_{place}", value) for place, value in enumerate(values))

    def one_of(self, a: Attribute, values: Sequence[Any]) -> None:
        """Add: the column has one of the values; UIDs or numbers."""
        filled = padded(values)
        self._add(a.tag, "one_of", (len(filled),), filled)
        self.few = self.few or a.tag in _EXACT

    def texts(self, a: Attribute, values: Sequence[str]) -> None:
        """Add: the text matches one of the values, wildcards in them."""
        values = [value.replace("\0", "") for value in values]
        exact = padded([value for value in values if not has_wildcard(value)])
        wild = padded([like_pattern(value) for value in values if has_wildcard(value)])
        if a.tag in (_PATIENT_ID, _ACCESSION_NUMBER):
            self.few = self.few or not wild
            self.probes.append((len(self.terms), all(value[:1] not in ("*", "?") for value in values)))
        self._add(a.tag, "texts", (len(exact), len(wild)), [*exact, *wild])

    def name(self, value: str) -> None:
        """Add: any component group of the patient's name matches (PS3.4 C.2.2.2.1.1)."""
        form, values = name_form(value)
        if not form:
            return
        self.probes.append((len(self.terms), any(indexed for _, indexed in form)))
        self._add(_PATIENT_NAME, "name", form, values)

    def person(self, a: Attribute, value: str) -> None:
        """Add what is likely where a name matches that no index has: what is found is still to be looked at."""
        groups = [matching.open_end(group.rstrip("^ ").lower()) for group in value.split("=")]
        if value.isascii() and all(group.strip("*") for group in groups):
            self._add(a.tag, "person", (len(groups),), [f"%{like_pattern(group)}%" for group in groups])

    def patients(self, ids: Sequence[int]) -> None:
        """Add: it is of one of these patients (rows)."""
        self._add(_PATIENT_NAME, "rows", (), ())
        self.found(len(self.terms) - 1, ids)

    def found(self, at: int, ids: Sequence[int]) -> None:
        """Replace a term by what it finds, rows of patients or of studies."""
        filled = padded(ids or [0])
        self.terms[at] = Term(self.terms[at].tag, "rows", (len(filled),))
        self.values.update((f"v{at}_{place}", one) for place, one in enumerate(filled))
        self.few = True

    def has_dates(self) -> bool:
        """Whether the index of dates finds what matches."""
        return any(term.tag == _STUDY_DATE for term in self.terms)

    def dates(self, a: Attribute, first: str, last: str) -> None:
        """Add: the date lies in a range, both ends included; what ACR-NEMA wrote with full stops is matched too."""
        if first == last:
            self._add(a.tag, "one_of", (2,), (first, _dotted(first)))
        else:
            values = (first, f"{first[:4]}.", _dotted(first), last, _dotted(last))
            self._add(a.tag, "dates", (bool(first), bool(last)), values)

    def moment(self, date: str, time: str, *, end: bool) -> None:
        """Add: a study is not before (`end`: not behind) a date and time, one point in time (PS3.4 C.2.2.2.5.2)."""
        self._add(_STUDY_DATE, "moment", (end,), (date, time + _LAST if end else time))

    def modalities(self, wanted: Sequence[str]) -> None:
        """Add: the study has one of the modalities, wildcards in them."""
        self._add(0x00080061, "modalities", (*wanted,), ())


class Conditions:
    """Makes the conditions of terms.

    Args:
        database: whose dialect they are written in.
        viewer: whose eyes.
        probing: whether indexes are asked for what wildcards find; that is done before, by a statement of its own.
    """

    def __init__(self, database: Database, viewer: Viewer, *, probing: bool = False) -> None:
        self._database = database
        self._viewer = viewer
        self._probing = probing

    def of(self, term: Term, at: int) -> list[Any]:
        """Return the conditions of the term that stands at a place among those of a query."""
        a = BY_TAG[term.tag]
        return list(getattr(self, f"_{term.kind}")(a.column, term, at))

    def probe(self, term: Term, at: int) -> Any:
        """Return the SELECT of what a term finds: rows of patients or of studies, FEW + 1 at most."""
        return sa.select(_rows_of(term).label("id")).where(*self.of(term, at)).limit(number("most"))

    def _one_of(self, column: Any, term: Term, at: int) -> list[Any]:
        make = number if isinstance(column.type, sa.Integer) else text
        binds = [make(f"v{at}_{place}") for place in range(term.shape[0])]
        return [column == binds[0] if len(binds) == 1 else column.in_(binds)]

    def _texts(self, column: Any, term: Term, at: int) -> list[Any]:
        exact, wild = term.shape
        binds = [text(f"v{at}_{place}") for place in range(exact + wild)]
        conditions = [column == binds[0] if exact == 1 else column.in_(binds[:exact])] if exact else []
        searched = column if self._probing else column.concat(NOTHING)
        return [sa.or_(*conditions, *(searched.like(bind, escape="\\") for bind in binds[exact:]))]

    def _name(self, _: Any, term: Term, at: int) -> list[Any]:
        names = [f"v{at}_{place}" for place in range(VALUES_OF_A_GROUP * len(term.shape))]
        return [name_condition(self._database, term.shape, names, indexed=self._probing)]

    def _person(self, column: Any, term: Term, at: int) -> list[Any]:
        lower = sa.func.lower(column)
        other = "*[^ -~]*" if self._database.sqlite else "[^ -~]"
        beyond_ascii = column.op("GLOB" if self._database.sqlite else "~")(sa.literal(other))
        likely = (lower.like(text(f"v{at}_{place}"), escape="\\") for place in range(term.shape[0]))
        return [sa.or_(sa.and_(*likely), beyond_ascii)]

    def _rows(self, _: Any, term: Term, at: int) -> list[Any]:
        return self._one_of(_rows_of(term), term, at)

    def _dates(self, column: Any, term: Term, at: int) -> list[Any]:
        first, year, first_dotted, last, last_dotted = (text(f"v{at}_{place}") for place in range(5))
        # A dotted date sorts before all others of its year.
        conditions = [column != ""]
        if term.shape[0]:
            exact = sa.or_(column >= first, sa.and_(column.like("____.%"), column >= first_dotted))
            conditions = [column >= year, exact]
        if term.shape[1]:
            conditions += [column <= last, sa.or_(column.not_like("____.%"), column <= last_dotted)]
        return conditions

    def _moment(self, date: Any, term: Term, at: int) -> list[Any]:
        day, hour = text(f"v{at}_0"), text(f"v{at}_1")
        time = studies.c.study_time
        return [sa.or_(date < day, time <= hour) if term.shape[0] else sa.or_(date > day, time >= hour)]

    def _modalities(self, _: Any, term: Term, _at: int) -> list[Any]:
        return [has_modality(term.shape, self._viewer)]


def _rows_of(term: Term) -> Any:
    return studies.c.id if term.tag == _ACCESSION_NUMBER else patients.c.id


def _dotted(date: str) -> str:
    return f"{date[:4]}.{date[4:6]}.{date[6:]}"
