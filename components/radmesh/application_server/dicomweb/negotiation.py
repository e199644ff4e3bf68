"""What a client accepts (RFC 9110 12.5.1) and what there is: media types of answers and of their parts (PS3.18 8.7)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from radmesh.runtime.errors import RadmeshError

OCTET_STREAM: Final = "application/octet-stream"
DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
MULTIPART: Final = "multipart/related"
ANY_SYNTAX: Final = "*"

# PS3.18 table 8.7.3-2 and -5: the media types of compressed frames.
IMAGE_TYPES: Final = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}

_MOST: Final = 64
_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TYPE: Final = re.compile(rf"\s*({_NAME}/{_NAME})\s*")
# Values without quotes may be media types too: browsers' viewers write type=application/octet-stream.
_PARAMETER: Final = re.compile(rf";\s*({_NAME})\s*=\s*({_QUOTED}|[^\s;,\"]+)\s*")
_ELEMENT: Final = re.compile(rf"(?:[^,\"]|{_QUOTED})+")
_WEIGHT: Final = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of an Accept header: `type` such as "image/*", its parameters by lower-case name, its weight."""

    type: str
    parameters: dict[str, str] = field(default_factory=dict)
    q: float = 1.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A form that there is: media type (of each part, where `multipart`), and transfer syntax ("" = says nothing)."""

    type: str
    transfer_syntax_uid: str = ""
    multipart: bool = False

    @property
    def content_type(self) -> str:
        """The media type as the header of a part, or of a single answer, says it."""
        return f"{self.type}; transfer-syntax={self.transfer_syntax_uid}" if self.transfer_syntax_uid else self.type

    def __str__(self) -> str:
        syntax = f"; transfer-syntax={self.transfer_syntax_uid}" if self.transfer_syntax_uid else ""
        return f'{MULTIPART}; type="{self.type}"{syntax}' if self.multipart else f"{self.type}{syntax}"


def parse_accept(header: str) -> tuple[MediaRange, ...]:
    """Return the media ranges of an Accept header, in its order; what is none is passed over. Empty = all.

    Of more than 64 elements the rest is not read.
    """
    found: list[MediaRange] = []
    for number, element in enumerate(_ELEMENT.finditer(header)):
        if number >= _MOST:
            break
        text = element.group()
        start = _TYPE.match(text)
        if start is None:
            continue
        parameters: dict[str, str] = {}
        position = start.end()
        while (parameter := _PARAMETER.match(text, position)) is not None:
            parameters.setdefault(parameter.group(1).lower(), _unquoted(parameter.group(2)))
            position = parameter.end()
        if text[position:].strip("; \t"):
            continue
        weight = parameters.pop("q", "1")
        found.append(
            MediaRange(start.group(1).lower(), parameters, float(weight) if _WEIGHT.fullmatch(weight) else 1.0)
        )
    if not found and not header.strip():
        return (MediaRange("*/*"),)
    return tuple(found)


def choose(accepted: Sequence[MediaRange], offers: Sequence[Offer]) -> Offer:
    """Return the offer that the client likes best; of equals the first.

    Raises:
        RadmeshError: NOT_ACCEPTABLE: none; the error says what there is.
    """
    best, weight = None, 0.0
    for offer in offers:
        # The most specific range that fits an offer says what it weighs (RFC 9110 12.5.1).
        fitting = [(_specificity(accept), accept.q) for accept in accepted if _fits(accept, offer)]
        q = max(fitting)[1] if fitting else 0.0
        if q > weight:
            best, weight = offer, q
    if best is None:
        raise RadmeshError("NOT_ACCEPTABLE", f"there is only {', '.join(map(str, _few(offers)))}")
    return best


def _few(offers: Iterable[Offer]) -> list[Offer]:
    return list(dict.fromkeys(offers))[:8]


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _covers(wide: str, narrow: str) -> bool:
    return wide in ("*/*", narrow) or (wide.endswith("/*") and narrow.startswith(wide[:-1]))


def _fits(accept: MediaRange, offer: Offer) -> bool:
    syntax = accept.parameters.get("transfer-syntax", ANY_SYNTAX)
    if offer.transfer_syntax_uid and syntax not in (ANY_SYNTAX, offer.transfer_syntax_uid):
        return False
    if not offer.multipart:
        return _covers(accept.type, offer.type)
    return _covers(accept.type, MULTIPART) and _covers(accept.parameters.get("type", "*/*").lower(), offer.type)


def _specificity(accept: MediaRange) -> tuple[int, int]:
    part = accept.parameters.get("type", "*/*")
    stars = accept.type.count("*") + (part.count("*") if accept.type == MULTIPART else 0)
    return -stars, len(accept.parameters)
