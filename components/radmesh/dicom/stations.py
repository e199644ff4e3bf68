"""Stations: the DICOM nodes outside, and what each may do (FEATURES GP5, NG4)."""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

GRANTS: Final = ("store", "query", "retrieve", "worklist", "commit", "mpps")
VERIFICATION: Final = ("off", "advisory", "required")
STUDY_KEYS: Final = (
    "accession",
    "date",
    "date+modality",
    "accession else date",
    "accession else date+modality",
)
PATIENT_KEYS: Final = ("id", "name", "id+name")
ON_RIS_UNAVAILABLE: Final = ("mark", "hold")
COMMIT_REPORTS: Final = ("auto", "same", "new")
OPTIONS: Final = ("availability", "commit", "mpps")
# Defined terms of Specific Character Set (PS3.3 C.12.1.1.2) that stand for one set alone.
CHARACTER_SETS: Final = (
    *("", "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 144", "ISO_IR 127", "ISO_IR 126"),
    *("ISO_IR 138", "ISO_IR 148", "ISO_IR 203", "ISO_IR 13", "ISO_IR 166", "ISO_IR 192", "GB18030", "GBK"),
)
_NAME: Final = re.compile(r"[^\s\\/\x00-\x1f\x7f](?:[^\\/\x00-\x1f\x7f]{0,62}[^\s\\/\x00-\x1f\x7f])?")
_HOST: Final = re.compile(r"[\w.-]{1,253}|[0-9a-fA-F:.]{2,45}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_UID: Final = re.compile(r"[0-9.]{1,64}")
_MOST: Final = 256


@dataclass(frozen=True)
class Station:
    """One entry of the registry of stations, or of [[stations]].

    Attributes:
        ae_title: what it calls itself, and is called by.
        addresses: addresses or networks (CIDR) that it calls from; none = from anywhere.
        grants: what it may ask for.
        domain: a name, or "by-object": issuer or accession number of the object tell it (radmesh.dicom.domains).
        name: what the registry calls it; empty = its AE title.
        host, port: where it is sent to; "", 0 = it is not.
        tls: whether it is sent to over TLS.
        certificate: SHA-256 of the certificate that it has to show when it calls, 64 hexadecimal digits; empty = any.
        character_set: Specific Character Set (0008,0005) of what it is answered with; empty = whatever fits.
        transfer_syntaxes: Transfer Syntax UIDs that it is sent objects in, the best first; none = as stored.
        commit_report: where a report of Storage Commitment goes: a "new" association to it, the "same" one that it
            asked on, or "auto": a new one if it has a host and port.
        options: what is done for it beside: "availability" tells it of studies that are complete, "commit" asks
            it whether it stores for good what it was sent, "mpps" forwards performed procedure steps of others to it.
    """

    ae_title: str
    addresses: tuple[str, ...] = ()
    grants: tuple[str, ...] = ("store",)
    domain: str = "default"
    verification: str = "advisory"
    study_key: str = "accession else date+modality"
    patient_key: str = "id"
    accession_identifies_patient: bool = False
    on_ris_unavailable: str = "mark"
    name: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    certificate: str = ""
    character_set: str = ""
    transfer_syntaxes: tuple[str, ...] = ()
    commit_report: str = "auto"
    options: tuple[str, ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not allowed; the message says which, and what is.
        """
        title = self.ae_title
        if not 1 <= len(title.strip()) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title:
            raise ValueError(f"ae_title {title!r}: 1 to 16 printable ASCII characters, no backslash")
        for name, value, allowed in (
            ("verification", self.verification, VERIFICATION),
            ("study_key", self.study_key, STUDY_KEYS),
            ("patient_key", self.patient_key, PATIENT_KEYS),
            ("on_ris_unavailable", self.on_ris_unavailable, ON_RIS_UNAVAILABLE),
            ("character_set", self.character_set, CHARACTER_SETS),
            ("commit_report", self.commit_report, COMMIT_REPORTS),
            *(("grants", grant, GRANTS) for grant in self.grants),
            *(("options", option, OPTIONS) for option in self.options),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r}: one of {', '.join(filter(None, allowed))}")
        for name, value, pattern, rule in (
            ("name", self.name or title.strip(), _NAME, "1 to 64 characters, no slash, no backslash"),
            ("domain", self.domain, re.compile(r"[a-z0-9][a-z0-9_-]{0,31}"), "the name of a domain"),
            ("host", self.host or "-", _HOST, "a host name or an address, without port"),
            ("certificate", self.certificate or "0" * 64, _FINGERPRINT, "SHA-256, 64 lower-case hexadecimal digits"),
            *(("transfer_syntaxes", uid, _UID, "Transfer Syntax UIDs") for uid in self.transfer_syntaxes),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} {value[:80]!r}: {rule}")
        if not 0 <= self.port < 65536 or bool(self.port) != bool(self.host):
            raise ValueError("port: 1 to 65535, together with host")
        if max(map(len, (self.addresses, self.grants, self.transfer_syntaxes, self.options))) > _MOST:
            raise ValueError(f"addresses, grants, transfer_syntaxes, options: at most {_MOST}")
        try:
            networks = tuple(ipaddress.ip_network(address, strict=False) for address in self.addresses)
        except ValueError as error:
            raise ValueError(f"addresses: {error}") from None
        object.__setattr__(self, "networks", networks)

    @property
    def key(self) -> str:
        """What the registry calls it."""
        return self.name or self.ae_title.strip()

    def is_from(self, address: str) -> bool:
        """Whether the station may come from `address`."""
        if not self.networks:
            return True
        try:
            source = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped:
            source = source.ipv4_mapped
        return any(source in network for network in self.networks)


def match(stations: Sequence[Station], ae_title: str, address: str) -> Station | None:
    """Return the station that calls itself `ae_title` and comes from `address`, or None."""
    wanted = ae_title.strip()
    return next((s for s in stations if s.ae_title.strip() == wanted and s.is_from(address)), None)


def _breadth(station: Station) -> float:
    """How many addresses a station may come from at most, as a power of two."""
    return max((n.max_prefixlen - n.prefixlen for n in station.networks), default=1000)


class Stations:
    """The stations as they are known now; who keeps them up to date replaces them as a whole. Thread-safe."""

    def __init__(self, stations: Sequence[Station] = ()) -> None:
        self.replace(stations)

    def replace(self, stations: Sequence[Station]) -> None:
        """Know these, and no others; of several with one AE title the one with the narrowest network goes first."""
        self.current: tuple[Station, ...] = tuple(sorted(stations, key=_breadth))

    def match(self, ae_title: str, address: str) -> Station | None:
        """Return the station that calls itself `ae_title` and comes from `address`, or None."""
        return match(self.current, ae_title, address)

    def lookup(self, ae_title: str) -> Station | None:
        """Return the station that is reached under an AE title: one with host and port; None = there is none."""
        wanted = ae_title.strip()
        return next((s for s in self.current if s.ae_title.strip() == wanted and s.port), None)


_FIELDS: Final = tuple(f.name for f in fields(Station) if f.init)


def to_json(station: Station) -> str:
    """Return a station as text."""
    return json.dumps({name: getattr(station, name) for name in _FIELDS}, ensure_ascii=False)


def from_mapping(values: Mapping[str, Any]) -> Station:
    """Return the station of what `to_json` wrote; what a later version added is left out.

    Raises:
        ValueError: a value is not allowed, or missing.
    """
    known: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in _FIELDS}
    try:
        return Station(**known)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no station: {error}") from None
