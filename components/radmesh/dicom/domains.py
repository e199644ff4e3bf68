"""RIS domains: which one a study belongs to, and in whose name a Patient ID stands (FEATURES NG5).

A Patient ID means something only within its issuer's numbering. Here is the one rule of which numbering that is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from radmesh.dicom.stations import Station, Stations

DEFAULT: Final = "default"
BY_OBJECT: Final = "by-object"
_PATTERN_MOST: Final = 256
# PS3.5 6.2: an SH has 16 characters; what is far longer is no accession number of anybody.
_ACCESSION_MOST: Final = 64


def pattern_problem(pattern: str) -> str | None:
    """Return what is wrong with an accession pattern, or None."""
    if len(pattern) > _PATTERN_MOST:
        return f"must be at most {_PATTERN_MOST} characters"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"must be a regular expression of Python ({error})"
    # One that tries exponentially many ways would stop every admission.
    if re.search(r"\)[*+{]", re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern)):
        return "must not repeat a group: repeat single characters or sets, such as [A-Z]{2}[0-9]+"
    return None


@dataclass(frozen=True, slots=True)
class RisDomain:
    """A RIS domain.

    `issuer` is the Issuer of Patient ID (0010,0021) of studies that name none; `accession_pattern` a regular
    expression that the whole of its accession numbers match, empty = none do; `manager` the number of the Connectivity
    Manager that serves it.
    """

    name: str
    issuer: str = ""
    accession_pattern: str = ""
    manager: int = 0


class Domains:
    """The domains of a cluster, and the rule that tells the domain of an object. Immutable but for `stations`.

    Raises:
        ValueError: an accession pattern is none; two domains have one name or one issuer.
    """

    def __init__(self, stations: Sequence[Station], domains: Sequence[RisDomain]) -> None:
        self.stations = Stations(stations)
        self._domains = {domain.name: domain for domain in domains or (RisDomain(DEFAULT),)}
        issuers = [domain.issuer for domain in domains if domain.issuer]
        if len(self._domains) < len(domains) or len(set(issuers)) < len(issuers):
            raise ValueError("two domains have the same name or issuer: each needs its own")
        for domain in domains:
            if problem := pattern_problem(domain.accession_pattern):
                raise ValueError(f"accession_pattern of domain {domain.name}: {problem}")
        self._owner = {domain.issuer: domain.name for domain in domains if domain.issuer}
        self._patterns = [(d.name, re.compile(d.accession_pattern)) for d in domains if d.accession_pattern]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the domains of a component's `Context.settings`."""
        return cls(
            settings.get("stations", ()),
            [
                RisDomain(d.name, d.issuer, getattr(d, "accession_pattern", ""), getattr(d, "manager", 0))
                for d in settings.get("domains", ())
            ],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the configuration."""
        return tuple(self._domains)

    def station(self, ae_title: str, address: str) -> Station:
        """Return the station that calls itself so and comes from there; an unknown one has the defaults."""
        # What names no station is stored all the same: an object from a DICOMweb client may have no AE title.
        known = self.stations.match(ae_title, address)
        return known or Station("UNKNOWN")

    def domain_of(self, station: str, address: str, issuer: str, accession: str) -> str:
        """Return the domain of an object; empty = it cannot be told, and nobody is asked.

        Args:
            station: calling AE title.
            address: where the station called from.
            issuer: Issuer of Patient ID (0010,0021) of the object, empty if absent.
            accession: Accession Number (0008,0050), empty if absent.
        """
        owner = self._owner.get(issuer, "")
        named = self.station(station, address).domain
        if named == DEFAULT and named not in self._domains:
            named = next(iter(self._domains)) if len(self._domains) == 1 else BY_OBJECT
        if named != BY_OBJECT:
            return named if named in self._domains and owner in ("", named) else ""
        if owner:
            return owner
        if not 0 < len(accession) <= _ACCESSION_MOST:
            return ""
        found = [name for name, pattern in self._patterns if pattern.fullmatch(accession)]
        return found[0] if len(found) == 1 else ""

    def issuer_of(self, domain: str) -> str:
        """Return the Issuer of Patient ID of a domain's studies that name none; empty if it has none."""
        found = self._domains.get(domain)
        return found.issuer if found else ""

    def manager_of(self, domain: str) -> str:
        """Return the Connectivity Manager instance that serves a domain; empty for a domain that is not configured."""
        found = self._domains.get(domain)
        return f"connectivity-manager-{found.manager}" if found else ""

    def patient_identity(self, domain: str, issuer: str, patient_id: str, study_instance_uid: str) -> str:
        """Return what tells patients apart; equal texts are one patient.

        The numbering is the domain's whose issuer the object names; the study's domain where it names none; and the
        two together where the issuer is nobody's, for such issuers are often a device's default. So the same ID in two
        domains never joins. Who has no ID, or one of no known domain, is the patient of that study alone.
        """
        owner = self._owner.get(issuer, "") if issuer else domain
        if not patient_id or not (owner or domain):
            return f"study\x1f{study_instance_uid}"
        return f"id\x1f{owner}\x1f\x1f{patient_id}" if owner else f"id\x1f{domain}\x1f{issuer}\x1f{patient_id}"
