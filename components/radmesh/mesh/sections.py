"""What belongs to no single component of the configuration: [mesh], [[stations]], [[routes]], [[domains]]."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from radmesh.dicom import domains, routes, stations
from radmesh.runtime.config import Configuration, Duration, Size, setting

TRANSPORTS = ("unix", "tls")
HL7_VERSIONS = ("2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6")
HL7_TLS = ("off", "on", "mutual")


def _ae_title(value: str) -> str | None:
    # PS3.5 table 6.2-1, VR AE: 16 characters at most, no backslash, no control characters, not spaces alone.
    if (
        1 <= len(value) <= 16
        and value.isascii()
        and value.isprintable()
        and "\\" not in value
        and value.strip() == value
    ):
        return None
    return "must be 1 to 16 printable ASCII characters without backslash or spaces around"


def _network(value: str) -> str | None:
    import ipaddress  # noqa: PLC0415 - only where an address is given

    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return 'must be an IP address or network, such as "10.1.2.3" or "10.1.0.0/16"'
    return None


def _host(value: str) -> str | None:
    if not value or re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", value):
        return None
    return 'must be a host name or an address, without port, such as "archive-server-0.archive-server" or "[fd00::1]"'


def _station_host(value: str) -> str | None:
    good = not value or re.fullmatch(r"[\w.-]{1,253}|[0-9a-fA-F:.]{2,45}", value)
    return None if good else 'must be a host name or an address, without port, such as "ws3.example.org" or "fd00::1"'


def _station(value: str) -> str | None:
    good = len(value) <= 64 and value.isprintable() and value.strip() == value and not {"/", "\\"}.intersection(value)
    return None if good else "must be at most 64 printable characters without slash, backslash or spaces around"


def _fingerprint(value: str) -> str | None:
    return None if not value or re.fullmatch(r"[0-9a-f]{64}", value) else "must be 64 lower-case hexadecimal digits"


def _uid(value: str) -> str | None:
    return None if re.fullmatch(r"[0-9.]{1,64}", value) else "must be a UID"


def _name(value: str) -> str | None:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value):
        return None
    return "must be 1 to 32 lower-case letters, digits, - and _"


def _domain(value: str) -> str | None:
    return f"must be another name: {value} says that the object tells" if value == domains.BY_OBJECT else _name(value)


def _issuer(value: str) -> str | None:
    # PS3.5 6.2: an LO of 64 characters.
    if len(value) <= 64 and value.isprintable() and "\\" not in value and value.strip() == value:
        return None
    return "must be at most 64 printable characters without backslash or spaces around"


def _report_to(value: str) -> str | None:
    host, _, port = value.removeprefix("mllps://").rpartition(":")
    if not value or (re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) and port.isdecimal() and 0 < int(port) < 65536):
        return None
    return 'must be "host:port" or "mllps://host:port"'


def _path(value: str) -> str | None:
    # Whether there is such a file only its manager can tell: the others may run elsewhere.
    return None if not value or (value.startswith("/") and "\0" not in value) else "must be an absolute path"


def _charset(value: str) -> str | None:
    from radmesh.hl7.charsets import canonical  # noqa: PLC0415 - only where a character set is given

    wrong = [name for name in value.split("~") if not canonical(name)]
    return (
        f"must be names of HL7 table 0211, such as 8859/1 or UNICODE UTF-8, not {wrong[0] or 'empty'}"
        if wrong
        else None
    )


def _application(value: str) -> str | None:
    if len(value) <= 180 and value.isprintable():
        return None
    return "must be at most 180 printable characters"


@dataclass(frozen=True)
class Mesh:
    """[mesh]: where data is, and how the components reach each other."""

    data: str = setting("radmesh-data", doc="Directory of everything the cluster keeps.", env="RADMESH_DATA")
    transport: str = setting(
        "unix",
        doc="Between components on one machine: `unix` sockets in a 0700 directory with a token each, or mutual `tls`.",
        env="RADMESH_TRANSPORT",
        choices=TRANSPORTS,
    )
    listen: str = setting(
        "",
        doc="host:port where the instances of `radmesh serve` listen with mutual TLS; empty = as `transport` says.",
        env="RADMESH_LISTEN",
    )
    advertise: str = setting(
        "",
        doc="Host that the others are told to reach this process at, which its certificate must name; empty = that of "
        "`listen`, or this machine's name where that is 0.0.0.0 or [::].",
        env="RADMESH_ADVERTISE",
        rule=_host,
    )
    line_port: int = setting(
        0,
        doc="Port where an Archive Server or Network Gateway takes objects, beside that of `listen`; 0 = any free one.",
        env="RADMESH_LINE_PORT",
        minimum=0,
        maximum=65535,
    )
    health_listen: str = setting(
        "",
        doc="host:port of a plaintext health service for a kubelet, beside the instance's own; empty = none.",
        env="RADMESH_HEALTH_LISTEN",
    )
    addresses: dict[str, str] = setting(
        {},
        doc="gRPC target of components or instances elsewhere, such as "
        '`database-server = "dns:///database-server:7000"`; what is not named is on this machine.',
    )
    credentials: str = setting(
        "",
        doc="Directory of certificates, tokens and ticket keys; empty = `credentials` in the data directory.",
        env="RADMESH_CREDENTIALS",
    )
    archive_servers: int = setting(1, doc="Archive servers that `radmesh up` runs.", minimum=1, maximum=16)
    connectivity_managers: int = setting(
        1,
        doc="Connectivity Managers that `radmesh up` runs; `manager` of a domain says which serves it.",
        minimum=1,
        maximum=16,
    )
    curators: int = setting(1, doc="Curators that `radmesh up` runs.", minimum=1, maximum=16)
    start_timeout: Duration = setting(
        120.0, doc="A component that is not ready after this time is killed and started again.", minimum=1
    )
    hang_timeout: Duration = setting(
        60.0,
        doc="A component that serves, and then does not answer for so long, is killed and started again; five times as "
        "long if it computes, and never while it waits for a disk. 0 = none is.",
        minimum=0,
    )
    drain_timeout: Duration = setting(
        10.0, doc="What has begun may take this long to finish when a component is told to stop.", minimum=0
    )
    certificate_life: Duration = setting(
        365 * 86400.0,
        doc="Certificates that `radmesh up` makes are valid for so long; it makes new ones, without a restart, when a "
        "sixth of that is left.",
        minimum=5,
        maximum=3650 * 86400,
    )
    log_size: Size = setting(
        16 << 20, doc="A log file that is larger at start is put aside; three are kept.", minimum=1024
    )
    metrics_port: int = setting(
        0,
        doc="Port of /metrics of the first instance, the next has the next; 0 = none. It listens on loopback, or where "
        "`listen` says.",
        env="RADMESH_METRICS_PORT",
        minimum=0,
        maximum=65000,
    )


@dataclass(frozen=True)
class Station:
    """[[stations]]: a DICOM node outside. With none listed, every station may connect from loopback."""

    ae_title: str = setting(doc="Calling AE title of the station.", rule=_ae_title)
    addresses: tuple[str, ...] = setting(
        (), doc="IP addresses or networks it may call from; empty = any.", rule=_network, maximum=256
    )
    grants: tuple[str, ...] = setting(("store",), doc="What it may do.", choices=stations.GRANTS)
    domain: str = setting(
        "default",
        doc="RIS domain of its studies: a name under [[domains]]; `default` is also the only one; `by-object`: the "
        "issuer of the Patient ID in the object, else its accession number tells.",
        rule=_name,
    )
    verification: str = setting(
        "advisory",
        doc="What becomes of a study that has no order: marked (`advisory`) or held (`required`). A study that "
        "contradicts its order is held; with `off` nobody is asked.",
        choices=stations.VERIFICATION,
    )
    study_key: str = setting(
        "accession else date+modality",
        doc="How a study finds its order; an order with its Study Instance UID is found by that.",
        choices=stations.STUDY_KEYS,
    )
    patient_key: str = setting(
        "id", doc="What of the patient must agree with the order.", choices=stations.PATIENT_KEYS
    )
    accession_identifies_patient: bool = setting(
        default=False,
        doc="Unsafe: an accession number that agrees is enough, whatever patient the object names.",
    )
    on_ris_unavailable: str = setting(
        "mark",
        doc="What becomes of a study while its RIS cannot be asked: visible and marked, or held. It heals by itself.",
        choices=stations.ON_RIS_UNAVAILABLE,
    )
    name: str = setting(
        "", doc="What `radmesh stations` calls it; empty = its AE title. Needed where two have the same.", rule=_station
    )
    host: str = setting("", doc="Host where it takes associations; empty = it is not sent to.", rule=_station_host)
    port: int = setting(0, doc="Its port there.", minimum=0, maximum=65535)
    tls: bool = setting(
        default=False,
        doc="Whether it is sent to over TLS; it has to show `certificate`, or one of [dicom] `tls_ca` for its host.",
    )
    certificate: str = setting(
        "",
        doc="SHA-256 of the certificate that it has to show, 64 lower-case hexadecimal digits; empty = none.",
        rule=_fingerprint,
    )
    character_set: str = setting(
        "",
        doc="Specific Character Set of what it is answered with; empty = one that holds the answer.",
        choices=stations.CHARACTER_SETS,
    )
    transfer_syntaxes: tuple[str, ...] = setting(
        (), doc="Transfer Syntax UIDs that it is sent objects in, the best first; empty = as stored.", rule=_uid
    )
    commit_report: str = setting(
        "auto",
        doc="Where it is told what is stored for good (Storage Commitment): on a `new` association, on the `same` that "
        "it asked on, or `auto`: a new one if it has a host.",
        choices=stations.COMMIT_REPORTS,
    )
    options: tuple[str, ...] = setting(
        (),
        doc="What is done for it beside: `availability` tells it of every study that is complete, and again when more "
        "has come (Instance Availability Notification); `commit` asks it, for all that it was sent, whether it stores "
        "that for good (Storage Commitment), and sends once more what it does not; `mpps` forwards performed procedure "
        "steps of others to it.",
        choices=stations.OPTIONS,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between its settings."""
        if bool(self.host) != bool(self.port):
            yield "port", "is needed with host, and host with it"

    def station(self) -> stations.Station:
        """Return the station as the components know it."""
        return stations.Station(**{field.name: getattr(self, field.name) for field in fields(self)})


