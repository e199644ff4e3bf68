"""Modality Worklist over the orders (PS3.4 K.6): keys matched, and rows that are encoded already."""

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.dicom_query import Batch, key_invalid
from radmesh.database_server.orders import OrderFilter, Orders
from radmesh.database_server.paging import Pages
from radmesh.dicom import matching
from radmesh.dicom.identifier import QUERY_RETRIEVE_LEVEL, Element, Key, as_mapping, write_identifier
from radmesh.sql.engine import Database

SCHEDULED: Final = 1
_PAGES: Final = (32, 256, 1000)
_LONGEST: Final = 1024
# Codes of the RIS's own, whose scheme it does not name (PS3.16 8.2: private ones begin with 99).
_LOCAL_SCHEME: Final = "99LOCAL"
_NAMESPACE: Final = uuid.UUID("6b0d34f1-8c0f-5e0b-9d5a-5d7b4e7a2c11")
_SPS: Final = 0x00400100
_DATE, _TIME, _STATION, _MODALITY = 0x00400002, 0x00400003, 0x00400001, 0x00080060
Tree = dict[int, "tuple[str, str | list[Tree]]"]
"""Attributes of an order: tag -> (VR, text or items)."""
# What a filter of the tables is made of: (is it of the step, tag) -> field of OrderFilter.
_INDEXED: Final = {
    (False, 0x00080050): "accession_number",
    (False, 0x00100010): "patient_name",
    (False, 0x00100020): "patient_id",
    (True, _MODALITY): "modality",
    (True, _STATION): "station_ae_title",
}


def study_instance_uid(order: Mapping[str, Any]) -> str:
    """Return the Study Instance UID of an order: what the RIS gave, else always the same one, made of its id."""
    return order["study_instance_uid"] or f"2.25.{uuid.uuid5(_NAMESPACE, order['order_id']).int}"


def _code(order: Mapping[str, Any]) -> list[Tree]:
    code, meaning = order["procedure_code"].strip(), order["procedure_description"].strip()
    if not code:
        return []
    # PS3.3 8.8: a code that is longer than 16 characters is another attribute.
    named: Tree = {0x00080100: ("SH", code)} if len(code) <= 16 else {}
    # "L" is as good as "99…" (PS3.3 8.2); a scheme's name has 16 characters.
    scheme = order["procedure_code_scheme"].strip()
    scheme = scheme if 0 < len(scheme) <= 16 else _LOCAL_SCHEME
    named |= {0x00080102: ("SH", scheme), 0x00080104: ("LO", meaning[:64] or code[:64])}
    return [named if len(code) <= 16 else named | {0x00080119: ("UC", code)}]


def tree(order: Mapping[str, Any]) -> Tree:
    """Return an order as the worklist tells it (PS3.4 table K.6-1); types 2 that no order knows are empty."""
    time = "".join(filter(str.isdigit, order["scheduled_time"]))
    requested = order["requested_procedure_id"] or order["accession_number"] or order["order_id"]
    step: Tree = {
        0x00080060: ("CS", order["modality"]),
        0x00321070: ("LO", ""),
        0x00400001: ("AE", order["station_ae_title"]),
        0x00400002: ("DA", time[:8]),
        0x00400003: ("TM", time[8:14]),
        0x00400006: ("PN", ""),
        0x00400007: ("LO", order["procedure_description"][:64]),
        0x00400008: ("SQ", _code(order)),
        0x00400009: ("SH", (order["scheduled_procedure_step_id"] or requested)[:16]),
        0x00400010: ("SH", ""),
        0x00400011: ("SH", ""),
        0x00400012: ("LO", ""),
        0x00400020: ("CS", "SCHEDULED"),
    }
    return {
        0x00080050: ("SH", order["accession_number"]),
        0x00080090: ("PN", order["referring_physician_name"]),
        0x00081110: ("SQ", []),
        0x00081120: ("SQ", []),
        0x00100010: ("PN", order["patient_name"]),
        0x00100020: ("LO", order["patient_id"]),
        0x00100021: ("LO", order["issuer_of_patient_id"]),
        0x00100030: ("DA", order["patient_birth_date"]),
        0x00100040: ("CS", order["patient_sex"]),
        0x00101030: ("DS", ""),
        0x00102000: ("LO", ""),
        0x00102110: ("LO", ""),
        0x001021C0: ("US", ""),
        0x0020000D: ("UI", study_instance_uid(order)),
        0x00321032: ("PN", ""),
        0x00321060: ("LO", order["procedure_description"][:64]),
        0x00321064: ("SQ", _code(order)),
        0x00380010: ("LO", ""),
        0x00380050: ("LO", ""),
        0x00380300: ("LO", ""),
        0x00380500: ("LO", ""),
        0x00400100: ("SQ", [step]),
        0x00401001: ("SH", requested[:16]),
        0x00401003: ("SH", ""),
        0x00401004: ("LO", ""),
        0x00402016: ("LO", order["placer_order_number"]),
        0x00402017: ("LO", order["filler_order_number"]),
        0x00403001: ("LO", ""),
    }


