"""docs/reference/config.md, made from the dataclasses by `python -m radmesh.mesh.reference`."""

import dataclasses
import json
import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from radmesh.mesh import modules
from radmesh.runtime.config import write_value

_HEAD = """\
# Configuration

Made by `make docs` from the settings in the code.

Values come from, the later over the earlier: the default, the TOML file (`--config FILE`, else `RADMESH_CONFIG`), the
environment variable, the command line (a flag such as `--dicom-port`, or `--set section.key=value`). Everything is
checked before anything starts, and every problem is named with file, line and key. `radmesh config check FILE` lists
what is wrong with a file; `radmesh config print` shows what is in force, and where each value is from.

A duration is written `"250ms"`, `"10s"`, `"5min"`, `"2h"`, `"7d"`, or as a number of seconds; a size `"64MiB"`,
`"10GB"`, or as a number of bytes. In an environment variable or a flag, items of a list are separated by commas.

Besides these, `RADMESH_ADMIN_PASSWORD` is the password of the user `admin` that the first start makes; without it, one
is made up and written to `admin-password` in the data directory. `RADMESH_DEBUG=1` shows where an error came from.

```toml
[mesh]
data = "/var/lib/radmesh"

[dicom]
ae_title = "RADMESH"
bind = "0.0.0.0"

[[stations]]
ae_title = "CT1"
addresses = ["10.1.0.0/16"]
grants = ["store", "commit"]
```
"""


def document() -> str:
    """Return the page."""
    schema = modules.TABLE.schema()
    parts = [_HEAD]
    for name, cls in schema.sections.items():
        parts.append("\n".join(_table(f"[{name}]", cls)))
    for name, cls in schema.tables.items():
        parts.append("\n".join(_table(f"[[{name}]]", cls)))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _table(title: str, cls: type) -> Iterator[str]:
    about = (cls.__doc__ or "").partition(": ")[2].partition("\n")[0]
    yield f"## {title}"
    yield ""
    if about:
        yield about[:1].upper() + about[1:]
        yield ""
    yield "| key | type | default | environment | what |"
    yield "| --- | --- | --- | --- | --- |"
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        variable = field.metadata.get("env") or ""
        yield (
            f"| {field.name} | {_kind(hints[field.name], field.metadata)} | {_default(hints[field.name], field)} "
            f"| {f'`{variable}`' if variable else ''} | {field.metadata['doc']} |"
        )


def _kind(hint: Any, metadata: typing.Mapping[str, Any]) -> str:
    choices = metadata.get("choices")
    many = typing.get_origin(hint) is tuple
    if choices:
        return f"{'any of ' if many else ''}{', '.join(f'`{choice}`' for choice in choices)}"
    if typing.get_origin(hint) is Annotated:
        kind, whole = str(typing.get_args(hint)[1]), hint
    else:
        kind = "list of texts" if many else "table of texts" if typing.get_origin(hint) is dict else ""
        kind, whole = kind or {int: "number", float: "number", bool: "true or false"}.get(hint, "text"), hint
    low, high = metadata.get("min"), metadata.get("max")
    if many or (low is None and high is None):
        return kind
    bounds = [_bound(whole, value) for value in (low, high)]
    if None not in bounds:
        return f"{kind}, {bounds[0]} to {bounds[1]}"
    return f"{kind}, {bounds[0]} or more" if high is None else f"{kind}, {bounds[1]} or less"


def _bound(hint: Any, value: float | None) -> str | None:
    if value is None:
        return None
    written = write_value(hint, value)
    return written if isinstance(written, str) else f"{written:g}" if isinstance(written, float) else str(written)


def _default(hint: Any, field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = write_value(hint, field.default)
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    return "empty" if value in ("", [], {}) else f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    sys.stdout.write(document())
