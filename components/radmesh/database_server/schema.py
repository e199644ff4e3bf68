"""The tables. Times are microseconds since 1970 UTC; enumerations are the numbers of database.v1 and common.v1."""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from radmesh.sql.outbox import outbox_table

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
MIGRATIONS = Path(__file__).parent / "migrations"
# SQLite gives INTEGER PRIMARY KEY, and only that, a number by itself.
Key = BigInteger().with_variant(Integer, "sqlite")


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _number(name: str, **kwargs: object) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0", **kwargs)  # type: ignore[arg-type]


patients = Table(
    "patients",
    metadata,
    Column("id", Key, primary_key=True),
    # What the row is: a patient as first received, as a RIS tells it, or as a study with corrections shows it.
    Column("identity", Text, nullable=False, unique=True),
    # Who that is: radmesh.dicom.domains; rows of one person agree in it.
    _text("who"),
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("patient_name"),
    # "=alphabetic=ideographic=phonetic=", normalised: what name queries match.
    _text("name_key"),
    _text("patient_birth_date"),
    _text("patient_sex"),
    Index(None, "patient_id"),
    Index(None, "who"),
)
studies = Table(
    "studies",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_instance_uid", String(64), nullable=False, unique=True),
    Column("patient", Key, ForeignKey("patients.id"), nullable=False, index=True),
    _text("accession_number"),
    _text("study_date"),
    _text("study_time"),
    _text("study_id"),
    _text("study_description"),
    _text("referring_physician_name"),
    # "\CT\SR\": each modality between backslashes.
    _text("modalities"),
    _text("domain"),
    _number("series_count"),
    _number("instance_count"),
    _number("bytes"),
    _number("held_count"),
    _number("defective_count"),
    _number("variant_count"),
    _number("verification"),
    _text("verification_reason"),
    _number("acquisition"),
    _number("reading"),
    Column("corrected", Boolean, nullable=False, server_default=text("false")),
    _number("first_receive_time"),
    _number("last_receive_time"),
    _number("version"),
    # What it is linked to: an order, and the patient of a RIS (row of patients) whom it is shown as; "", 0 = none.
    _text("order_id"),
    _number("person"),
    _number("report_version"),
    Index("ix_studies_newest", "study_date", "id"),
    Index("ix_studies_oldest", "first_receive_time", "id"),
    Index("ix_studies_accession_number", "accession_number"),
    Index("ix_studies_verification", "verification", "study_date"),
    Index("ix_studies_reading", "reading", "study_date"),
    Index("ix_studies_person", "person"),
    Index("ix_studies_order_id", "order_id"),
)
series = Table(
    "series",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    _text("modality"),
    _text("series_number"),
    _text("series_description"),
    _text("body_part_examined"),
    _text("series_date"),
    _text("series_time"),
    _text("station_name"),
    _text("manufacturer"),
    _number("instance_count"),
    # The queryable header of its first instance: what rarer query keys are answered from.
    Column("header", LargeBinary, nullable=False),
    UniqueConstraint("study", "series_instance_uid"),
    Index(None, "series_instance_uid"),
)
admissions = Table(
    "admissions",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    _text("station"),
    _text("patient_id"),
    _text("issuer_of_patient_id"),
    _text("patient_name"),
    _text("patient_birth_date"),
    _text("patient_sex"),
    _text("accession_number"),
    _number("verification"),
    _text("reason"),
    _number("update_time"),
    _text("domain"),
    # DICOM keywords, one a line.
    _text("mismatched"),
    # Of VERIFIED: the order, and its patient (row of patients) as it was then.
    _text("order_id"),
    _number("person"),
    _text("source_address"),
    _number("receive_time"),
    # Rises with every decision; 0 = nobody has decided, the ticket's word stands.
    _number("revision"),
    UniqueConstraint("study", "digest"),
    Index("ix_admissions_verification", "verification", "id"),
    Index("ix_admissions_reason", "verification", "reason", "id"),
    Index("ix_admissions_domain", "verification", "domain", "id"),
    Index("ix_admissions_accession_number", "accession_number"),
    Index("ix_admissions_patient_id", "patient_id"),
)
# Decisions about objects that are not registered yet, as JSON.
verdicts = Table(
    "verdicts",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    _text("study_instance_uid"),
    _number("verification"),
    _text("reason"),
    _text("decision"),
    _number("time", index=True),
)
instances = Table(
    "instances",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False, index=True),
    Column("series", Key, ForeignKey("series.id"), nullable=False, index=True),
    Column("admission", Key, ForeignKey("admissions.id"), nullable=False, index=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    _text("sop_class_uid"),
    _text("instance_number"),
    _number("sort_number"),
    _number("rows"),
    _number("columns"),
    _number("number_of_frames"),
    # Kept since the ninth revision: empty of what was registered before.
    _number("bits_allocated"),
    _text("acquisition_number"),
    _text("content_date"),
    _text("content_time"),
    _number("length"),
    Column("current", Boolean, nullable=False),
    _number("variant"),
    _text("defect"),
    _text("remarks"),
    _text("calling_ae_title"),
    _number("receive_time"),
    UniqueConstraint("sop_instance_uid", "transfer_syntax_uid", "sha256"),
)
locations = Table(
    "locations",
    metadata,
    Column("id", Key, primary_key=True),
    Column("instance", Key, ForeignKey("instances.id"), nullable=False, index=True),
    Column("store_id", String(64), nullable=False),
    Column("study_hash", String(32), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    _number("residence"),
    UniqueConstraint("store_id", "study_hash", "generation", "sequence"),
)
# What web caches have of instances: of content, since a row of instances is of one content.
renditions = Table(
    "renditions",
    metadata,
    Column("instance", Key, ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True),
    Column("store_id", String(64), primary_key=True),
    _number("state"),
    _text("reason"),
    _number("frame"),
    _number("number_of_frames"),
    # Of the frames that are served.
    _text("served_syntax_uid"),
    _text("photometric_interpretation"),
    Column("derived", Boolean, nullable=False, server_default=text("false")),
    _number("bytes"),
)
# How many current instances of a study a web cache has, and (store_id "") any of them: kept with the renditions, since
# lists show it. Who changes renditions of a study holds the row with "".
curated = Table(
    "curated",
    metadata,
    Column("study", Key, ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True),
    Column("store_id", String(64), primary_key=True),
    _number("instance_count"),
    Index(None, "store_id", "study"),
)
marks = Table(
    "marks",
    metadata,
    Column("store_id", String(64), primary_key=True),
    Column("study_hash", String(32), primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    _number("registered"),
)
history = Table(
    "history",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False),
    _text("axis"),
    _text("from_state"),
    _text("to_state"),
    _text("reason"),
    _text("actor"),
    _number("time"),
    _number("version"),
    Index(None, "study", "id"),
)
corrections = Table(
    "corrections",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False),
    _text("keyword"),
    _text("original_value"),
    _text("value"),
    _text("source"),
    _text("actor"),
    _number("time"),
    Column("in_force", Boolean, nullable=False),
    Index(None, "study", "id"),
)
orders = Table(
    "orders",
    metadata,
    Column("id", Key, primary_key=True),
    Column("order_id", Text, nullable=False, unique=True),
    _text("domain"),
    _text("accession_number"),
    _text("placer_order_number"),
    _text("filler_order_number"),
    _text("study_instance_uid"),
    # Whose it was told to be, and who that is now that patients were merged.
    Column("patient", Key, ForeignKey("patients.id"), nullable=False, index=True),
    Column("shown", Key, ForeignKey("patients.id"), nullable=False, index=True),
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
    _number("update_time"),
    Index("ix_orders_scheduled_time", "scheduled_time", "id"),
    Index("ix_orders_accession_number", "accession_number"),
    *(
        Index(f"ix_orders_{name}", name, "scheduled_time", "id")
        for name in ("domain", "status", "modality", "station_ae_title")
    ),
)
# How far each store of a Connectivity Manager has told.
managers = Table(
    "managers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("epoch", LargeBinary(16), primary_key=True),
    _number("sequence"),
)
# Those in force (undo_time 0) make trees: whoever is a prior patient is so once.
merges = Table(
    "merges",
    metadata,
    Column("id", Key, primary_key=True),
    _text("domain"),
    Column("prior", Key, ForeignKey("patients.id"), nullable=False),
    Column("surviving", Key, ForeignKey("patients.id"), nullable=False, index=True),
    _number("time"),
    _number("undo_time"),
    _text("undo_actor"),
    Index(
        "uq_merges_in_force",
        "prior",
        unique=True,
        sqlite_where=text("undo_time = 0"),
        postgresql_where=text("undo_time = 0"),
    ),
    Index(None, "domain", "id"),
)
merged_studies = Table(
    "merged_studies",
    metadata,
    Column("merge", Key, ForeignKey("merges.id"), primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), primary_key=True),
)
reports = Table(
    "reports",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study", Key, ForeignKey("studies.id"), nullable=False),
    _number("version"),
    _number("state"),
    _text("text"),
    _text("author"),
    _text("approver"),
    _number("update_time"),
    _number("approve_time"),
    _number("delivery"),
    _text("delivery_reason"),
    _text("control_id"),
    UniqueConstraint("study", "version"),
    Index("ix_reports_delivery", "delivery", "id"),
)
stores = Table(
    "stores",
    metadata,
    Column("store_id", String(64), primary_key=True),
    _number("kind"),
    _text("target"),
    _text("put_target"),
    _text("client_url"),
    Column("epoch", LargeBinary(16), nullable=False),
    _number("free_bytes"),
    Column("accepting", Boolean, nullable=False),
    _number("unregistered"),
    _number("heartbeat_time"),
)
placements = Table(
    "placements",
    metadata,
    Column("study_instance_uid", String(64), primary_key=True),
    Column("store_id", String(64), nullable=False),
    _number("time"),
    Index(None, "store_id", "time"),
)
jobs = Table(
    "jobs",
    metadata,
    Column("id", Key, primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("key", String(256), nullable=False),
    _text("payload"),
    _number("state"),
    _number("attempt"),
    _number("max_attempts"),
    _text("owner"),
    _number("fence"),
    _number("lease_until"),
    _number("due_time"),
    _text("reason"),
    _text("message"),
    Index(None, "kind", "state", "due_time"),
    # One live job of a kind about a thing.
    Index(
        "uq_jobs_live",
        "kind",
        "key",
        unique=True,
        sqlite_where=text("state IN (1, 2)"),
        postgresql_where=text("state IN (1, 2)"),
    ),
)
# One row, locked by every transaction that takes a revision: so they become visible in order.
feed = Table("feed", metadata, Column("id", Integer, primary_key=True), _number("revision"), _number("oldest"))
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("key"),
    _number("time"),
)
outbox = outbox_table(metadata)


