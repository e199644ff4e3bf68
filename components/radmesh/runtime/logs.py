"""JSON logs: a constant message and fields, never a patient's data."""

import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

# Fields that would name a patient. A log line with one of them is a defect, and is cut, not written.
FORBIDDEN_FIELDS = frozenset(
    (
        "patient_id",
        "patient_name",
        "patient_birth_date",
        "issuer_of_patient_id",
        "accession_number",
        "password",
        "token",
    )
)


class Logger:
    """Writes one JSON object a line to `stream` (standard error by default)."""

    def __init__(self, component: str, instance: str, stream: TextIO | None = None) -> None:
        self._base = {"component": component, "instance": instance}
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def info(self, message: str, **fields: Any) -> None:
        """Write what normally happens."""
        self._write("INFO", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Write what somebody may want to look at."""
        self._write("WARNING", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Write what somebody must look at."""
        self._write("ERROR", message, fields)

    def exception(self, message: str, error: BaseException, **fields: Any) -> None:
        """Write a defect with its stack; not its text, which may quote data."""
        stack = "".join(traceback.format_tb(error.__traceback__)[-12:])
        self._write("ERROR", message, {"error": type(error).__name__, "stack": stack, **fields})

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "message": message,
            **self._base,
            **{name: value if name not in FORBIDDEN_FIELDS else "(cut)" for name, value in fields.items()},
        }
        # ASCII alone: what a peer sent may hold what UTF-8 cannot, or what a terminal obeys.
        text = json.dumps(line, default=str, skipkeys=True)
        with self._lock:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                # A full disk under the log must not stop what the log is about.
                return
