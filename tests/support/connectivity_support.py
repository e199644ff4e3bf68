"""What tests of the Connectivity Manager share: messages of a RIS, and a manager's store without sockets."""

import io
import itertools
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from radmesh.api.database.v1 import database_pb2
from radmesh.connectivity_manager.intake import Intake
from radmesh.connectivity_manager.matching import Person, Policy, StudyKeys
from radmesh.connectivity_manager.orders import Orders, Verified
from radmesh.connectivity_manager.publishing import Events
from radmesh.connectivity_manager.schema import MIGRATIONS, events, messages, meta, metadata
from radmesh.hl7.message import Message, parse
from radmesh.hl7.mllp import Peer
from radmesh.hl7.orders import Mapping
from radmesh.runtime.clock import Clock, ManualClock
from radmesh.runtime.logs import Logger
from radmesh.sql.engine import Database

PEER = Peer("127.0.0.1", 1)
IN, OUT = 1, 2
DONE, IGNORED, WAITING, DEAD = 1, 2, 3, 4
SCHEDULED, IN_PROGRESS, COMPLETED, CANCELLED = 1, 2, 3, 4
NOW = datetime(2026, 1, 2, 4, tzinfo=UTC)
_numbers = itertools.count(1)


def segment(name: str, **values: str) -> str:
    """A segment of fields such as f3="P1"."""
    fields = {int(key[1:]): value for key, value in values.items()}
    return "|".join([name, *(fields.get(n, "") for n in range(1, max(fields) + 1))])


def msh(kind: str, *, control_id: str | None = None, time: str = "20260102030405", **more: str) -> str:
    """MSH with a control ID of its own; `more` are fields such as f15="AL"."""
    fields = {"f3": "RIS", "f4": "CLINIC", "f5": "RADMESH", "f7": time, "f9": kind, "f11": "P", "f12": "2.5.1", **more}
    fields["f10"] = f"M{next(_numbers)}" if control_id is None else control_id
    parts = segment("MSH", **{f"f{int(k[1:]) - 1}": v for k, v in fields.items() if int(k[1:]) > 2})
    return "MSH|^~\\&" + parts.removeprefix("MSH|")


def message(*segments: str) -> bytes:
    """A message of segments, in UTF-8."""
    return "".join(f"{one}\r" for one in segments if one).encode()


def pid(patient_id: str = "P1", name: str = "Doe^John", issuer: str = "", birth: str = "19700101") -> str:
    """PID."""
    return segment("PID", f1="1", f3=f"{patient_id}^^^{issuer}" if issuer else patient_id, f5=name, f7=birth, f8="M")


def obr(
    accession: str = "A1",
    control: str = "NW",
    *,
    filler: str | None = None,
    placer: str = "",
    status: str = "",
    modality: str = "CT",
    scheduled: str = "202601021200",
) -> str:
    """ORC and OBR of an order with its accession number in OBR-18."""
    number = f"F{accession}" if filler is None else filler
    orc = segment("ORC", f1=control, f2=placer, f3=number, f5=status)
    return orc + "\r" + segment("OBR", f1="1", f2=placer, f3=number, f4="CTABD^CT abdomen", f18=accession,
                                f24=modality, f36=scheduled)  # fmt: skip


def orm(accession: str = "A1", patient: str = "", study: str = "", control: str = "NW", **header: Any) -> bytes:
    """An ORM^O01 of one order; keywords of `msh` and of `obr`."""
    own = {k: header.pop(k) for k in ("filler", "placer", "status", "modality", "scheduled") if k in header}
    return message(
        msh("ORM^O01", **header),
        patient or pid(),
        obr(accession, control, **own),
        f"ZDS|{study}^RIS^Application^DICOM" if study else "",
    )


def adt(trigger: str, patient: str = "", **header: Any) -> bytes:
    """An ADT of one patient."""
    return message(msh(f"ADT^{trigger}", **header), f"EVN|{trigger}", patient or pid())


