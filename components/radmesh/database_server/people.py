"""Patients as their RIS knows them: a row each for (domain, issuer, ID), which merges join to trees (FEATURES DB3)."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.schema import merges, patients
from radmesh.database_server.texts import bounded, name_key, short
from radmesh.dicom.domains import Domains
from radmesh.sql.engine import Database

# Field of a patient -> DICOM keyword.
FIELDS: Final = {
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
}
_IN_FORCE: Final = merges.c.undo_time == 0


class People:
    """Finds and keeps patients, within a transaction of the caller that is serialised (`Database.serialise`)."""

    def __init__(self, database: Database, domains: Domains) -> None:
        self._database = database
        self.domains = domains

    def told(
        self, c: sa.Connection, domain: str, patient: Mapping[str, str], *, news: bool, otherwise: str = ""
    ) -> tuple[int, str]:
        """Return the row of a patient that a RIS names, and "new", (as `news`) "changed", or "" for as it was.

        `otherwise` sets a patient without an ID apart.
        """
        values = {name: bounded(keyword, patient.get(name, "")) for name, keyword in FIELDS.items()}
        numbers = (domain, patient.get("issuer_of_patient_id", ""), patient.get("patient_id", ""))
        identity = short("\x1f".join(("ris", *numbers, "" if numbers[2] else otherwise)), 400)
        row = c.execute(sa.select(patients).where(patients.c.identity == identity)).first()
        if row is None:
            return self._made(c, identity, domain, values, otherwise), "new"
        if not news or all(getattr(row, name) == value for name, value in values.items()):
            return int(row.id), ""
        c.execute(
            sa.update(patients)
            .where(patients.c.id == row.id)
            .values(**values, name_key=name_key(values["patient_name"]))
        )
        return int(row.id), "changed"

    def shown(self, c: sa.Connection, domain: str, values: Mapping[str, str], otherwise: str) -> int:
        """Return the row of a patient who is shown with these values, by whomever they were corrected."""
        said = "\x1f".join(values[name] for name in ("patient_name", "patient_birth_date", "patient_sex"))
        digest = hashlib.sha256(said.encode()).hexdigest()[:32]
        numbers = (domain, values["issuer_of_patient_id"], values["patient_id"])
        identity = short("\x1f".join(("as", *numbers, "" if numbers[2] else otherwise, digest)), 400)
        known = c.execute(sa.select(patients.c.id).where(patients.c.identity == identity)).scalar()
        return int(known) if known is not None else self._made(c, identity, domain, values, otherwise)

    def received(self, c: sa.Connection, domain: str, values: Mapping[str, str], study_instance_uid: str) -> int:
        """Return the row of a patient as an object named it: what came first has the first row, another has its own."""
        identity = self._who(domain, values, study_instance_uid)
        known = c.execute(sa.select(patients).where(patients.c.identity == identity)).first()
        if known is None:
            return self._made(c, identity, domain, values, study_instance_uid)
        if all(getattr(known, name) == value for name, value in values.items() if name in FIELDS):
            return int(known.id)
        return self.shown(c, domain, values, study_instance_uid)

    def _who(self, domain: str, values: Mapping[str, str], otherwise: str) -> str:
        issuer, patient_id = values["issuer_of_patient_id"], values["patient_id"]
        return short(self.domains.patient_identity(domain, issuer, patient_id, otherwise), 400)

    def _made(self, c: sa.Connection, identity: str, domain: str, values: Mapping[str, str], otherwise: str) -> int:
        values = {**values, "identity": identity, "who": self._who(domain, values, otherwise)}
        values["name_key"] = name_key(values["patient_name"])
        return int(c.execute(sa.insert(patients).values(values).returning(patients.c.id)).scalar_one())

    # -- merges

    def path(self, c: sa.Connection, person: int) -> Iterator[tuple[int, int]]:
        """Yield (merge, surviving patient), from a patient to who that is now."""
        while following := c.execute(
            sa.select(merges.c.id, merges.c.surviving).where(merges.c.prior == person, _IN_FORCE)
        ).first():
            person = following.surviving
            yield following.id, person

    def root(self, c: sa.Connection, person: int) -> int:
        """Return who a patient is now."""
        for _, surviving in self.path(c, person):
            person = surviving
        return person

    def now(self, c: sa.Connection, person: int) -> Any:
        """Return the row of who a patient is now; `surviving` is None."""
        query = sa.select(patients, merges.c.surviving).join(
            merges, sa.and_(merges.c.prior == patients.c.id, _IN_FORCE), isouter=True
        )
        while True:
            row = c.execute(query.where(patients.c.id == person)).one()
            if row.surviving is None:
                return row
            person = row.surviving

    def members(self, c: sa.Connection, root: int) -> list[int]:
        """Return a patient and all who were merged into it."""
        found, last = [root], [root]
        while last:
            last = list(c.execute(sa.select(merges.c.prior).where(merges.c.surviving.in_(last), _IN_FORCE)).scalars())
            found += last
        return found

    def merged(self, c: sa.Connection, domain: str, issuer: str, patient_id: str) -> int:
        """Return the patient of a RIS that an object's ID means, if it was merged into another; else 0.

        An issuer that only one side names is no contradiction: most modalities name none, most RIS do. Where the ID is
        that of several patients then, nobody is meant.
        """
        if not domain or not patient_id:
            return 0
        own = self.domains.issuer_of(domain)
        wanted = "" if issuer == own else issuer
        rows = c.execute(
            sa.select(patients.c.id, patients.c.issuer_of_patient_id).where(
                patients.c.patient_id == patient_id,
                sa.func.substr(patients.c.identity, 1, len(domain) + 5) == f"ris\x1f{domain}\x1f",
            )
        ).all()
        named = {("" if row.issuer_of_patient_id == own else row.issuer_of_patient_id): row.id for row in rows}
        found = named.get(wanted) or (next(iter(named.values())) if not wanted and len(named) == 1 else named.get(""))
        return int(found) if found and any(self.path(c, found)) else 0
