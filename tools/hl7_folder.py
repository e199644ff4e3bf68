"""Sends every *.hl7 file below a folder to a cluster, byte by byte in an MLLP frame, and says by type what took effect.

    .venv/bin/python tools/hl7_folder.py FOLDER [--data radmesh-data] [--domain NAME]

It prints a table in Markdown, as docs/interop.md has it. The exit code is 1 if a message was not answered.
"""

import argparse
import json
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from radmesh.client import Cluster, Message

_VT, _FS_CR = b"\x0b", b"\x1c\r"
_SECONDS = 30.0
_STATES = ("DONE", "IGNORED", "DEAD")


class Line:
    """A connection that is opened again when the other side closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, message: bytes) -> bytes | None:
        """Send one frame; return the answer, or None if there is none."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), _SECONDS)
            self._socket.sendall(_VT + message + _FS_CR)
            answer = b""
            while not answer.endswith(_FS_CR):
                piece = self._socket.recv(65536)
                if not piece:
                    raise ConnectionError
                answer += piece
        except OSError:
            self.close()
            return None
        return answer[1:-2]

    def tell(self, message: bytes) -> str:
        """Send one frame that is not answered."""
        self.close()
        with socket.create_connection(("127.0.0.1", self._port), _SECONDS) as connection:
            connection.sendall(_VT + message + _FS_CR)
            connection.shutdown(socket.SHUT_WR)
            # What was sent is taken before the other side closes.
            return code_of(None) if connection.recv(1) else "not wanted"

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def code_of(answer: bytes | None) -> str:
    """Return MSA-1 of an answer; "none" without one."""
    separator = answer[3:4] if answer else b"|"
    for segment in (answer or b"").split(b"\r"):
        if segment.startswith(b"MSA" + separator):
            return segment.split(separator)[1].decode("ascii", "replace")
    return "none"


def wants_answer(message: bytes) -> bool:
    """Whether the sender wants an answer: not one whose MSH-15 is NE, and whose MSH-16 asks for none either."""
    header = re.split(rb"[\r\n]", message[message.find(b"MSH") :], maxsplit=1)[0]
    fields = header.split(header[3:4]) if len(header) > 3 else []
    asked = [field.strip() for field in fields[14:16]]
    return asked[:1] != [b"NE"] or asked[1:2] not in ([], [b""], [b"NE"])


def kind_of(message: Message) -> str:
    """Return the type without its structure, such as "ORM^O01"; "(none)" if it is no type."""
    code, _, trigger = message.type.partition("^")
    trigger = trigger.partition("^")[0]
    if not re.fullmatch("[A-Z][A-Z0-9]{2}", code):
        return "(none)"
    return f"{code}^{trigger}" if trigger else code


def report(answers: Counter[str], messages: list[Message], replays: int) -> Iterator[str]:
    """Yield the lines of the table: types of which one took effect each have a row, others one for their code."""
    effective = {kind_of(m) for m in messages if m.state == "DONE"}
    rows: dict[str, Counter[str]] = {}
    for message in messages:
        kind = kind_of(message)
        code = kind.partition("^")[0]
        name = kind if kind in effective else f"other {code}" if code == "ADT" else code
        rows.setdefault(name, Counter())[message.state] += 1
    yield "| type | messages | took effect | ignored | dead letters |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, row in sorted(rows.items(), key=lambda item: (-item[1]["DONE"], -item[1].total(), item[0])):
        yield f"| {name} | {row.total()} | {' | '.join(str(row[state] or '') for state in _STATES)} |"
    total: Counter[str] = sum(rows.values(), Counter())
    yield f"| **all** | **{total.total()}** | {' | '.join(f'**{total[state]}**' for state in _STATES)} |"
    yield ""
    said = ", ".join(f"{number} {code}" for code, number in sorted(answers.items()))
    yield f"{answers.total()} frames; answers: {said}; the same message again: {replays}."
    reasons = Counter(m.reason for m in messages if m.state == "DEAD")
    yield f"Dead letters: {', '.join(f'{number} {reason}' for reason, number in reasons.most_common())}."


def main() -> int:
    """Send, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("radmesh-data"), help="data directory of the cluster")
    parser.add_argument("--domain", default="", help="RIS domain; the first if none is named")
    arguments = parser.parse_args()
    ports = json.loads((arguments.data / "ready.json").read_bytes())["ports"]
    files = sorted(arguments.folder.rglob("*.hl7"))
    answers: Counter[str] = Counter()
    with Cluster.local(arguments.data) as cluster:
        domains = {domain.hl7_port: domain.name for domain in cluster.domains()}
        port = next((p for p, name in domains.items() if name == arguments.domain), int(ports["hl7"]))
        domain = domains[port]
        before = {message.id: message for message in cluster.messages(domain=domain, direction="in")}
        line = Line(port)
        for path in files:
            message = path.read_bytes()
            code = code_of(line.ask(message)) if wants_answer(message) else line.tell(message)
            answers[code] += 1
            if code == "none":
                print(f"no answer: {path}", file=sys.stderr)
        line.close()
        after = list(cluster.messages(domain=domain, direction="in"))
    replays = sum(m.replays for m in after) - sum(m.replays for m in before.values())
    for text in report(answers, [m for m in after if m.id not in before], replays):
        print(text)
    return 1 if answers["none"] else 0


if __name__ == "__main__":
    sys.exit(main())
