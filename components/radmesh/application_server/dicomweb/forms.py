"""Frames as answers: what one is made of, and what of it a client asks for."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from radmesh.application_server.dicomweb.multipart import Envelope
from radmesh.application_server.dicomweb.negotiation import IMAGE_TYPES, OCTET_STREAM, Offer, choose, parse_accept
from radmesh.application_server.pictures import Picture

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """A frame, or several, as an answer.

    Attributes:
        segments: what it is made of, in order: bytes, or the number of a frame.
        kept: whether frames are kept in memory in just this form.
    """

    content_type: str
    tag: str
    segments: tuple[bytes | int, ...]
    size: int
    kept: bool


def _form(keys: tuple[Key, ...], numbers: tuple[int, ...], sizes: tuple[int, ...], offer: Offer) -> Form:
    """Return the form of an answer. The keys of the frames tell it from all others."""
    digest = hashlib.sha256(repr((keys, offer)).encode()).hexdigest()[:32]
    if not offer.multipart:
        return Form(offer.content_type, f'"{digest}"', numbers, sizes[0], kept=False)
    envelope = Envelope.of(offer.type, digest)
    segments: list[bytes | int] = []
    for number in numbers:
        segments += [envelope.head(offer.content_type, first=not segments), number]
    segments.append(envelope.tail)
    size = envelope.size([(offer.content_type, size) for size in sizes])
    kept = len(numbers) == 1 and offer.type == OCTET_STREAM
    return Form(envelope.content_type, f'"{digest}"', tuple(segments), size, kept=kept)


# Forms of one frame are small.
_form_of_one: Final = functools.lru_cache(4096)(_form)


@functools.lru_cache(1024)
def _offer(accept: str, syntax: str, *, single: bool) -> Offer:
    """Return the form of frames that the client likes best.

    Raises:
        RadmeshError: NOT_ACCEPTABLE.
    """
    kinds = [OCTET_STREAM, *([IMAGE_TYPES[syntax]] if syntax in IMAGE_TYPES else [])]
    offers = [Offer(kind, syntax, multipart=True) for kind in kinds]
    if single:
        offers += [Offer(kind, syntax) for kind in kinds]
    return choose(parse_accept(accept), offers)


def form_of(picture: Picture, numbers: tuple[int, ...], accept: str) -> Form:
    """Return frames as the answer to who accepts `accept`.

    Raises:
        RadmeshError: NOT_ACCEPTABLE.
    """
    offer = _offer(accept, picture.rendition.transfer_syntax_uid, single=len(numbers) == 1)
    sizes = tuple([picture.frames[number - 1].size for number in numbers])
    keys = tuple([picture.key(number) for number in numbers])
    return (_form_of_one if len(numbers) == 1 else _form)(keys, numbers, sizes, offer)


def around(picture: Picture, number: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind a frame in the form that viewers ask for, in which it is kept."""
    offer = Offer(OCTET_STREAM, picture.rendition.transfer_syntax_uid, multipart=True)
    form = _form((picture.key(number),), (number,), (picture.frames[number - 1].size,), offer)
    before, _, behind = form.segments
    assert isinstance(before, bytes)
    assert isinstance(behind, bytes)
    return before, behind


def overlaps(form: Form, picture: Picture, start: int, end: int) -> Iterator[tuple[bytes | int, int, int]]:
    """Yield the segments of a form that lie within, each with the part of it that does."""
    offset = 0
    for segment in form.segments:
        size = len(segment) if isinstance(segment, bytes) else picture.frames[segment - 1].size
        first, last = max(start - offset, 0), min(end - offset, size)
        if first < last:
            yield segment, first, last
        offset += size
