"""What the RIS said, told to the Database Server: in order, each once, whenever it answers (CORRECTNESS rule 15)."""

from typing import Any

import sqlalchemy as sa

from radmesh.api.database.v1 import database_pb2
from radmesh.connectivity_manager.matching import Person
from radmesh.connectivity_manager.schema import events, meta, patients
from radmesh.runtime.clock import Clock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.sql.engine import Database

_BATCH = 256
# A message between components has 4 MiB at most.
_BATCH_BYTES = 1 << 20
_POLL_SECONDS = 1.0
_SERVICE = database_pb2.DESCRIPTOR.services_by_name["OrderService"]


class Events:
    """The outbox. An event is a row of the transaction that made it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def append(
        self,
        c: sa.Connection,
        domain: str,
        *,
        order: dict[str, Any] | None = None,
        patient: Person | None = None,
        merge: tuple[Person, Person] | None = None,
        available: bool | None = None,
    ) -> None:
        """Add one event: exactly one of the keywords is given."""
        sequence = c.execute(
            sa.update(meta).values(sequence=meta.c.sequence + 1).returning(meta.c.sequence)
        ).scalar_one()
        event = database_pb2.RisEvent(sequence=sequence, domain=domain)
        event.time.FromDatetime(self._clock.now())
        if order is not None:
            event.order.CopyFrom(order_message(order))
        elif patient is not None:
            event.patient.CopyFrom(person_message(patient))
        elif merge is not None:
            event.merge.prior.CopyFrom(person_message(merge[0]))
            event.merge.surviving.CopyFrom(person_message(merge[1]))
        elif available is not None:
            event.domain_state.available = available
        c.execute(sa.insert(events).values(sequence=sequence, payload=event.SerializeToString()))


class Publisher:
    """A worker that empties the outbox."""

    def __init__(self, database: Database, outbox: Events, context: Context) -> None:
        self._database = database
        self._outbox = outbox
        self._context = context
        self._client = context.client(_SERVICE, "database-server")
        # Until the first answer: the last event of an earlier process. See `_is_newer`.
        self._earlier: int | None = self._last()
        self._worker: Worker = context.worker("publisher", self._step, most_pause=5.0)

    def start(self) -> None:
        """Begin with what an earlier process left."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End; what is not told yet is told after the next start."""
        self._worker.stop(grace)

    def wake(self) -> None:
        """Something was committed."""
        self._worker.wake()

    def waiting(self) -> int:
        """Return how many events the database has not got yet."""
        with self._database.read() as c:
            return int(c.execute(sa.select(sa.func.count()).select_from(events)).scalar_one())

    def _last(self) -> int:
        with self._database.read() as c:
            return int(c.execute(sa.select(meta.c.sequence)).scalar_one())

    def _step(self) -> float:
        while not self._worker.stopping:
            with self._database.read() as c:
                epoch = bytes(c.execute(sa.select(meta.c.epoch)).scalar_one())
                # The first question is whether the database and this store mean the same numbers.
                most = _BATCH if self._earlier is None else 1
                rows = c.execute(sa.select(events).order_by(events.c.sequence).limit(most)).all()
            if not rows:
                break
            batch: list[database_pb2.RisEvent] = []
            left = _BATCH_BYTES
            for row in rows:
                left -= len(row.payload)
                if batch and left < 0:
                    break
                batch.append(database_pb2.RisEvent.FromString(bytes(row.payload)))
            request = database_pb2.ApplyRisEventsRequest(
                manager=self._context.instance, manager_epoch=epoch, events=batch
            )
            try:
                told = self._client.ApplyRisEvents(request, timeout=10.0).sequence
            except RadmeshError as error:
                if error.reason != "EVENT_GAP":
                    raise
                # The database is older than what it was told: from a backup, most likely.
                self._again("the database misses events")
                continue
            if self._is_newer(told, batch[-1].sequence):
                self._again("the database has events that this store has not told")
                continue
            gone = sa.delete(events).where(events.c.sequence <= told)
            self._database.write(lambda c, gone=gone: c.execute(gone))  # type: ignore[misc] # bound now
            self._earlier = None
        return _POLL_SECONDS

    def _is_newer(self, told: int, sent: int) -> bool:
        """Whether the database was told more than this store knows of: then this store is from a backup.

        What it says next would be taken for what the database has under these numbers already. An earlier process may
        have died between an answer and its own note of that, so the first answer may be ahead by what it had to tell.
        """
        return told > max(sent, self._earlier or 0)

    def _again(self, why: str) -> None:
        self._context.log.warning("everything is told anew", why=why)
        self._database.write(self._tell_anew)
        self._earlier = None

    def _tell_anew(self, c: sa.Connection) -> None:
        """Begin again at sequence 1 of a new epoch, with all that is known."""
        import secrets  # noqa: PLC0415

        from radmesh.connectivity_manager.orders import Orders, person  # noqa: PLC0415 - it imports this module

        # The row of `meta` first: whoever appends has it, and is waited for.
        c.execute(sa.update(meta).values(epoch=secrets.token_bytes(16), sequence=0))
        c.execute(sa.delete(events))
        every = Orders(self._database, self._outbox, self._context.clock)
        rows = c.execute(sa.select(patients).order_by(patients.c.id)).all()
        by_key = {row.id: row for row in rows}

        def merges(row: Any) -> int:
            count = 0
            while row.surviving:
                row, count = by_key[row.surviving], count + 1
            return count

        # Who was merged into a patient was so before that patient was merged itself: whoever undoes it finds it so.
        for row in sorted(rows, key=merges, reverse=True):
            if row.surviving:
                self._outbox.append(c, row.domain, merge=(person(row), person(by_key[row.surviving])))
            else:
                self._outbox.append(c, row.domain, patient=person(row))
        for order in every.told(c):
            self._outbox.append(c, order["domain"], order=order)


def person_message(person: Person) -> database_pb2.RisPatient:
    """Return a person as a message."""
    return database_pb2.RisPatient(
        patient_id=person.patient_id,
        issuer_of_patient_id=person.issuer_of_patient_id,
        patient_name=person.patient_name,
        patient_birth_date=person.patient_birth_date,
        patient_sex=person.patient_sex,
    )


def order_message(order: dict[str, Any]) -> database_pb2.Order:
    """Return an order (of `Orders.told`) as a message."""
    message = database_pb2.Order(
        order_id=order["order_id"],
        domain=order["domain"],
        accession_number=order["accession_number"],
        placer_order_number=order["placer_order_number"],
        filler_order_number=order["filler_order_number"],
        study_instance_uid=order["study_instance_uid"],
        patient=person_message(order["patient"]),
        status=order["status"],
        scheduled_time=order["scheduled_time"],
        modality=order["modality"],
        station_ae_title=order["station_ae_title"],
        procedure_code=order["procedure_code"],
        procedure_code_scheme=order["procedure_code_scheme"],
        scheduled_procedure_step_id=order["scheduled_procedure_step_id"],
        procedure_description=order["procedure_description"],
        requested_procedure_id=order["requested_procedure_id"],
        referring_physician_name=order["referring_physician_name"],
    )
    message.update_time.FromMicroseconds(order["update_time"])
    return message
