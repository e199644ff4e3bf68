"""Registration: one study that cannot be read keeps no other from being found."""

import hashlib
from pathlib import Path
from typing import Any

from transfer_support import REGISTRY, Mesh, Registry, admission_key, object_header, open_store, uid
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.pump import Heartbeat, RegistrationPump


class Unreadable:
    """A real store; the rows of studies in `broken` cannot be read."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.broken: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def rows(self, study: str, *arguments: Any, **options: Any) -> Any:
        if study in self.broken:
            raise RadmeshError("OBJECT_CORRUPT", "the study's file is damaged")
        return self._store.rows(study, *arguments, **options)


def test_a_study_that_cannot_be_read_waits_alone(folder: Path) -> None:
    mesh = Mesh(folder, "unix")
    registry = Registry()
    mesh.serve(mesh.context("database-server"), REGISTRY, registry)
    context = mesh.context("archive-server-0")
    store = Unreadable(open_store(folder / "store", mesh.clock))
    studies = [uid("study", n) for n in range(3)]
    # Whichever of them is looked at first, there is one behind it.
    store.broken = {study_hash(study) for study in sorted(studies, key=study_hash)[:2]}
    for study in studies:
        key, data = admission_key(study), study.encode()
        store.put(
            hashlib.sha256(data).digest()[:16],
            object_header(study, study + ".2", key),
            data,
            sha256=hashlib.sha256(data).digest(),
            queryable=b"",
            remarks=(),
        )
    heartbeat = Heartbeat(store, context, common_pb2.STORE_KIND_ARCHIVE, lambda: "unix:/nowhere")
    pump = RegistrationPump(store, context, heartbeat=heartbeat)
    heartbeat.start()
    pump.start()
    try:
        wait_for(lambda: len(registry.records) == 1)
        assert {key[1] for key in registry.records}.isdisjoint(store.broken)
        store.broken.clear()
        pump.wake()
        wait_for(lambda: len(registry.records) == 3)
    finally:
        pump.stop(1)
        heartbeat.stop(1)
        mesh.close()
        store.close()