def a40(prior: str, surviving: str, trigger: str = "A40", **header: Any) -> bytes:
    """The patient `prior` is `surviving` from now on; each an ID, or "ID^^^issuer"."""
    return message(
        msh(f"ADT^{trigger}", **header),
        f"EVN|{trigger}",
        segment("PID", f1="1", f3=surviving, f5="Doe^John", f7="19700101", f8="M"),
        f"MRG|{prior}",
    )


def code(answer: bytes | None) -> str:
    """MSA-1 of an answer."""
    assert answer is not None
    return parse(answer).get("MSA-1")


def error(answer: bytes | None) -> tuple[str, str, str]:
    """(reason, location, condition of table 0357) of an answer's ERR, as of version 2.5."""
    assert answer is not None
    err = parse(answer).segment("ERR")
    assert err is not None
    place = "-".join(filter(None, (err.field(2).component(1).value, err.field(2).component(3).value)))
    return err.field(5).value, place, err.field(3).value


class Desk:
    """A manager's store with the intake of some domains: a name, or a name and the domain's issuer."""

    def __init__(
        self,
        url: str,
        *domains: str | tuple[str, str],
        clock: Clock | None = None,
        mapping: Mapping | None = None,
    ) -> None:
        self.clock = clock or ManualClock(NOW)
        self.database = Database(url, MIGRATIONS)
        self.outbox = Events(self.clock)
        self.orders = Orders(self.database, self.outbox, self.clock)
        self.log = io.StringIO()
        self.committed = 0
        self.intakes: dict[str, Intake] = {}
        for domain in domains or ("clinic",):
            name, issuer = (domain, "") if isinstance(domain, str) else domain
            self.intakes[name] = Intake(
                name,
                mapping or Mapping(issuer),
                self.database,
                self.orders,
                self.clock,
                Logger("test", "test-0", self.log),
                self._committed,
            )

    def _committed(self) -> None:
        self.committed += 1

    def tell(self, raw: bytes, domain: str = "") -> bytes | None:
        """Hand a message to a domain's intake (the first's by default); return the answer."""
        intake = self.intakes[domain] if domain else next(iter(self.intakes.values()))
        return intake.handle(raw, PEER)

    def accepted(self, raw: bytes, domain: str = "") -> Message:
        """Hand over a message that must be accepted."""
        answer = self.tell(raw, domain)
        assert code(answer) == "AA", answer
        assert answer is not None
        return parse(answer)

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        """A table as it is."""
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()]

    def told(self) -> list[database_pb2.RisEvent]:
        """The outbox, in order; its sequences have no gap."""
        rows = self.rows(events)
        assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
        return [database_pb2.RisEvent.FromString(bytes(row["payload"])) for row in rows]

    def verify(
        self,
        domain: str = "",
        patient: Person | None = None,
        policy: Policy | None = None,
        **keys: str,
    ) -> Verified:
        """Compare a study with a domain's orders: `keys` are those of StudyKeys."""
        study = StudyKeys(patient or Person("P1", "", "Doe^John"), **keys)
        return self.orders.verify(domain or next(iter(self.intakes)), study, policy or Policy())

    def found(self, *arguments: Any, **keys: Any) -> tuple[str, list[str]]:
        """(outcome, order IDs) of `verify`."""
        verified = self.verify(*arguments, **keys)
        return verified.result.outcome.name, [order["order_id"] for order in verified.orders]

    def replay(self, key: int, domain: str = "") -> Any:
        """Let a dead letter take effect."""
        intake = self.intakes[domain] if domain else next(iter(self.intakes.values()))

        def work(c: sa.Connection) -> Any:
            return intake.replay(c, c.execute(sa.select(messages).where(messages.c.id == key)).one())

        return self.database.write(work)

    def clear(self) -> None:
        """Forget everything: as a new store, without the time that one takes."""

        def work(c: sa.Connection) -> None:
            for table in metadata.sorted_tables:
                c.execute(sa.update(meta).values(sequence=0) if table is meta else sa.delete(table))

        self.database.write(work)

    def close(self) -> None:
        self.database.close()