def _step_of(row: Tree) -> Tree:
    steps = row[_SPS][1]
    assert isinstance(steps, list)
    return steps[0]


TOP: Final = tree(defaultdict(str))
"""Every attribute of the worklist, empty."""
STEP: Final[Tree] = _step_of(TOP)
"""Those of a Scheduled Procedure Step."""
_FULL: Final = tree(defaultdict(lambda: "20260101120000"))


def _known(of_step: bool, tag: int) -> bool:  # noqa: FBT001 - of this module alone
    """Whether any order has a value of an attribute: one that none has is in rows, empty, and cannot be matched."""
    return bool((_step_of(_FULL) if of_step else _FULL)[tag][1])


class Worklist:
    """Answers C-FIND of the Modality Worklist."""

    def __init__(self, database: Database, orders: Orders) -> None:
        self._database = database
        self._orders = orders

    def find(self, keys: Sequence[Key], *, implicit: bool, character_set: str, limit: int) -> "WorklistFind":
        """Check a query, and return it ready to be run.

        Raises:
            RadmeshError: QUERY_KEY_INVALID.
        """
        return WorklistFind(self._database, self._orders, keys, implicit, character_set, limit)


class WorklistFind:
    """One query of the worklist.

    Attributes:
        keys_unsupported: some of its keys are none of the worklist, and are left out of rows and matching, or are asked
            to match what no order knows, and are left out of matching.
    """

    def __init__(
        self,
        database: Database,
        orders: Orders,
        keys: Sequence[Key],
        implicit: bool,  # noqa: FBT001 - of this module alone
        character_set: str,
        limit: int,
    ) -> None:
        self._database = database
        self._orders = orders
        self._implicit = implicit
        self._character_set = character_set
        self._limit = limit
        wanted = {tag: key for tag, key in as_mapping(keys).items() if tag != QUERY_RETRIEVE_LEVEL}
        asked = as_mapping(wanted[_SPS].items) if _SPS in wanted else {}
        self.keys_unsupported = any(tag not in TOP for tag in wanted) or any(tag not in STEP for tag in asked)
        self._keys = [key for tag, key in sorted(wanted.items()) if tag in TOP]
        self._filter, self._after = self._read(wanted, {tag: key for tag, key in asked.items() if tag in STEP})

    def _read(self, top: Mapping[int, Key], step: Mapping[int, Key]) -> tuple[OrderFilter, list[tuple[bool, Key]]]:
        """Return what the tables look for, and (is it of the step, key) of what is looked at afterwards."""
        fields: dict[str, str] = {}
        after: list[tuple[bool, Key]] = []
        for of_step, keys in ((False, top), (True, step)):
            for tag, key in keys.items():
                value = key.value.strip()
                if tag not in (TOP if not of_step else step) or key.items or not value.strip("*"):
                    continue
                if not _known(of_step, tag):
                    self.keys_unsupported = True
                    continue
                if len(value) > _LONGEST:
                    raise key_invalid(tag, f"at most {_LONGEST} characters")
                field = _INDEXED.get((of_step, tag))
                if field is not None and "\\" not in value:
                    fields[field] = value
                elif not (of_step and tag in (_DATE, _TIME)):
                    after.append((of_step, key))
        return OrderFilter(**fields, **self._times(step, after), statuses=(SCHEDULED,)), after

    @staticmethod
    def _times(step: Mapping[int, Key], after: list[tuple[bool, Key]]) -> dict[str, Any]:
        """Return both ends of when a step is scheduled: date and time are one point in time (PS3.4 table K.6-1)."""
        ends = {}
        for tag, vr in ((_DATE, "DA"), (_TIME, "TM")):
            value = step[tag].value.strip(" *") if tag in step else ""
            found = matching.range_of(value, vr) if value else ("", "")
            if found is None:
                raise key_invalid(tag, "a date or time, or a range of them with a hyphen")
            ends[tag] = found
        (first, last), (begin, end) = ends[_DATE], ends[_TIME]
        if (begin and not first) or (end and not last):
            after.append((True, step[_TIME]))
            begin = end = ""
        return {"scheduled_from": first + begin.split(".")[0], "scheduled_to": last + end.split(".")[0]}

    def batches(self) -> Iterator[Batch]:
        """Yield the rows; empty batches while a page takes its time.

        Raises:
            RadmeshError: DATABASE_UNAVAILABLE.
        """
        left, token, number = self._limit, "", 0
        with Pages(self._database) as pages:
            while True:
                size = _PAGES[min(number, len(_PAGES) - 1)]
                for page in pages.read(partial(self._page, token, size)):
                    if page is None:
                        yield Batch(())
                        continue
                    orders, token = page
                rows = [made for made in map(tree, orders) if all(_holds(made, *look) for look in self._after)]
                yield Batch([self._write(row) for row in rows[:left]], limited=len(rows) > left)
                if len(rows) > left or not token:
                    return
                left -= len(rows)
                number += 1

    def _page(self, token: str, size: int, _: sa.Connection) -> tuple[list[dict[str, Any]], str]:
        return self._orders.find(self._filter, size, token)

    def _write(self, row: Tree) -> bytes:
        return write_identifier(_elements(row, self._keys), implicit=self._implicit, character_set=self._character_set)


