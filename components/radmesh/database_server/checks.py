"""What every request is held to before an implementation sees it: values that the tables can hold."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from radmesh.runtime.errors import RadmeshError

_INT64_MAX: Final = (1 << 63) - 1
# Years 1 to 9999 (google/protobuf/timestamp.proto).
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_LONGEST: Final = 10 * 366 * 86_400

Service = TypeVar("Service")


def invalid(field: str, rule: str) -> RadmeshError:
    """Return the error of a field that breaks a rule."""
    return RadmeshError("FIELD_INVALID", f"{field}: {rule}", metadata={"field": field, "rule": rule})


def check(message: Message, *, clean: bool = False, path: str = "") -> None:
    """Check times, durations, enumerations, numbers and texts, at any depth; `clean` takes NULs out of texts instead.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    for field, value in message.ListFields():
        if field not in _RULES:
            _RULES[field] = _rule(field)
        rule = _RULES[field]
        if rule is None:
            for part in value if field.is_repeated else (value,):
                check(part, clean=clean, path=f"{path}{field.name}.")
        elif broken := rule(value):
            if not (clean and broken == _NO_NUL and field.type == FieldDescriptor.TYPE_STRING):
                raise invalid(path + field.name, broken)
            _clean(message, field, value)


_NO_NUL: Final = "no NUL"
# A value, or all of a repeated field, to the rule that it breaks; empty if none.
Rule = Callable[[Any], str]
# Of every field that was seen, since finding out what a field is is most of a check; None: it holds messages.
_RULES: Final[dict[FieldDescriptor, Rule | None]] = {}


def _rule(field: FieldDescriptor) -> Rule | None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return lambda value: _NO_NUL if any("\0" in text for pair in value.items() for text in pair) else ""
    one = _rule_of_one(field)
    if one is None or one is _anything or not field.is_repeated:
        return one
    return lambda values: next(filter(None, map(one, values)), "")


def _rule_of_one(field: FieldDescriptor) -> Rule | None:
    if field.message_type is not None:
        return {"google.protobuf.Timestamp": _time, "google.protobuf.Duration": _duration}.get(
            field.message_type.full_name
        )
    if field.type == FieldDescriptor.TYPE_STRING:
        return lambda text: _NO_NUL if "\0" in text else ""
    if field.enum_type is not None:
        known = frozenset(field.enum_type.values_by_number)
        return lambda number: "" if number in known else "no such value"
    if field.type == FieldDescriptor.TYPE_UINT64:
        return lambda number: "" if number <= _INT64_MAX else f"at most {_INT64_MAX}"
    return _anything


def _anything(_value: Any) -> str:
    return ""


def _time(time: Any) -> str:
    good = _FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 10**9
    return "" if good else "a time of the years 1 to 9999"


def _duration(time: Any) -> str:
    return "" if 0 <= time.seconds <= _LONGEST and 0 <= time.nanos < 10**9 else "0 to 10 years"


def _clean(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        value[:] = [text.replace("\0", "") for text in value]
    else:
        setattr(message, field.name, value.replace("\0", ""))


def checked(*cleaned: str) -> Callable[[type[Service]], type[Service]]:
    """Decorate a service: every rpc checks its request; those named in `cleaned` take NULs out of texts."""

    def wrap(method: Callable[..., Any], *, clean: bool) -> Callable[..., Any]:
        def rpc(self: Any, request: Message, call: Any) -> Any:
            check(request, clean=clean)
            return method(self, request, call)

        rpc.__doc__ = method.__doc__
        return rpc

    def decorate(service: type[Service]) -> type[Service]:
        for name, method in list(vars(service).items()):
            if name[0].isupper():
                setattr(service, name, wrap(method, clean=name in cleaned))
        return service

    return decorate
