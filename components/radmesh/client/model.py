"""What the client hands out: frozen dataclasses, no protobuf."""

from base64 import b64encode
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Study:
    """A study as the caller may see it.

    Dates are DICOM DA (YYYYMMDD) and times DICOM TM, as received; empty if absent. `patient_name` is Unicode, its
    component groups joined by "=" (PS3.5 6.2.1.1). `bytes` counts the data sets of the current instances. `order_id` is
    that of the order it is linked to, `report_version` that of the newest report; empty and 0 if there is none.
    `curated_count` are the instances whose pictures are in a web cache, or found to be none: in the end all.
    """

    study_instance_uid: str
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_date: str
    study_time: str
    study_id: str
    study_description: str
    referring_physician_name: str
    modalities: tuple[str, ...]
    series_count: int
    instance_count: int
    bytes: int
    verification: str
    verification_reason: str
    acquisition: str
    reading: str
    domain: str
    stations: tuple[str, ...]
    defective_count: int
    variant_count: int
    corrected: bool
    version: int
    last_receive_time: datetime | None
    order_id: str = ""
    report_version: int = 0
    curated_count: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """A series of a study."""

    series_instance_uid: str
    modality: str
    series_number: str
    series_description: str
    body_part_examined: str
    series_date: str
    series_time: str
    manufacturer: str
    instance_count: int


@dataclass(frozen=True, slots=True)
class StudyDetail:
    """A study with its series."""

    study: Study
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """A copy of an instance: the store that has it, its residence there, and what it is called there."""

    store_id: str
    residence: str
    generation: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance: the current one, or a variant kept beside it.

    `sha256` is the hexadecimal SHA-256 of the data set bytes as received (without preamble and group 0002), `length`
    their number.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    length: int
    instance_number: str
    rows: int
    columns: int
    number_of_frames: int
    current: bool
    variant: str
    defect: str
    verification: str
    calling_ae_title: str
    remarks: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()


