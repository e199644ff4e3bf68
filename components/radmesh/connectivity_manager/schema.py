"""The tables of a Connectivity Manager. Times are microseconds since 1970 UTC, moments of HL7 as they came."""

from pathlib import Path

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint

MIGRATIONS = Path(__file__).parent / "migrations"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Key = BigInteger().with_variant(Integer, "sqlite")


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


# One row: the store's identity, and the sequence of the last event.
meta = Table(
    "meta", metadata, Column("id", Integer, primary_key=True), Column("epoch", LargeBinary(16)), _number("sequence")
)
# The log: what came in and what goes out, as bytes; dead letters are rows of it.
messages = Table(
    "messages",
    metadata,
    Column("id", Key, primary_key=True),
    Column("domain", String(32), nullable=False),
    _number("direction"),
    _number("state"),
    _text("type"),
    _text("control_id"),
    _text("sending_application"),
    _text("sending_facility"),
    # SHA-256 without MSH-7: what a replay has in common with its first.
    Column("digest", LargeBinary(32), nullable=False),
    _number("time"),
    _text("ack_code"),
    _text("reason"),
    _text("error"),
    _text("remarks"),
    _number("attempts"),
    _number("replays"),
    Column("raw", LargeBinary, nullable=False),
    Column("ack", LargeBinary, nullable=False),
    Index("ix_messages_identity", "domain", "control_id", "digest"),
    Index("ix_messages_state", "domain", "direction", "state", "id"),
)
patients = Table(
    "patients",
    metadata,
    Column("id", Key, primary_key=True),
    Column("domain", String(32), nullable=False),
    Column("patient_id", Text, nullable=False),
    Column("issuer_of_patient_id", Text, nullable=False, server_default=""),
    _text("patient_name"),
    _text("patient_birth_date"),
    _text("patient_sex"),
    # MSH-7 of what told it last.
    _text("said_at"),
    # Row that this one is from now on (A40, A47), through however many merges; 0 = itself.
    _number("merged_into"),
    # Row that it was merged into by the merge that named it: what an undo takes back.
    _number("surviving"),
    UniqueConstraint("domain", "patient_id", "issuer_of_patient_id"),
    Index(None, "merged_into"),
    Index(None, "surviving"),
)
orders = Table(
    "orders",
    metadata,
    Column("id", Key, primary_key=True),
    Column("domain", String(32), nullable=False),
    Column("order_id", Text, nullable=False, unique=True),
    Column("patient", Key, nullable=False),
    # Row of the patient that a message named when it gave the order to `patient`, who that is now.
    _number("named"),
    _text("accession_number"),
    _text("placer_order_number"),
    _text("filler_order_number"),
    _text("study_instance_uid"),
    # OrderStatus of database.v1.
    _number("status"),
    _text("scheduled_time"),
    _text("modality"),
    _text("station_ae_title"),
    _text("procedure_code"),
    _text("procedure_code_scheme"),
    _text("procedure_description"),
    _text("requested_procedure_id"),
    _text("scheduled_procedure_step_id"),
    _text("referring_physician_name"),
    _text("said_at"),
    _number("update_time"),
    Index(None, "domain", "accession_number"),
    Index(None, "domain", "study_instance_uid"),
    Index(None, "domain", "filler_order_number"),
    Index(None, "domain", "placer_order_number"),
    Index("ix_orders_scheduled", "domain", "scheduled_time"),
    Index(None, "patient"),
    Index(None, "named"),
)
# Merges that were undone, by the name that the Database Server gave each: an undo that comes twice counts once.
undone = Table("undone", metadata, Column("merge", String(64), primary_key=True), _number("time"))
# What the Database Server is to be told, in order; rows go when it has it.
events = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
)
# Reports on their way to a RIS: one row a version, with the message that is sent and no other.
reports = Table(
    "reports",
    metadata,
    Column("id", Key, primary_key=True),
    Column("domain", String(32), nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    _number("version"),
    # Row of `messages`.
    _number("message"),
    # DeliveryState of database.v1.
    _number("state"),
    _text("reason"),
    _number("next_time"),
    # Times that the RIS said that it could not apply it (AE, CE).
    _number("errors"),
    # 1: the Database Server has not heard of `state` yet. 2: it is to hand the report over again.
    _number("untold"),
    UniqueConstraint("study_instance_uid", "version"),
    Index(None, "domain", "state", "id"),
    Index(None, "untold"),
)
