"""Routes: which studies leave by themselves, and where they go (FEATURES NG9, GP10)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta
from typing import Any, Final

VERIFICATION: Final = ("NOT_REQUIRED", "UNVERIFIED", "VERIFIED")
"""What a study may be verified as to be routed; what is held or pending never is."""
READING: Final = ("NEW", "DICTATED", "TRANSCRIBED", "APPROVED", "ADDENDUM")
_AE_TITLE: Final = re.compile(r"(?! )[ -\[\]-~]{1,16}(?<! )")
_MODALITY: Final = re.compile(r"[A-Z0-9_]{1,16}")
_NAME: Final = re.compile(r"[^\s\\/\x00-\x1f\x7f](?:[^\\/\x00-\x1f\x7f]{0,62}[^\s\\/\x00-\x1f\x7f])?")
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MOST: Final = 64


@dataclass(frozen=True, slots=True)
class Route:
    """A rule; what is empty does not restrict.

    Attributes:
        name: what it is called, 1 to 64 characters.
        destinations: AE titles of the stations that get the study.
        stations: AE titles that sent some of it.
        modalities: Modality (0008,0060), at least one of them.
        verification: what it may be verified as.
        reading: how far its report may be.
        window: when sending may begin, "HH:MM-HH:MM" of the gateway's local time; over midnight if it ends before it
            begins.
        key_images: whether only Key Object Selection documents, and what they refer to, are sent.
        enabled: whether it counts.
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

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not allowed; the message says which, and what is.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name[:80]!r}: 1 to 64 characters, no slash, no backslash")
        if not self.destinations:
            raise ValueError("destinations: the AE title of one station at least")
        if not self.verification:
            raise ValueError(f"verification: some of {', '.join(VERIFICATION)}")
        for name in ("destinations", "stations", "modalities", "verification", "reading"):
            if len(getattr(self, name)) > _MOST:
                raise ValueError(f"{name}: at most {_MOST}")
        for name, values, pattern, rule in (
            ("destinations", self.destinations, _AE_TITLE, "AE titles of 1 to 16 characters"),
            ("stations", self.stations, _AE_TITLE, "AE titles of 1 to 16 characters"),
            ("modalities", self.modalities, _MODALITY, "modalities such as CT"),
            ("window", filter(None, (self.window,)), _WINDOW, 'such as "20:00-06:00"'),
        ):
            for value in values:
                if not pattern.fullmatch(value):
                    raise ValueError(f"{name} {value[:80]!r}: {rule}")
        for name, values, allowed in (
            ("verification", self.verification, VERIFICATION),
            ("reading", self.reading, READING),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} {value[:80]!r}: some of {', '.join(allowed)}")
        begins, ends = self.times
        if self.window and begins == ends:
            raise ValueError(f"window {self.window!r}: begins when it ends; leave it empty for always")

    @property
    def times(self) -> tuple[time, time]:
        """When its window begins and ends; both 00:00 without one."""
        found = _WINDOW.fullmatch(self.window)
        if found is None:
            return time(), time()
        first, second, third, fourth = map(int, found.groups())
        return time(first, second), time(third, fourth)

    def opens_in(self, now: datetime) -> timedelta:
        """Return how long after a local time sending may begin; 0 = now."""
        begins, ends = self.times
        moment = now.time().replace(tzinfo=None)
        within = begins <= moment < ends if begins < ends else moment >= begins or moment < ends
        if not self.window or within:
            return timedelta()
        opens = now.replace(hour=begins.hour, minute=begins.minute, second=0, microsecond=0)
        return opens - now if opens > now else opens + timedelta(days=1) - now


_FIELDS: Final = tuple(f.name for f in fields(Route))


def to_json(route: Route) -> str:
    """Return a route as text."""
    return json.dumps({name: getattr(route, name) for name in _FIELDS}, ensure_ascii=False)


def from_mapping(values: Mapping[str, Any]) -> Route:
    """Return the route of what `to_json` wrote; what a later version added is left out.

    Raises:
        ValueError: a value is not allowed, or missing.
    """
    known: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in _FIELDS}
    try:
        return Route(**known)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no route: {error}") from None