@dataclass(frozen=True, slots=True)
class FrameSize:
    """Bytes of a frame, and of its prefixes that are smaller pictures: lowest resolution first, the last the whole.

    Without `resolution_offsets` no prefix is a picture.
    """

    size: int
    resolution_offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """What the web cache has of an instance.

    `state` is CODED (lossless HTJ2K, 1.2.840.10008.1.2.4.202), PASSED (the original compressed frames), ORIGINAL (the
    original frames, for they cannot be coded) or NONE; `reason` says why it is one of the last two, and `frame` of
    which frame that speaks (0 = all). `transfer_syntax_uid` and `photometric_interpretation` are of the frames that
    are served; `derived`: a palette was applied, or YBR made RGB. `sha256` is that of the instance.
    """

    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    state: str
    reason: str
    frame: int
    transfer_syntax_uid: str
    photometric_interpretation: str
    derived: bool
    bytes: int
    frames: tuple[FrameSize, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected value that is laid over a study: DICOM keyword, what was received, what it is now, and from where."""

    keyword: str
    original_value: str
    value: str
    source: str
    actor: str
    time: datetime


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A move of a study's status: on which axis, from what to what, why, by whom."""

    axis: str
    before: str
    after: str
    reason: str
    actor: str
    time: datetime


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of one file.

    `outcome` is STORED, ALREADY, VARIANT, or the reason of a failure; `message` then says what to do.
    """

    path: str
    outcome: str
    message: str = ""
    study_instance_uid: str = ""
    sop_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    sha256: str = ""
    registered: bool = False

    @property
    def stored(self) -> bool:
        """Whether the object is durable in the cluster."""
        return self.outcome in ("STORED", "ALREADY", "VARIANT")


@dataclass(frozen=True, slots=True)
class User:
    """A user of the cluster."""

    name: str
    display_name: str
    role: str
    last_sign_in_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Station:
    """A DICOM node outside, as docs/reference/config.md explains it under [[stations]].

    `edited`: by a person; until then it is as the configuration has it.
    """

    name: str
    ae_title: str
    addresses: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()
    domain: str = "default"
    verification: str = "advisory"
    study_key: str = "accession else date+modality"
    patient_key: str = "id"
    accession_identifies_patient: bool = False
    on_ris_unavailable: str = "mark"
    host: str = ""
    port: int = 0
    tls: bool = False
    certificate: str = ""
    character_set: str = ""
    transfer_syntaxes: tuple[str, ...] = ()
    commit_report: str = "auto"
    options: tuple[str, ...] = ()
    edited: bool = False
    version: int = 0
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A rule by which studies leave by themselves, as docs/reference/config.md explains it under [[routes]].

    `edited`: by a person; until then it is as the configuration has it.
    """

    name: str
    destinations: tuple[str, ...]
    stations: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    verification: tuple[str, ...] = ("NOT_REQUIRED", "VERIFIED")
    reading: tuple[str, ...] = ()
    window: str = ""
    key_images: bool = False
    enabled: bool = True
    edited: bool = False
    version: int = 0
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a route leads: `known` = the registry has host and port; `undelivered` = images it was not sent yet."""

    station: str
    known: bool
    undelivered: int


@dataclass(frozen=True, slots=True)
class RouteTest:
    """Whether a route would fire for a study now: `reason` is empty, or says what does not fit, or is waited for."""

    route: str
    fires: bool
    reason: str
    destinations: tuple[Destination, ...]


@dataclass(frozen=True, slots=True)
class Sending:
    """A study that is sent to a station: QUEUED, LEASED (on its way), SUCCEEDED or FAILED.

    `attempt` counts tries; `reason` and `message` are of the last one that failed, `due_time` is when the next one is.
    `by` is who began it, `routes` are the rules that did.
    """

    id: int
    study_instance_uid: str
    station: str
    state: str
    attempt: int
    due_time: datetime | None
    reason: str
    message: str
    by: str
    routes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """An object that could not be stored as DICOM; its bytes were kept."""

    id: str
    receive_time: datetime
    calling_ae_title: str
    source_address: str
    reason: str
    tag: str
    message: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    length: int
    cut: bool


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A row of the audit table."""

    id: int
    time: datetime
    action: str
    actor: str
    source_address: str
    outcome: str
    object: str
    detail: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that somebody should look at."""

    reason: str
    message: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """What a component says of itself; `state` UNREACHABLE when it did not answer."""

    component: str
    instance: str
    state: str
    version: str = ""
    pid: int = 0
    start_time: datetime | None = None
    figures: dict[str, float] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """An archive or a spool, as the Database Server knows it."""

    store_id: str
    kind: str
    alive: bool
    accepting: bool
    free_bytes: int
    unregistered: int
    heartbeat_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Every component and every store."""

    time: datetime
    components: tuple[ComponentStatus, ...]
    stores: tuple[StoreStatus, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything serves, without an alarm."""
        return all(c.state == "SERVING" and not c.alarms for c in self.components) and all(s.alive for s in self.stores)


@dataclass(frozen=True, slots=True)
class RisPatient:
    """A patient as a RIS says it; the date is YYYYMMDD, `patient_name` as in a Study."""

    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str


@dataclass(frozen=True, slots=True)
class Order:
    """A requested procedure, as the RIS told it last.

    `status` is SCHEDULED, IN_PROGRESS, COMPLETED or CANCELLED; `scheduled_time` YYYYMMDDHHMMSS or shorter.
    """

    order_id: str
    domain: str
    accession_number: str
    placer_order_number: str
    filler_order_number: str
    study_instance_uid: str
    patient: RisPatient
    status: str
    scheduled_time: str
    modality: str
    station_ae_title: str
    procedure_code: str
    procedure_description: str
    requested_procedure_id: str
    referring_physician_name: str
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Admission:
    """Instances of a study that one station sent with the same patient and accession number; they are held together.

    `admission_key` (SHA-256, hexadecimal) names it. The patient is what the modality sent. `verification` is PENDING,
    VERIFIED, UNVERIFIED, HELD or NOT_REQUIRED, `reason` why, and `mismatched_keywords` what contradicts the order.
    """

    admission_key: str
    study_instance_uid: str
    station: str
    source_address: str
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_date: str
    modalities: tuple[str, ...]
    study_description: str
    instance_count: int
    verification: str
    reason: str
    mismatched_keywords: tuple[str, ...]
    domain: str
    order_id: str
    receive_time: datetime | None
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Merge:
    """Two patients that a RIS made one: studies of `prior` became those of `surviving`, until it is undone."""

    id: int
    domain: str
    prior: RisPatient
    surviving: RisPatient
    study_count: int
    time: datetime | None
    undo_time: datetime | None
    undo_actor: str


@dataclass(frozen=True, slots=True)
class Report:
    """A version of a study's report; 2 and later are addenda.

    `state` is DRAFT or APPROVED. `delivery` is how it fares at the RIS: WAITING, DELIVERED, REFUSED, NOT_CONFIGURED, or
    empty for a draft; `control_id` is MSH-10 of the message that carries it.
    """

    study_instance_uid: str
    version: int
    state: str
    text: str
    author: str
    approver: str
    update_time: datetime | None
    approve_time: datetime | None
    delivery: str
    delivery_reason: str
    control_id: str


@dataclass(frozen=True, slots=True)
class Domain:
    """A RIS domain; `available` is false when its feed, or its Connectivity Manager, is silent for too long."""

    name: str
    manager: str
    hl7_port: int
    available: bool
    last_message_time: datetime | None
    orders: int
    messages: int
    dead_letters: int
    reports_waiting: int


@dataclass(frozen=True, slots=True)
class Message:
    """An HL7 message in the log of a Connectivity Manager.

    `direction` is IN or OUT; `state` DONE, IGNORED (nothing in it concerns the cluster), WAITING (to be sent) or DEAD
    (it had no effect, or the RIS refused it). `raw` and `ack` are the bytes that were sent, of one message only.
    """

    id: int
    manager: str
    domain: str
    direction: str
    state: str
    type: str
    control_id: str
    sending_application: str
    sending_facility: str
    time: datetime | None
    ack_code: str
    reason: str
    error: str
    attempts: int
    replays: int
    length: int
    raw: bytes = b""
    ack: bytes = b""


def jsonable(value: Any) -> Any:
    """Return `value`, a dataclass of this module or a list of them, as JSON-ready data."""
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return jsonable(asdict(value))
    return value
