"""What is shown of a study: what came, what its RIS says of it, what people corrected; each over the one before.

Shown values are always derived from those facts, all in one place (`Overlay.refresh`), whichever of them has changed:
an admission was decided about, an order or a patient changed, patients were merged or set apart again, a person
corrected. So what is taken away leaves what would be there without it, and doing it again changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.people import FIELDS, People
from radmesh.database_server.queries import OVERLAID
from radmesh.database_server.registry import HELD, VERIFIED
from radmesh.database_server.schema import admissions, corrections, history, merged_studies, orders, studies
from radmesh.database_server.texts import bounded, clean
from radmesh.runtime.clock import Clock
from radmesh.sql.engine import Database, micros

OF_RIS: Final = "ris:"
_OF_ADMISSION: Final = (*FIELDS, "accession_number")


@dataclass(frozen=True, slots=True)
class _Value:
    """A corrected value: what came, what is shown instead, and who says so."""

    original: str
    value: str
    source: str


class Overlay:
    """Derives what is shown, within a transaction of the caller."""

    def __init__(self, database: Database, clock: Clock, people: People) -> None:
        self._database = database
        self._clock = clock
        self.people = people

    def refresh(
        self, c: sa.Connection, key: int, *, actor: str, source: str = "", values: Mapping[str, str] | None = None
    ) -> bool:
        """Bring a study (row of `studies`) up to date; return whether what is shown has changed.

        `values`: what a person corrects, by keyword, as `source`; an empty value takes the correction away.
        """
        study = c.execute(sa.select(studies).where(studies.c.id == key)).one()
        every = c.execute(sa.select(admissions).where(admissions.c.study == key).order_by(admissions.c.id)).all()
        laid = {
            row.keyword: _Value(row.original_value, row.value, row.source)
            for row in c.execute(sa.select(corrections).where(corrections.c.study == key, corrections.c.in_force))
        }
        # What is held must not be shown by its demographics.
        first = next((a for a in every if a.verification != HELD), every[0])
        linked = next((a for a in every if a.verification == VERIFIED and a.order_id), None)
        domain = (linked or first).domain
        came = self._came(study, first, laid)
        said = {k: v for k, v in laid.items() if not v.source.startswith(OF_RIS)}
        for keyword, value in (values or {}).items():
            if not value:
                said.pop(keyword, None)
            elif keyword not in said or said[keyword].value != bounded(keyword, value):
                said[keyword] = _Value("", bounded(keyword, value), clean(source))
        person = linked.person if linked else self._merged(c, domain, came, said)
        root = self.people.now(c, person) if person else None
        of_ris = {name: str(getattr(root, name)) for name in FIELDS} if root is not None else {}
        if linked:
            of_ris["accession_number"] = self._accession(c, linked.order_id)
        wanted: dict[str, _Value] = {}
        for keyword, field in OVERLAID.items():
            if keyword in said:
                wanted[keyword] = _Value(came[field], said[keyword].value, said[keyword].source)
            elif of_ris.get(field, "") not in ("", came[field]):
                wanted[keyword] = _Value(came[field], of_ris[field], OF_RIS + domain)
        effective = {f: wanted[k].value if k in wanted else came[f] for k, f in OVERLAID.items()}
        now = {name: value for name, value in effective.items() if name in studies.c} | {
            "patient": self._patient(c, study, domain, root, came, effective),
            "domain": domain,
            "order_id": linked.order_id if linked else "",
            "person": person,
            "corrected": bool(wanted),
        }
        self._moved(c, study, person)
        changed = [keyword for keyword in sorted(OVERLAID) if wanted.get(keyword) != laid.get(keyword)]
        if not changed and all(getattr(study, name) == value for name, value in now.items()):
            return False
        version = study.version + 1
        c.execute(sa.update(studies).where(studies.c.id == key).values(**now, version=version))
        self._lay(c, study, changed, wanted, laid, actor=actor, source=source, version=version)
        return True

    def _came(self, study: Any, first: Any, laid: Mapping[str, _Value]) -> dict[str, str]:
        """Return the values that came with the images, by field."""
        came = {field: laid[k].original if k in laid else getattr(study, field, "") for k, field in OVERLAID.items()}
        came |= {field: getattr(first, field) for field in _OF_ADMISSION}
        # An object that names no issuer is of its domain's.
        came["issuer_of_patient_id"] = came["issuer_of_patient_id"] or self.people.domains.issuer_of(first.domain)
        return came

    def _merged(self, c: sa.Connection, domain: str, came: Mapping[str, str], said: Mapping[str, _Value]) -> int:
        """Return the patient whom a study that has no order is shown as, since patients were merged; 0 = nobody."""
        issuer, patient_id = (
            said[keyword].value if keyword in said else came[field]
            for keyword, field in (("IssuerOfPatientID", "issuer_of_patient_id"), ("PatientID", "patient_id"))
        )
        return self.people.merged(c, domain, issuer, patient_id)

    @staticmethod
    def _accession(c: sa.Connection, order_id: str) -> str:
        found = c.execute(sa.select(orders.c.accession_number).where(orders.c.order_id == order_id)).scalar()
        return bounded("AccessionNumber", found or "")

    def _patient(
        self,
        c: sa.Connection,
        study: Any,
        domain: str,
        root: Any,
        came: Mapping[str, str],
        effective: Mapping[str, str],
    ) -> int:
        """Return the row of the patient that a study shows, so that queries match what answers say."""
        uid = study.study_instance_uid
        values = {name: effective[name] for name in FIELDS}
        if root is not None:
            if all(getattr(root, name) == value for name, value in values.items()):
                return int(root.id)
        elif values == {name: came[name] for name in FIELDS}:
            return self.people.received(c, domain, values, uid)
        return self.people.shown(c, domain, values, uid)

    def _moved(self, c: sa.Connection, study: Any, person: int) -> None:
        """Note which merges moved a study."""
        if person and person != study.person:
            for merge, _ in self.people.path(c, person):
                c.execute(self._database.insert_new(merged_studies).values(merge=merge, study=study.id))

    def _lay(
        self,
        c: sa.Connection,
        study: Any,
        changed: Sequence[str],
        wanted: Mapping[str, _Value],
        laid: Mapping[str, _Value],
        *,
        actor: str,
        source: str,
        version: int,
    ) -> None:
        """Write corrections, and their history: the keywords alone, values of patients stay in the other table."""
        if not changed:
            return
        time = micros(self._clock.now())
        mine = sa.and_(corrections.c.study == study.id, corrections.c.keyword.in_(changed), corrections.c.in_force)
        c.execute(sa.update(corrections).where(mine).values(in_force=False))
        by = {"study": study.id, "actor": clean(actor), "time": time}
        new = [
            {**by, "keyword": k, "original_value": now.original, "value": now.value, "source": now.source}
            for k in changed
            if (now := wanted.get(k)) is not None
        ]
        if new:
            c.execute(sa.insert(corrections).values(in_force=True), new)
        moves = [
            {
                **by,
                "from_state": keyword,
                "to_state": "set" if keyword in wanted else "removed",
                "reason": wanted[keyword].source if keyword in wanted else clean(source) or laid[keyword].source,
            }
            for keyword in changed
        ]
        c.execute(sa.insert(history).values(axis="correction", version=version), moves)