def _entries(name: str) -> Table:
    """What the configuration fills first, and persons edit: `entry` is JSON.

    Of what was removed the row stays, so that the configuration does not bring it back.
    """
    return Table(
        name,
        metadata,
        Column("name", String(64), primary_key=True),
        _text("entry"),
        Column("edited", Boolean, nullable=False, server_default=text("false")),
        Column("removed", Boolean, nullable=False, server_default=text("false")),
        # Rises with every change of any of them.
        _number("version"),
        _number("update_time"),
    )


# The DICOM nodes outside (radmesh.dicom.stations), and by which rules studies go to them (radmesh.dicom.routes).
stations = _entries("stations")
routes = _entries("routes")
# One row: up to which revision of the feed changed studies are queued to be routed, and when that was; -1 = nothing is
# to be routed.
routing = Table(
    "routing",
    metadata,
    Column("id", Integer, primary_key=True),
    _number("revision"),
    _number("time"),
)
# What stations were sent, by their AE titles: a row of instances is of one content.
deliveries = Table(
    "deliveries",
    metadata,
    Column("instance", Key, ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True),
    Column("station", String(16), primary_key=True),
    _number("state"),
    _number("job"),
    _number("time"),
    # Of the request whether the station stores it for good; empty = it was not asked.
    _text("transaction_uid"),
    Index(None, "transaction_uid"),
)
# Whether stations store for good what a job has sent.
station_commitments = Table(
    "station_commitments",
    metadata,
    Column("transaction_uid", String(64), primary_key=True),
    _text("station"),
    _number("job"),
    _number("request_time"),
    # When it answered; 0 = it has not.
    _number("finish_time"),
)
# Requests for Storage Commitment. `items` is JSON: [SOP Class UID, SOP Instance UID] of each object.
commitments = Table(
    "commitments",
    metadata,
    Column("id", Key, primary_key=True),
    Column("station", String(16), nullable=False),
    Column("transaction_uid", String(64), nullable=False),
    _text("called_ae_title"),
    _text("items"),
    # Rises with each request of the same transaction.
    _number("version"),
    _number("request_time"),
    # When the station had its report; 0 = it has not.
    _number("finish_time"),
    UniqueConstraint("station", "transaction_uid"),
    Index(None, "finish_time"),
)
# What modalities say of the acquisition (MPPS): steps, the studies they belong to, and every message as it came.
procedure_steps = Table(
    "procedure_steps",
    metadata,
    Column("id", Key, primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    _text("station"),
    # "IN PROGRESS", "COMPLETED", "DISCONTINUED".
    _text("status"),
    _number("create_time"),
    _number("update_time"),
)
procedure_step_studies = Table(
    "procedure_step_studies",
    metadata,
    Column("step", Key, ForeignKey("procedure_steps.id", ondelete="CASCADE"), primary_key=True),
    Column("study_instance_uid", String(64), primary_key=True),
    Index(None, "study_instance_uid"),
)
procedure_step_messages = Table(
    "procedure_step_messages",
    metadata,
    Column("step", Key, ForeignKey("procedure_steps.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    _text("station"),
    _text("transfer_syntax_uid"),
    Column("data_set", LargeBinary, nullable=False),
    # By which a message is known whose call is repeated.
    Column("request_id", LargeBinary(16), nullable=False),
    _number("time"),
)
users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    _text("display_name"),
    _number("role"),
    _text("password_hash"),
    _number("create_time"),
    _number("last_sign_in_time"),
)
sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    _text("session_id"),
    Column("user_name", String(64), nullable=False, index=True),
    _number("expire_time", index=True),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Key, primary_key=True),
    _number("time"),
    _text("action"),
    _text("actor"),
    _text("source_address"),
    _text("outcome"),
    _text("object"),
    _text("detail"),
    Index(None, "action", "id"),
    Index(None, "actor", "id"),
    Index(None, "object", "id"),
)
