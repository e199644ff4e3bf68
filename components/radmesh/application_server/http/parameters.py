"""What requests carry, checked: query parameters, parts of the path, fields of a JSON object."""

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from radmesh.application_server.http.app import Request, parameter_problem
from radmesh.dicom.uids import is_valid_uid

_MOST_PARAMETERS: Final = 200
_LONGEST: Final = 1024
_LONGEST_CURSOR: Final = 4096
_PAGE, _LARGEST_PAGE = 100, 1000
Kind = TypeVar("Kind", str, bool, int)


class Query:
    """The query parameters of a request; those it may have are named.

    Raises:
        RadmeshError: FIELD_INVALID.
    """

    def __init__(self, request: Request, single: Collection[str] = (), many: Collection[str] = ()) -> None:
        try:
            text = request.scope["query_string"].decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
        except ValueError:
            raise parameter_problem("query", f"at most {_MOST_PARAMETERS} parameters, percent-encoded UTF-8") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in single and name not in many:
                known = ", ".join(sorted((*single, *many))) or "none"
                raise parameter_problem("query", f"there is no parameter {name[:40]!r}; there are: {known}")
            if len(value) > (_LONGEST_CURSOR if name == "cursor" else _LONGEST) or "\0" in value:
                raise parameter_problem(name, f"at most {_LONGEST} characters, none of them NUL")
            self._values.setdefault(name, []).append(value)
            if len(self._values[name]) > 1 and name not in many:
                raise parameter_problem(name, "given twice")

    def text(self, name: str) -> str:
        """Return a parameter; empty if it is not there."""
        return self._values.get(name, [""])[0]

    def texts(self, name: str) -> list[str]:
        """Return a parameter that may be there often, and have several values with commas between."""
        return [part.strip() for value in self._values.get(name, ()) for part in value.split(",") if part.strip()]

    def flag(self, name: str) -> bool:
        """Return whether a parameter says true.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        value = self.text(name).lower()
        if value not in ("", "true", "false"):
            raise parameter_problem(name, "true or false")
        return value == "true"

    def page_size(self) -> int:
        """Return `limit`: how many are asked for.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        value = self.text("limit")
        if not value:
            return _PAGE
        if not (value.isascii() and value.isdecimal() and 1 <= int(value[:9]) <= _LARGEST_PAGE and len(value) < 9):
            raise parameter_problem("limit", f"1 to {_LARGEST_PAGE}")
        return int(value)

    def dates(self, name: str) -> tuple[str, str]:
        """Return both ends of a date or range as DICOM writes it: YYYYMMDD, YYYYMMDD-, -YYYYMMDD, or both.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        first, dash, last = self.text(name).partition("-")
        if any(date and not (len(date) == 8 and date.isascii() and date.isdecimal()) for date in (first, last)):
            raise parameter_problem(name, "a date such as 20260131, or a range such as 20260101-20260131")
        return first, last if dash else first


def uid(request: Request, name: str) -> str:
    """Return a part of the path that is a UID.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    value: str = request.path_params[name]
    if not is_valid_uid(value):
        raise parameter_problem(name, "no UID (PS3.5 9.1)")
    return value


def number(request: Request, name: str, most: int = 2**31 - 1) -> int:
    """Return a part of the path that is a number from 1.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    value: str = request.path_params[name]
    if not (value.isascii() and value.isdecimal() and len(value) < 12 and 1 <= int(value) <= most):
        raise parameter_problem(name, f"a number, 1 to {most}")
    return int(value)


def given(fields: Mapping[str, Any], name: str, default: Kind) -> Kind:
    """Return a field of a JSON object, which has the type of `default`.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    value = fields.get(name, default)
    if type(value) is not type(default):
        kind = {str: "a text", bool: "true or false", int: "a whole number"}[type(default)]
        raise parameter_problem(name, f"must be {kind}")
    if isinstance(value, int) and not 0 <= value < 2**31:
        raise parameter_problem(name, f"must be 0 to {2**31 - 1}")
    if isinstance(value, str) and not _is_text(value):
        raise parameter_problem(name, "must be Unicode text, without half of a surrogate pair")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeError:
        return False
    return True


def only(fields: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a JSON object that has no other fields.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    for name in fields:
        if name not in names:
            raise parameter_problem("body", f"there is no field {name[:40]!r}; there are: {', '.join(names)}")
    return fields
