"""The migrations make what the tables say: columns, defaults, keys, and indexes, on both back ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from database_support import ALL, ANYBODY, HELD, NOT_REQUIRED, VERIFIED, Parts, order, record, ris_patient, uid

from radmesh.database_server.queries import StudyFilter
from radmesh.database_server.schema import MIGRATIONS, admissions, metadata, patients
from radmesh.dicom.uids import study_hash
from radmesh.sql.engine import Database

# The name index has tables of its own, and there are indexes that only one of the back ends knows.
_SPECIAL = ("patient_names", "alembic_version", "ix_patients_name_trgm", "ix_patients_id_prefix")


@pytest.fixture
def plain(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A database that the tables themselves made, without any migration."""
    if back_end == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/plain.sqlite")
        metadata.create_all(engine)
        yield engine
        engine.dispose()
        return
    server = request.getfixturevalue("postgres")
    url = server.create()
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()
    server.drop(url)


def _described(engine: sa.Engine) -> dict[str, Any]:
    """Return all that the back end knows of each table, columns in no order: one that is added later stands last."""
    there = sa.inspect(engine)

    def plain(items: list[Any]) -> list[str]:
        named = (item for item in items if not (item["name"] or "").startswith(_SPECIAL))
        return sorted(json.dumps(item, default=str, sort_keys=True) for item in named)

    return {
        table: {
            "columns": plain(there.get_columns(table)),
            "indexes": plain(there.get_indexes(table)),
            "unique": plain(there.get_unique_constraints(table)),
            "foreign": plain(there.get_foreign_keys(table)),
            "checks": plain(there.get_check_constraints(table)),
            "key": str(there.get_pk_constraint(table)),
        }
        for table in there.get_table_names()
        if not table.startswith(_SPECIAL)
    }


def test_the_migrated_schema_is_what_the_tables_say(database: Database, plain: sa.Engine) -> None:
    migrated = _described(database.engine)
    assert migrated == _described(plain)
    assert set(migrated) == set(metadata.tables)
    assert "_where" in str(migrated["jobs"]["indexes"])


def test_no_migration_reads_the_tables_of_today() -> None:
    # What the tables gain later must not appear in a revision that was made before.
    versions = sorted((MIGRATIONS / "versions").glob("*.py"))
    assert versions
    for version in versions:
        assert "radmesh.database_server" not in version.read_text(), version.name


# -- from the first schema, with data


def _first(engine: sa.Engine) -> sa.MetaData:
    """Make the first schema; return its tables as the back end has them."""
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0001")
        connection.commit()
    tables = sa.MetaData()
    tables.reflect(engine, only=lambda name, _: not name.startswith("patient_names"))
    return tables


def _fill(engine: sa.Engine, tables: sa.MetaData, first: int) -> None:
    """Write three studies as the first version does: one of each patient, and one that is held and corrected."""
    with engine.begin() as connection:

        def add(table: str, **values: Any) -> None:
            connection.execute(sa.insert(tables.tables[table]).values(values))

        for key, (patient, issuer, sex) in enumerate((("P1", "", "M"), ("P2", "HOSP", ""), ("P3", "", "F")), first):
            entry = record(study=key, sop=key, PatientID=patient, PatientName=f"Doe^{patient}")
            shown = key
            add(
                "patients",
                id=key,
                identity=f"id\x1f{issuer}\x1f{patient}-{first}",
                patient_id=f"{patient}-{first}",
                issuer_of_patient_id=issuer,
                patient_name=f"Doe^{patient}",
                name_key=f"=doe^{patient.lower()}=",
                patient_sex=sex,
            )
            if patient == "P3":
                shown = first + 50
                add(
                    "patients",
                    id=shown,
                    identity=f"corrected\x1f{entry.study_instance_uid}",
                    patient_id=f"{patient}-{first}",
                    patient_name="Roe^Right",
                    name_key="=roe^right=",
                    patient_sex="O",
                )
            add(
                "studies",
                id=key,
                study_instance_uid=entry.study_instance_uid,
                patient=shown,
                accession_number=f"A{key}",
                study_date="20260101",
                modalities="\\CT\\",
                domain="default",
                instance_count=1,
                series_count=1,
                held_count=int(patient == "P3"),
                verification=HELD if patient == "P3" else NOT_REQUIRED,
                verification_reason="NO_ORDER" if patient == "P3" else "",
                acquisition=3,
                reading=1,
                corrected=patient == "P3",
                first_receive_time=1,
                version=1,
            )
            add(
                "admissions",
                id=key,
                study=key,
                digest=entry.admission_key,
                station="CT1",
                patient_id=f"{patient}-{first}",
                issuer_of_patient_id=issuer,
                patient_name=f"Doe^{patient}",
                accession_number=f"A{key}",
                verification=HELD if patient == "P3" else NOT_REQUIRED,
                reason="NO_ORDER" if patient == "P3" else "",
                update_time=7,
            )
            add(
                "series",
                id=key,
                study=key,
                series_instance_uid=entry.series_instance_uid,
                modality="CT",
                instance_count=1,
                header=entry.header,
            )
            add(
                "instances",
                id=key,
                study=key,
                series=key,
                admission=key,
                sop_instance_uid=entry.sop_instance_uid,
                transfer_syntax_uid=entry.transfer_syntax_uid,
                sha256=entry.sha256,
                current=True,
                length=1000,
            )
            add(
                "locations",
                instance=key,
                store_id="archive-0",
                study_hash=study_hash(entry.study_instance_uid),
                generation=1,
                sequence=1,
            )
            if patient == "P3":
                for keyword, came, value in (("PatientName", "Doe^P3", "Roe^Right"), ("PatientSex", "F", "O")):
                    add(
                        "corrections",
                        study=key,
                        keyword=keyword,
                        original_value=came,
                        value=value,
                        source="user:doe",
                        actor="doe",
                        time=5,
                        in_force=True,
                    )


