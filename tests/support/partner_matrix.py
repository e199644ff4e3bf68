"""The table of docs/interop.md that says who does what with radmesh: each cell is written by the test that saw it.

`RADMESH_WRITE_MATRIX=1` before a run of the tests writes what they see; without it what they see has to be there.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "interop.md"
SERVICES = ("echo", "TLS", "store", "find", "worklist", "move", "get", "is sent to", "commitment", "MPPS")
_BEGIN, _END = "<!-- matrix: made by tests/edge -->\n", "<!-- matrix: end -->\n"
_WRITE = os.environ.get("RADMESH_WRITE_MATRIX") == "1"


def cells() -> dict[tuple[str, str], str]:
    """What the page says, by program and service; nothing for what a program does not do."""
    table = PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
    found: dict[tuple[str, str], str] = {}
    for line in table.splitlines()[2:]:
        program, *said = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {(program, service): cell for service, cell in zip(SERVICES, said, strict=True) if cell}
    return found


def met(program: str, service: str, said: str = "yes") -> None:
    """Say what a program was seen to do; it has to be what the page says."""
    there = cells()
    if _WRITE:
        _write({**there, (program, service): said})
    else:
        assert there.get((program, service)) == said, f"docs/interop.md: {program}, {service}: seen: {said}"


def meetings() -> set[tuple[str, str]]:
    """Every program and service of which a test of the edge says `met`."""
    sources = (path.read_text() for path in (ROOT / "tests" / "edge").glob("test_*.py"))
    return {pair for source in sources for pair in re.findall(r'\bmet\(\s*"([^"]+)",\s*"([^"]+)"', source)}


def _write(there: Mapping[tuple[str, str], str]) -> None:
    rows = [
        f"| {program} | " + " | ".join(there.get((program, service), "") for service in SERVICES) + " |"
        for program in sorted({program for program, _ in there}, key=str.lower)
    ]
    table = "\n".join([f"| program | {' | '.join(SERVICES)} |", "| --- |" + " --- |" * len(SERVICES), *rows, ""])
    text = PAGE.read_text()
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    PAGE.write_text(before + _BEGIN + table + _END + after)
