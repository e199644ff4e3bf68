"""The parts of the configuration that belong to no single component: [mesh], [[stations]], [[domains]]."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from radmesh.dicom import stations
from radmesh.runtime.config import Configuration, Duration, Size, setting

TRANSPORTS = ("unix", "tls")
_LATER = "Takes effect once a RIS is connected; this version verifies nothing."


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


def _name(value: str) -> str | None:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value):
        return None
    return "must be 1 to 32 lower-case letters, digits, - and _"


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
    start_timeout: Duration = setting(
        120.0, doc="A component that is not ready after this time is killed and started again.", minimum=1
    )
    drain_timeout: Duration = setting(
        10.0, doc="What has begun may take this long to finish when a component is told to stop.", minimum=0
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
        "default", doc="RIS domain of its studies: a name under [[domains]], or `default`.", rule=_name
    )
    verification: str = setting(
        "advisory",
        doc=f"What becomes of a study that the RIS does not confirm: marked, or held (`required`). {_LATER}",
        choices=stations.VERIFICATION,
    )
    study_key: str = setting(
        "accession else date+modality", doc=f"How a study finds its order. {_LATER}", choices=stations.STUDY_KEYS
    )
    patient_key: str = setting(
        "id", doc=f"What of the patient must agree with the order. {_LATER}", choices=stations.PATIENT_KEYS
    )

    def station(self) -> stations.Station:
        """Return the station as the components know it."""
        return stations.Station(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Domain:
    """[[domains]]: a RIS domain. With none listed there is one, `default`."""

    name: str = setting(doc="Name of the domain.", rule=_name)
    issuer: str = setting("", doc=f"Issuer of Patient ID (0010,0021) for studies that name none. {_LATER}")


def consistent(configuration: Configuration) -> Iterable[tuple[str, str]]:
    """Yield what is wrong between [[stations]] and [[domains]]."""
    names = [domain.name for domain in configuration["domains"]]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield f"domains[{number}].name", f"{name} is given twice: join the two"
    known = {"default", *names}
    seen: dict[tuple[str, str], int] = {}
    for number, station in enumerate(configuration["stations"]):
        if station.domain not in known:
            remedy = f"add it under [[domains]], or use one of {', '.join(sorted(known))}"
            yield f"stations[{number}].domain", f"there is no domain {station.domain}: {remedy}"
        for address in station.addresses or ("any",):
            first = seen.setdefault((station.ae_title, address), number)
            if first != number:
                rule = f"{station.ae_title} from {address} is already stations[{first}]: join them, or correct one"
                yield f"stations[{number}].ae_title", rule