def _modality(value: str) -> str | None:
    return None if re.fullmatch(r"[A-Z0-9_]{1,16}", value) else "must be a modality, such as CT"


@dataclass(frozen=True)
class Route:
    """[[routes]]: a rule by which studies that are complete leave by themselves; what is empty does not restrict."""

    name: str = setting(doc="What `radmesh routes` calls it.", rule=_station)
    destinations: tuple[str, ...] = setting(
        doc="AE titles of the stations that get the study, each image once.", rule=_ae_title, maximum=64
    )
    stations: tuple[str, ...] = setting((), doc="AE titles that sent some of it.", rule=_ae_title, maximum=64)
    modalities: tuple[str, ...] = setting((), doc="At least one of its modalities.", rule=_modality, maximum=64)
    verification: tuple[str, ...] = setting(
        ("NOT_REQUIRED", "VERIFIED"),
        doc="What it may be verified as. What is held never leaves, and what is unverified since its RIS did not "
        "answer waits for that.",
        choices=routes.VERIFICATION,
    )
    reading: tuple[str, ...] = setting((), doc="How far its report may be.", choices=routes.READING)
    window: str = setting(
        "", doc='When sending may begin, such as "20:00-06:00", in the local time of the Network Gateway.'
    )
    key_images: bool = setting(
        default=False, doc="Whether only Key Object Selection documents, and what they refer to, are sent."
    )
    enabled: bool = setting(default=True, doc="Whether it counts.")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between its settings."""
        try:
            self.route()
        except ValueError as error:
            key, _, rule = str(error).partition(" ")
            yield key.rstrip(":"), rule.partition(": ")[2] or rule

    def route(self) -> routes.Route:
        """Return the route as the components know it."""
        return routes.Route(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Domain:
    """[[domains]]: a RIS domain. With none listed there is one, `default`."""

    name: str = setting(doc="Name of the domain.", rule=_domain)
    issuer: str = setting("", doc="Issuer of Patient ID (0010,0021) of patients for whom none is named.", rule=_issuer)
    accession_pattern: str = setting(
        "",
        doc="Regular expression that the whole of its accession numbers match: tells the domain of a station that is "
        "`by-object`; empty = nothing does.",
        rule=domains.pattern_problem,
    )
    manager: int = setting(0, doc="Number of the Connectivity Manager that serves it.", minimum=0, maximum=15)
    hl7_port: int = setting(
        0,
        doc="Port on which its RIS sends HL7 (MLLP); 0 = hl7_port of [connectivity] for the first domain, any free one "
        "for others.",
        minimum=0,
        maximum=65535,
    )
    charset: str = setting(
        "UNICODE UTF-8", doc="Character set (HL7 table 0211) of what is sent to it; more with ~ between.", rule=_charset
    )
    mapping: dict[str, str] = setting(
        {},
        doc="Where its messages say what, first to last, such as "
        '`mapping = { accession_number = "IPC-1, OBR-18" }`; what is not named is where it usually is.',
    )
    feed_timeout: Duration = setting(
        0.0, doc="A RIS that was silent for longer counts as unavailable; 0 = is not checked.", minimum=0
    )
    report_to: str = setting(
        "",
        doc='Where approved reports go as ORU^R01: "host:port", or "mllps://host:port" with TLS; empty = nowhere.',
        rule=_report_to,
    )
    hl7_tls: str = setting(
        "off",
        doc="Whether its RIS sends over TLS (MLLP over TLS); mutual = only who shows a certificate of tls_ca.",
        choices=HL7_TLS,
    )
    tls_certificate: str = setting(
        "",
        doc="PEM file of our certificate and its chain: for hl7_tls, and for a report_to that asks for one.",
        rule=_path,
    )
    tls_key: str = setting("", doc="PEM file of its key, without a password; empty = in tls_certificate.", rule=_path)
    tls_ca: str = setting(
        "",
        doc="PEM file of the authorities that certify its RIS; empty = for report_to those of the system.",
        rule=_path,
    )
    hl7_version: str = setting("2.5.1", doc="HL7 version of reports.", choices=HL7_VERSIONS)
    sending_application: str = setting("RADMESH", doc="MSH-3 of what is sent.", rule=_application)
    sending_facility: str = setting("", doc="MSH-4 of what is sent.", rule=_application)
    receiving_application: str = setting("", doc="MSH-5 of what is sent.", rule=_application)
    receiving_facility: str = setting("", doc="MSH-6 of what is sent.", rule=_application)

    def paths(self) -> dict[str, tuple[str, ...]]:
        """Return `mapping` as radmesh.hl7.orders.Mapping takes it."""
        return {name: tuple(text.replace(",", " ").split()) for name, text in self.mapping.items()}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with `mapping`, and which file is missing for TLS."""
        if self.hl7_tls != "off" and not self.tls_certificate:
            yield "tls_certificate", f"is needed for hl7_tls = {self.hl7_tls}: name the PEM file of a certificate"
        if self.hl7_tls == "mutual" and not self.tls_ca:
            yield "tls_ca", "is needed for hl7_tls = mutual: name the PEM file of whoever certifies the RIS"
        if self.mapping:
            from radmesh.hl7.orders import Mapping  # noqa: PLC0415 - only where a mapping is given

            try:
                Mapping(paths=self.paths())
            except ValueError as error:
                yield "mapping", f"cannot be used: {error}"


