"""Messages as JSON: names as in the protos; states by their short names, bytes in hexadecimal, times as RFC 3339."""

import functools
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from radmesh.runtime.errors import RadmeshError

# Where components listen is nothing that clients reach.
_INTERNAL: Final = frozenset(("target", "line_target", "put_target", "epoch"))
_BYTES: Final = (FieldDescriptor.TYPE_BYTES,)
_TIME: Final = "google.protobuf.Timestamp"


def to_json(message: Any) -> dict[str, Any]:
    """Return a message as what `json` writes: every field is there; a time or message that is not set is None."""
    return {name: convert(message) for name, convert in _fields(message.DESCRIPTOR)}


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    return tuple((field.name, _reader(field)) for field in descriptor.fields if field.name not in _INTERNAL)


def _reader(field: FieldDescriptor) -> Callable[[Any], Any]:
    name = field.name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return lambda message: dict(getattr(message, name))
    convert = _converter(field)
    if field.is_repeated:
        return lambda message: [convert(item) for item in getattr(message, name)]
    if field.message_type is not None:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        return _names(field.enum_type).__getitem__
    if field.message_type is not None:
        return (lambda time: time.ToJsonString()) if field.message_type.full_name == _TIME else to_json
    return (lambda data: data.hex()) if field.type in _BYTES else _same


def _same(value: Any) -> Any:
    return value


class _Names(dict[int, str]):
    """Short names of an enum's values; a value of a later version has its number."""

    def __missing__(self, number: int) -> str:
        return str(number)


@functools.cache
def _names(enum: EnumDescriptor) -> _Names:
    prefix = _prefix(enum)
    return _Names({v.number: v.name.removeprefix(prefix) if v.number else "" for v in enum.values})


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values[0].name.removesuffix("UNSPECIFIED")


def state(enum: EnumDescriptor, name: str, field: str) -> int:
    """Return the number of an enum's value, by its short name in any case; 0 of an empty one.

    Raises:
        RadmeshError: FIELD_INVALID, naming the choices.
    """
    if not name:
        return 0
    found = enum.values_by_name.get(_prefix(enum) + name.upper())
    if found is None or not found.number:
        choices = ", ".join(short for number, short in _names(enum).items() if number)
        raise RadmeshError("FIELD_INVALID", f"{field}: one of {choices}", metadata={"field": field})
    return int(found.number)
