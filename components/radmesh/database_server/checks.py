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
        name = path + field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if any("\0" in text for pair in value.items() for text in pair):
                raise invalid(name, "no NUL")
            continue
        values = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in values:
                _check_part(part, name, clean=clean)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if any("\0" in text for text in values):
                if not clean:
                    raise invalid(name, "no NUL")
                _clean(message, field, value)
        elif field.enum_type is not None:
            if any(number not in field.enum_type.values_by_number for number in values):
                raise invalid(name, "no such value")
        elif field.type == FieldDescriptor.TYPE_UINT64 and any(number > _INT64_MAX for number in values):
            raise invalid(name, f"at most {_INT64_MAX}")


def _check_part(part: Any, name: str, *, clean: bool) -> None:
    kind = part.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        if not (_FIRST_SECOND <= part.seconds <= _LAST_SECOND and 0 <= part.nanos < 10**9):
            raise invalid(name, "a time of the years 1 to 9999")
    elif kind == "google.protobuf.Duration":
        if not (0 <= part.seconds <= _LONGEST and 0 <= part.nanos < 10**9):
            raise invalid(name, "0 to 10 years")
    else:
        check(part, clean=clean, path=f"{name}.")


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