def consistent(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Yield what is wrong between [mesh], [[stations]], [[routes]] and [[domains]]."""
    yield from _domains_agree(configuration)
    routed: dict[str, int] = {}
    for number, route in enumerate(configuration["routes"]):
        first = routed.setdefault(route.name, number)
        if first != number:
            yield f"routes[{number}].name", f"{route.name} is routes[{first}] already: each needs its own"
    known = {domains.DEFAULT, domains.BY_OBJECT, *(domain.name for domain in configuration["domains"])}
    seen: dict[tuple[str, str], int] = {}
    names: dict[str, int] = {}
    for number, station in enumerate(configuration["stations"]):
        first = names.setdefault(station.name, number) if station.name else number
        if first != number:
            yield f"stations[{number}].name", f"{station.name} is stations[{first}] already: each needs its own"
        if station.domain not in known:
            remedy = f"add it under [[domains]], or use one of {', '.join(sorted(known))}"
            yield f"stations[{number}].domain", f"there is no domain {station.domain}: {remedy}"
        for address in station.addresses or ("any",):
            first = seen.setdefault((station.ae_title, address), number)
            if first != number:
                rule = f"{station.ae_title} from {address} is already stations[{first}]: join them, or correct one"
                yield f"stations[{number}].ae_title", rule


def _domains_agree(configuration: Configuration) -> Iterator[tuple[str, str]]:
    managers = configuration["mesh"].connectivity_managers
    first: dict[tuple[str, object], int] = {}
    for number, domain in enumerate(configuration["domains"]):
        for key, value in (("name", domain.name), ("issuer", domain.issuer), ("hl7_port", domain.hl7_port)):
            other = first.setdefault((key, value), number)
            if value and other != number:
                twice = f"{value} is that of domains[{other}] already: each domain needs its own"
                yield f"domains[{number}].{key}", f"{value} is given twice: join the two" if key == "name" else twice
        if domain.manager >= managers:
            remedy = f"raise connectivity_managers of [mesh] to {domain.manager + 1}, or use 0 to {managers - 1}"
            yield f"domains[{number}].manager", f"there is no manager {domain.manager}: {remedy}"
