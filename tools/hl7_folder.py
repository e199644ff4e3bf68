"""Sends every *.hl7 file below a folder to a cluster, byte by byte in an MLLP frame, and says by type what took effect.

    .venv/bin/python tools/hl7_folder.py FOLDER [--data radmesh-data] [--domain NAME]

It prints a table in Markdown, as docs/interop.md has it. The exit code is 1 if a message was not answered.
"""

import argparse
import json
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from radmesh.client import Cluster, Message

_VT, _FS_CR = b"\x0b", b"\x1c\r"
_SECONDS = 30.0


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

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def code_of(answer: bytes | None) -> str:
    """Return MSA-1 of an answer; "none" without one."""
    for segment in (answer or b"").split(b"\r"):
        if segment.startswith(b"MSA|"):
            return segment.split(b"|")[1].decode("ascii", "replace")
    return "none"


def logged(cluster: Cluster, domain: str, after: int) -> Iterator[Message]:
    """Yield the messages that came in to a domain after the one numbered `after`."""
    for message in cluster.messages(domain=domain, direction="in"):
        if message.id <= after:
            return
        yield message


def kind_of(message: Message) -> str:
    """Return the type without its structure: ORM^O01."""
    return "^".join(message.type.split("^")[:2]) or "(none)"


def report(answers: Counter[str], messages: list[Message], replays: int) -> Iterator[str]:
    """Yield the lines of the table."""
    states = ("DONE", "IGNORED", "DEAD")
    kinds = Counter(kind_of(m) for m in messages)
    counts = Counter((kind_of(m), m.state) for m in messages)
    yield "| type | messages | took effect | ignored | dead letters |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for kind, number in sorted(kinds.items(), key=lambda item: (-item[1], item[0])):
        yield f"| {kind} | {number} | {' | '.join(str(counts[kind, state] or '') for state in states)} |"
    totals = [sum(number for (_, of), number in counts.items() if of == state) for state in states]
    yield f"| **all** | **{len(messages)}** | {' | '.join(f'**{number}**' for number in totals)} |"
    yield ""
    said = ", ".join(f"{number} {code}" for code, number in sorted(answers.items()))
    yield f"{sum(answers.values())} frames, answers: {said}; the same message again: {replays}."
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
        before = next(cluster.messages(domain=domain, direction="in", limit=1), None)
        line = Line(port)
        for path in files:
            code = code_of(line.ask(path.read_bytes()))
            answers[code] += 1
            if code == "none":
                print(f"no answer: {path}", file=sys.stderr)
        line.close()
        messages = list(logged(cluster, domain, before.id if before else 0))
    for text in report(answers, messages, sum(message.replays for message in messages)):
        print(text)
    return 1 if answers["none"] else 0


if __name__ == "__main__":
    sys.exit(main())
