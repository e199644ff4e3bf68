"""Settings: defaults < TOML file < environment < flags, checked as a whole before anything starts.

A section is a frozen dataclass whose fields are made with `setting`; `load` reads the sections of a schema and raises
with *every* problem it found, each with file and line where there is one, key, rule and remedy. This module imports
little, so that `radmesh --help` and `radmesh config check` answer at once.
"""

import dataclasses
import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

Duration = Annotated[float, "duration"]
"""Seconds; written as "250ms", "10s", "5min", "2h", "7d", or a number of seconds."""
Size = Annotated[int, "size"]
"""Bytes; written as "64MiB", "10GB", or a number of bytes."""

_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_MOST_FILE_BYTES = 1 << 20
_MASK = "********"
Rule = Callable[[Any], str | None]


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    env: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    secret: bool = False,
    rule: Rule | None = None,
) -> Any:
    """Return the field of a section.

    Args:
        default: value when nothing else is said; without one the key must be given (only in [[tables]]).
        doc: one sentence for docs/reference/config.md: what it does, its unit, what empty means.
        env: environment variable that overrides the file, "RADMESH_…"; several settings may share one.
        minimum: least number allowed, or least length of a list.
        maximum: greatest number allowed, or greatest length of a list.
        choices: the strings allowed; of a list, for each item.
        secret: never printed or quoted in an error.
        rule: returns what is wrong with a value, or None.
    """
    metadata = {
        "doc": doc,
        "env": env,
        "min": minimum,
        "max": maximum,
        "choices": tuple(choices),
        "secret": secret,
        "rule": rule,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a configuration may hold: `[name]` sections, and `[[name]]` tables of which there are any number.

    A section or table class may have a method `problems() -> Iterable[tuple[key, rule]]` for rules between its
    settings; `rules` are those between sections: each takes the Configuration and gives (key, rule) pairs.
    """

    sections: Mapping[str, type]
    tables: Mapping[str, type] = dataclasses.field(default_factory=dict)
    rules: Sequence[Callable[["Configuration"], Iterable[tuple[str, str]]]] = ()

    def settings(self) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
        """Yield ("section.key", field) of every setting outside [[tables]]."""
        for section, cls in self.sections.items():
            for field in dataclasses.fields(cls):
                yield f"{section}.{field.name}", field

    def by_variable(self, variable: str) -> list[str]:
        """Return the keys that an environment variable sets."""
        return [key for key, field in self.settings() if field.metadata.get("env") == variable]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and what would be right."""

    where: str
    key: str
    rule: str

    def __str__(self) -> str:
        """Return "file:line: key: rule"."""
        return ": ".join(part for part in (self.where, self.key, self.rule) if part)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Effective settings. `sources` says of each "section.key" where its value came from."""

    sections: Mapping[str, Any]
    tables: Mapping[str, tuple[Any, ...]]
    sources: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        """Return a section (an instance of its class), or the tuple of a [[table]]."""
        return self.sections[name] if name in self.sections else self.tables[name]

    def value(self, key: str) -> Any:
        """Return the value of "section.key"."""
        section, _, name = key.partition(".")
        return getattr(self.sections[section], name)

    def effective(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (key, value in its written form, source) of everything; secrets masked."""
        for section, instance in self.sections.items():
            for field in dataclasses.fields(instance):
                key = f"{section}.{field.name}"
                yield key, _written(instance, field), self.sources.get(key, "default")
        for table, rows in self.tables.items():
            for number, row in enumerate(rows):
                for field in dataclasses.fields(row):
                    key = f"{table}[{number}].{field.name}"
                    yield key, _written(row, field), self.sources.get(key, "default")


def load(
    schema: Schema,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Configuration:
    """Return the effective configuration.

    Args:
        schema: what there is to set.
        file: TOML file, if there is one.
        environment: default os.environ.
        flags: values from the command line, by "section.key" or by the name of an environment variable.

    Raises:
        RadmeshError: CONFIG_INVALID; the message has a line for every problem.
    """
    configuration, problems = read(schema, file=file, environment=environment, flags=flags)
    if configuration is None or problems:
        raise invalid(problems)
    return configuration


def invalid(problems: Sequence[Problem]) -> Exception:
    """Return the error that lists all problems."""
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415 - brings gRPC, which a good configuration never needs

    return RadmeshError("CONFIG_INVALID", "\n".join(map(str, problems)), metadata={"problems": str(len(problems))})


def read(
    schema: Schema,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> tuple[Configuration | None, list[Problem]]:
    """Return the configuration, or None, and all that is wrong: what `radmesh config check` prints."""
    reading = _Reading(schema, file)
    given = reading.from_file()
    for variable, text in (os.environ if environment is None else environment).items():
        for key in schema.by_variable(variable):
            # An empty variable is how a shell or a compose file says "not set".
            if text:
                given[key] = _Given(text, f"environment {variable}", textual=True)
    known = dict(schema.settings())
    for flag, text in (flags or {}).items():
        keys = schema.by_variable(flag) or [flag]
        for key in keys:
            section, _, name = key.partition(".")
            entry = name.partition(".")[2]
            if entry and f"{section}.{name.partition('.')[0]}" in known:
                given.setdefault(f"{section}.{name.partition('.')[0]}", _Given({}, "flag", textual=False)).add(
                    entry, text
                )
            elif key in known:
                given[key] = _Given(text, "flag", textual=True)
            else:
                reading.problem("flag", key, f"no such setting{_meant(key, known)}")
    return reading.build(given)


class _Given:
    """A value as somebody wrote it, and where."""

    def __init__(self, value: Any, source: str, *, textual: bool) -> None:
        self.value = value
        self.source = source
        self.textual = textual

    def add(self, name: str, text: str) -> None:
        """Add an entry to a map."""
        if isinstance(self.value, dict):
            self.value = {**self.value, name: text}


class _Reading:
    """One pass over file, environment and flags; collects problems instead of stopping at the first."""

    def __init__(self, schema: Schema, file: Path | None) -> None:
        self._schema = schema
        self._file = file
        self._lines: dict[str, int] = {}
        self._rows: dict[str, list[dict[str, _Given]]] = {name: [] for name in schema.tables}
        self.problems: list[Problem] = []

    def problem(self, where: str, key: str, rule: str) -> None:
        """Note what is wrong."""
        self.problems.append(Problem(where, key, rule))

    def _where(self, key: str) -> str:
        line = self._lines.get(key)
        return f"{self._file}:{line}" if line else str(self._file)

    def _document(self) -> dict[str, Any]:
        assert self._file is not None
        try:
            with self._file.open("rb") as stream:
                data = stream.read(_MOST_FILE_BYTES + 1)
        except OSError as error:
            self.problem(str(self._file), "", f"cannot be read ({error.strerror}): check the path and its permissions")
            return {}
        if len(data) > _MOST_FILE_BYTES:
            self.problem(str(self._file), "", "is larger than 1 MiB: this is no configuration of radmesh")
            return {}
        try:
            text = data.decode("utf-8-sig")
            document = tomllib.loads(text)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self.problem(f"{self._file}:{line}", "", "is not UTF-8: save it as UTF-8")
            return {}
        except tomllib.TOMLDecodeError as error:
            self._syntax_problem(str(error))
            return {}
        except (RecursionError, ValueError):
            # Arrays a thousand deep, numbers of ten thousand digits: no configuration of anybody.
            self.problem(str(self._file), "", "is nested too deeply or holds a number that is too long")
            return {}
        self._lines = _locate(text)
        return document

    def _syntax_problem(self, text: str) -> None:
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", text, re.DOTALL)
        where, rule = str(self._file), text
        if match:
            rule = match[1]
            where += f":{match[2]}:{match[3]}" if match[2] else ": at the end"
        rule = rule[:1].lower() + rule[1:]
        self.problem(where, "", f"is not TOML: {_short(rule)}")

    def from_file(self) -> dict[str, _Given]:
        """Return what the file gives, by "section.key"; keep its [[tables]]."""
        given: dict[str, _Given] = {}
        if self._file is None:
            return given
        names = [*self._schema.sections, *self._schema.tables]
        for name, content in self._document().items():
            if name in self._schema.sections:
                if not isinstance(content, dict):
                    self.problem(self._where(name), name, f"must be a section: write [{name}]")
                    continue
                given |= self._keys(name, name, self._schema.sections[name], content)
            elif name in self._schema.tables:
                if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
                    self.problem(self._where(name), name, f"must be a list of tables: write [[{name}]]")
                    continue
                for number, row in enumerate(content):
                    prefix = f"{name}[{number}]"
                    keyed = self._keys(prefix, prefix, self._schema.tables[name], row)
                    self._rows[name].append({key.rpartition("].")[2]: value for key, value in keyed.items()})
            else:
                self.problem(self._where(name), _short(name), f"no such section{_meant(name, names)}")
        return given

    def _keys(self, prefix: str, line_prefix: str, cls: type, content: dict[str, Any]) -> dict[str, _Given]:
        given = {}
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in content.items():
            where = self._where(f"{line_prefix}.{name}")
            if name in names:
                given[f"{prefix}.{name}"] = _Given(value, where, textual=False)
            else:
                self.problem(where, f"{prefix}.{_short(name)}", f"no such setting{_meant(name, names)}")
        return given

    def build(self, given: Mapping[str, _Given]) -> tuple[Configuration | None, list[Problem]]:
        """Return the configuration with all that is wrong."""
        sources: dict[str, str] = {}
        sections: dict[str, Any] = {}
        for name, cls in self._schema.sections.items():
            own = {key.partition(".")[2]: value for key, value in given.items() if key.partition(".")[0] == name}
            sections[name] = self._instance(name, cls, own, sources)
        tables: dict[str, tuple[Any, ...]] = {}
        for name, cls in self._schema.tables.items():
            rows = [self._instance(f"{name}[{n}]", cls, row, sources) for n, row in enumerate(self._rows[name])]
            tables[name] = tuple(row for row in rows if row is not None)
        if self.problems or any(instance is None for instance in sections.values()):
            return None, self.problems
        configuration = Configuration(sections, tables, sources)
        for rule in self._schema.rules:
            for key, text in rule(configuration):
                self.problem(self._source(sources, key), key, text)
        return configuration, self.problems

    def _source(self, sources: Mapping[str, str], key: str) -> str:
        return sources.get(key, str(self._file) if self._file else "")

    def _instance(self, prefix: str, cls: type, given: Mapping[str, _Given], sources: dict[str, str]) -> Any:
        hints = typing.get_type_hints(cls, include_extras=True)
        values, before = {}, len(self.problems)
        for field in dataclasses.fields(cls):
            key = f"{prefix}.{field.name}"
            if field.name not in given:
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                    self.problem(self._where(prefix) if self._file else "", key, "is missing: it has no default")
                continue
            written = given[field.name]
            sources[key] = written.source
            try:
                values[field.name] = _convert(hints[field.name], written.value, field.metadata, textual=written.textual)
            except _WrongError as error:
                self.problem(written.source, key, str(error))
        if len(self.problems) > before:
            return None
        instance = cls(**values)
        for name, text in getattr(instance, "problems", tuple)():
            self.problem(self._source(sources, f"{prefix}.{name}"), f"{prefix}.{name}", text)
        return instance


class _WrongError(ValueError):
    """A value that breaks its rule."""


def _convert(hint: Any, value: Any, metadata: Mapping[str, Any], *, textual: bool) -> Any:
    """Return `value` as `hint` says; `textual` values come from the environment or the command line."""
    unit = ""
    if typing.get_origin(hint) is Annotated:
        hint, unit = typing.get_args(hint)[:2]
    origin = typing.get_origin(hint)
    if origin in (tuple, list):
        return _convert_list(typing.get_args(hint)[0], value, metadata, textual=textual)
    if origin in (dict, Mapping):
        return _convert_map(value, textual=textual)
    if origin is types.UnionType:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    quoted = "" if metadata.get("secret") else f", not {_short(value)}"
    if unit:
        converted: Any = _measure(unit, value, quoted)
    elif hint is bool:
        converted = _boolean(value, quoted, textual=textual)
    elif hint in (int, float):
        converted = _number(hint, value, quoted, textual=textual)
    elif isinstance(value, str):
        converted = value
    else:
        raise _WrongError(f"must be text in quotes{quoted}")
    return _check(hint, converted, metadata, quoted)


def _check(hint: type, value: Any, metadata: Mapping[str, Any], quoted: str) -> Any:
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise _WrongError(f"must be one of {', '.join(choices)}{quoted}{_meant(str(value), choices)}")
    if hint in (int, float):
        low, high = metadata.get("min"), metadata.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"{low:g} to {high:g}"
                if None not in (low, high)
                else f"{low:g} or more"
                if high is None
                else f"{high:g} or less"
            )
            raise _WrongError(f"must be {bounds}{quoted}")
    if isinstance(value, str) and "\0" in value:
        raise _WrongError("must not hold a NUL character")
    wrong = metadata["rule"](value) if metadata.get("rule") else None
    if wrong:
        raise _WrongError(f"{wrong}{quoted}")
    return Path(value).expanduser() if hint is Path else value


def _convert_list(item: Any, value: Any, metadata: Mapping[str, Any], *, textual: bool) -> tuple[Any, ...]:
    if textual:
        value = [part.strip() for part in str(value).split(",") if part.strip()]
    if not isinstance(value, list):
        raise _WrongError(f'must be a list, such as ["a", "b"], not {_short(value)}')
    own = {**metadata, "min": None, "max": None}
    items = tuple(_convert(item, part, own, textual=textual) for part in value)
    low, high = metadata.get("min"), metadata.get("max")
    if (low is not None and len(items) < low) or (high is not None and len(items) > high):
        raise _WrongError(f"must have {low or 0:g} to {high or math.inf:g} items, not {len(items)}")
    return items


def _convert_map(value: Any, *, textual: bool) -> dict[str, str]:
    if textual:
        pairs = [part.partition("=") for part in str(value).split(",") if part.strip()]
        value = {name.strip(): text.strip() for name, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _WrongError(f'must be a table of texts, such as {{ name = "text" }}, not {_short(value)}')
    return dict(value)


def _boolean(value: Any, quoted: str, *, textual: bool) -> bool:
    if textual and str(value).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        return str(value).lower() in ("1", "true", "yes", "on")
    if not isinstance(value, bool):
        raise _WrongError(f"must be true or false{quoted}")
    return value


def _number(hint: type, value: Any, quoted: str, *, textual: bool) -> Any:
    if textual and isinstance(value, str):
        try:
            value = hint(value)
        except ValueError:
            raise _WrongError(f"must be a number{quoted}") from None
    # bool is an int to Python, and to nobody else.
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        raise _WrongError(f"must be a {'whole ' if hint is int else ''}number{quoted}")
    if not math.isfinite(value):
        raise _WrongError(f"must be a finite number{quoted}")
    return hint(value)


def _measure(unit: str, value: Any, quoted: str) -> float | int:
    units: Mapping[str, float] = _SECONDS if unit == "duration" else _BYTES
    example = '"10s" or "5min"' if unit == "duration" else '"64MiB" or "10GB"'
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)", str(value)) if not isinstance(value, bool) else None
    if match is None or (match[2] and match[2] not in units):
        raise _WrongError(f"must be a {unit} such as {example} (units: {', '.join(units)}){quoted}")
    amount = float(match[1]) * (units[match[2]] if match[2] else 1)
    return amount if unit == "duration" else round(amount)


def _written(instance: Any, field: dataclasses.Field[Any]) -> Any:
    """Return a value as one would write it, masked if it is secret."""
    value = getattr(instance, field.name)
    if field.metadata.get("secret"):
        if isinstance(value, str) and "://" in value:
            return re.sub(r"(://[^:@/]*):.*@", rf"\1:{_MASK}@", value)
        return _MASK if value else value
    hint = typing.get_type_hints(type(instance), include_extras=True)[field.name]
    return write_value(hint, value)


def write_value(hint: Any, value: Any) -> Any:
    """Return a value in its written form: durations and sizes with their unit."""
    if typing.get_origin(hint) is Annotated:
        units: Mapping[str, float] = _SECONDS if typing.get_args(hint)[1] == "duration" else _BYTES
        # The greatest unit that leaves a whole number; decimal units would only confuse beside binary ones.
        amounts = {u: round(value / f, 9) for u, f in units.items() if u not in ("kB", "MB", "GB", "TB")}
        whole = [(u, amount) for u, amount in amounts.items() if amount and amount == int(amount)]
        base = "s" if "s" in units else "B"
        name, amount = max(whole, key=lambda pair: units[pair[0]], default=(base, value))
        return f"{amount:.15g}{name}"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _meant(wrong: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong[:80], list(names), 1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: Any) -> str:
    """Return a value for an error: on one line, printable, and never longer than a line."""
    text = repr(value) if not isinstance(value, str) or not value.isprintable() or not value else value
    return text if len(text) <= 60 else text[:57] + "…"


def _locate(text: str) -> dict[str, int]:
    """Return the line of every "section.key" and "table[n].key"; what is written in an unusual way is left out."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix, quote = "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            if quote in line:
                quote = ""
            continue
        if match := re.match(r"\s*(\[\[?)\s*([\w.\-]+)\s*\]", line):
            prefix = match[2]
            if match[1] == "[[":
                counts[prefix] = counts.get(prefix, -1) + 1
                prefix = f"{prefix}[{counts[prefix]}]"
            lines.setdefault(prefix, number)
        elif match := re.match(r"""\s*["']?([\w.\-]+)["']?\s*=\s*(.*)""", line):
            lines.setdefault(f"{prefix}.{match[1]}".lstrip("."), number)
            for mark in ('"""', "'''"):
                if match[2].count(mark) == 1:
                    quote = mark
    return lines
