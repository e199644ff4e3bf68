"""Stations: the DICOM nodes outside, and what each may do (FEATURES GP5, NG4)."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

GRANTS: Final = ("store", "query", "retrieve", "worklist", "commit")
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


@dataclass(frozen=True)
class Station:
    """One entry of [[stations]].

    `addresses` are addresses or networks (CIDR); none = from anywhere. `grants` are what the station may ask for.
    `domain` is a name, or "by-object": issuer or accession number of the object tell it (radmesh.dicom.domains).
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
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not allowed; the message says which, and what is.
        """
        if not 1 <= len(self.ae_title.strip()) <= 16 or not self.ae_title.isascii() or "\\" in self.ae_title:
            raise ValueError(f"ae_title {self.ae_title!r}: 1 to 16 ASCII characters, no backslash")
        for name, value, allowed in (
            ("verification", self.verification, VERIFICATION),
            ("study_key", self.study_key, STUDY_KEYS),
            ("patient_key", self.patient_key, PATIENT_KEYS),
            ("on_ris_unavailable", self.on_ris_unavailable, ON_RIS_UNAVAILABLE),
            *(("grants", grant, GRANTS) for grant in self.grants),
        ):
            if value not in allowed:
                raise ValueError(f"{name} {value!r}: one of {', '.join(allowed)}")
        try:
            networks = tuple(ipaddress.ip_network(address, strict=False) for address in self.addresses)
        except ValueError as error:
            raise ValueError(f"addresses: {error}") from None
        object.__setattr__(self, "networks", networks)

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