@pytest.fixture
def grown(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Database, sa.MetaData]]:
    """A database that the first version filled, migrated; and the tables as that version knows them."""
    server = request.getfixturevalue("postgres") if back_end == "postgresql" else None
    url = server.create() if server else f"sqlite:///{tmp_path}/radmesh.sqlite"
    engine = sa.create_engine(url)
    tables = _first(engine)
    _fill(engine, tables, 100)
    engine.dispose()
    database = Database(url, MIGRATIONS)
    yield database, tables
    database.close()
    if server:
        server.drop(url)


def test_what_the_first_version_wrote_is_there_and_can_be_decided_about(grown: tuple[Database, sa.MetaData]) -> None:
    parts = Parts(grown[0])
    assert parts.find(viewer=ANYBODY) == [uid("study", 101), uid("study", 100)]
    held = parts.study(102)
    assert (held["patient_name"], held["corrected"], held["verification"]) == ("Roe^Right", True, HELD)
    assert (held["order_id"], held["report_version"], held["domain"]) == ("", 0, "default")
    # What the modality said: nobody wrote it down then, but where it was corrected.
    assert [(row["patient_sex"], row["domain"], row["receive_time"], row["revision"]) for row in parts.listed()] == [
        ("M", "default", 7, 0),
        ("", "default", 7, 0),
        ("F", "default", 7, 1),
    ]
    # More of a patient that is known is the same patient's.
    parts.register(
        record(study=7, sop=7, PatientID="P1-100"), record(study=8, sop=8, PatientID="P2-100", IssuerOfPatientID="HOSP")
    )
    rows, _ = parts.queries.patients("", "", "", ANYBODY, 100, "")
    assert sorted((row["patient_id"], row["study_count"]) for row in rows) == [("P1-100", 2), ("P2-100", 2)]
    # Decisions, merges and reports work on it.
    entry = record(study=102, sop=102, PatientID="P3", PatientName="Doe^P3")
    parts.decide(entry, VERIFIED, order=order("A102", ris_patient("P3-100", "Ris^P3", sex="M")))
    verified = parts.study(102, ANYBODY)
    assert (verified["verification"], verified["patient_name"], verified["patient_sex"]) == (VERIFIED, "Roe^Right", "O")
    parts.statuses.correct(
        uid("study", 102), {"PatientName": "", "PatientSex": ""}, source="user:doe", expected_version=0, actor="doe"
    )
    assert (parts.study(102)["patient_name"], parts.study(102)["patient_sex"]) == ("Ris^P3", "M")
    parts.say(merge=(ris_patient("P1-100"), ris_patient("P9", "Ris^P9")))
    assert parts.queries.studies(StudyFilter(patient_id="P9"), 10, "")[0][0]["patient_name"] == "Ris^P9"
    parts.reports.save(uid("study", 100), "No fracture.", transcribed=False, actor="rad", expected_version=0)
    assert parts.reports.approve(uid("study", 100), 0, "rad")["version"] == 1


def test_the_first_version_runs_on_the_present_schema(grown: tuple[Database, sa.MetaData]) -> None:
    """What it writes meanwhile (expand, then contract) is whole: no column is missed, and all of it can be read."""
    database, tables = grown
    _fill(database.engine, tables, 200)
    parts = Parts(database)
    assert len(parts.find(viewer=ALL)) == 6
    assert parts.study(202)["patient_name"] == "Roe^Right"
    assert {row["revision"] for row in parts.rows(admissions)} == {0, 1}
    assert len(parts.rows(patients)) == 8
    with database.engine.connect() as connection:
        for table in tables.tables.values():
            connection.execute(sa.select(table).limit(1)).all()