def _holds(row: Tree, of_step: bool, key: Key) -> bool:  # noqa: FBT001 - of this module alone
    if of_step:
        row = _step_of(row)
    vr, text = row.get(key.tag, ("", ""))
    if not isinstance(text, str):
        return True
    value = key.value.strip()
    if vr in ("DA", "TM"):
        ends = matching.range_of(value, vr)
        if ends is None:
            raise key_invalid(key.tag, "a date or time, or a range of them with a hyphen")
        return matching.in_range(text, ends[0] if ends[0] == ends[1] and "-" not in value else "-".join(ends))
    if vr == "PN":
        return matching.name_matches(value, text)
    return any(matching.text_matches(part.strip(), text.strip()) for part in value.split("\\"))


def _elements(row: Tree, keys: Sequence[Key]) -> list[Element]:
    """Return what was asked for of an order: of a sequence without keys all that there is."""
    elements: list[Element] = []
    for key in keys:
        if key.tag not in row:
            continue
        vr, value = row[key.tag]
        if isinstance(value, str):
            elements.append((key.tag, vr, value))
            continue
        inner = sorted(as_mapping(key.items).items())
        chosen = [one for _, one in inner]
        elements.append(
            (key.tag, vr, [_elements(item, chosen or [Key(tag, "") for tag in sorted(item)]) for item in value])
        )
    return elements
