"""Storage Commitment in the tables: nothing is said to be lost before every store that may have it has told."""

from typing import Any

import pytest
from database_support import ARCHIVE, CT, SPOOL, WEB_CACHE, Parts, record, uid

from radmesh.api.database.v1 import commitment_pb2 as pb
from radmesh.database_server.commitment import CLASS_CONFLICT, NO_SUCH_OBJECT, Commitments, CommitmentService
from radmesh.runtime.errors import RadmeshError

CALL: Any = None
TRANSACTION = "2.25.1"


@pytest.fixture
def kept(parts: Parts) -> Commitments:
    return Commitments(parts.database, parts.clock, parts.jobs, 3.0)


def outcomes(kept: Commitments) -> list[int] | None:
    found = kept.evaluate("CT1", TRANSACTION).outcomes
    return None if found is None else list(found)


def test_what_is_stored_is_stored_whoever_is_silent(kept: Commitments, parts: Parts) -> None:
    stored = record(1, 1)
    parts.register(stored)
    parts.advance(60)
    kept.request("CT1", "RADMESH", TRANSACTION, [(stored.sop_class_uid, stored.sop_instance_uid), ("1.2", "1.2.3")])
    assert outcomes(kept) is None
    kept.request("CT2", "RADMESH", TRANSACTION, [(stored.sop_class_uid, stored.sop_instance_uid)])
    assert kept.evaluate("CT2", TRANSACTION).outcomes == [0]


def test_what_is_missing_waits_for_every_archive_and_spool(kept: Commitments, parts: Parts) -> None:
    for store, kind in (("archive-0", ARCHIVE), ("spool-0", SPOOL), ("curator-0", WEB_CACHE)):
        parts.beat(store, kind)
    missing = record(1, 2)
    reference = (missing.sop_class_uid, missing.sop_instance_uid)
    kept.request("CT1", "RADMESH", TRANSACTION, [reference])
    assert outcomes(kept) is None  # none has told since
    parts.advance(1)
    for store, kind in (("archive-0", ARCHIVE), ("spool-0", SPOOL)):
        parts.beat(store, kind)
    assert outcomes(kept) is None  # what they told may be older than the request
    parts.advance(2)
    parts.beat("archive-0")
    assert outcomes(kept) is None  # the spool has not
    parts.beat("spool-0", SPOOL)
    assert outcomes(kept) == [NO_SUCH_OBJECT]
    parts.register(missing)
    assert outcomes(kept) == [0]
    kept.request("CT1", "RADMESH", "2.25.2", [("1.2.3", missing.sop_instance_uid)])
    assert kept.evaluate("CT1", "2.25.2").outcomes == [CLASS_CONFLICT]


def test_a_store_that_has_not_registered_all_or_is_silent_is_waited_for(kept: Commitments, parts: Parts) -> None:
    parts.beat("archive-0")
    parts.beat("archive-1")
    kept.request("CT1", "RADMESH", TRANSACTION, [(CT, uid("nowhere"))])
    parts.advance(10)
    parts.registry.heartbeat(
        {
            "store_id": "archive-0",
            "kind": ARCHIVE,
            "target": "unix:/archive-0",
            "epoch": bytes(16),
            "free_bytes": 1,
            "accepting": True,
            "unregistered": 1,
        }
    )
    assert outcomes(kept) is None
    parts.beat("archive-0")
    assert outcomes(kept) is None  # archive-1 is silent, and may have it
    parts.advance(3600)
    parts.beat("archive-0")
    assert outcomes(kept) == [NO_SUCH_OBJECT]  # nobody is waited for for ever


def test_a_request_that_comes_again_is_answered_again(kept: Commitments, parts: Parts) -> None:
    stored = record(1, 1)
    parts.register(stored)
    references = [(stored.sop_class_uid, stored.sop_instance_uid)]
    kept.request("CT1", "RADMESH", TRANSACTION, references)
    kept.request("CT1", "RADMESH", TRANSACTION, references)
    with pytest.raises(RadmeshError) as other:
        kept.request("CT1", "RADMESH", TRANSACTION, [(CT, "1.2.3")])
    assert other.value.reason == "TRANSACTION_IN_USE"
    assert kept.open("CT1") == [TRANSACTION]
    kept.finish("CT1", TRANSACTION, 1)  # of the first request: the second is still open
    assert kept.open("CT1") == [TRANSACTION]
    kept.finish("CT1", TRANSACTION, 2)
    assert (kept.open("CT1"), kept.evaluate("CT1", TRANSACTION).finished) == ([], True)
    kept.request("CT1", "RADMESH", TRANSACTION, [(CT, "1.2.3")])
    assert kept.open("CT1") == [TRANSACTION]
    rows, _ = parts.jobs.list("commitment", 0, 10, "")
    assert [row["key"] for row in reversed(rows)] == [f"CT1 {TRANSACTION} {n}" for n in (1, 2, 3)]
    with pytest.raises(RadmeshError) as unknown:
        kept.evaluate("CT1", "2.25.9")
    assert unknown.value.reason == "TRANSACTION_NOT_FOUND"


def test_messages(kept: Commitments, parts: Parts) -> None:
    service = CommitmentService(kept)
    stored = record(1, 1)
    parts.register(stored)
    reference = pb.CommitmentReference(sop_class_uid=stored.sop_class_uid, sop_instance_uid=stored.sop_instance_uid)
    request = pb.RequestCommitmentRequest(
        station="CT1", called_ae_title="RADMESH", transaction_uid=TRANSACTION, references=[reference]
    )
    service.RequestCommitment(request, CALL)
    found = service.EvaluateCommitment(pb.EvaluateCommitmentRequest(station="CT1", transaction_uid=TRANSACTION), CALL)
    assert (found.decided, found.finished, list(found.references), found.version) == (True, False, [reference], 1)
    listed = service.ListCommitments(pb.ListCommitmentsRequest(station="CT1"), CALL)
    assert list(listed.transaction_uids) == [TRANSACTION]
    service.FinishCommitment(pb.FinishCommitmentRequest(station="CT1", transaction_uid=TRANSACTION, version=1), CALL)
    for field, broken in (
        ("references", {"references": []}),
        ("station", {"station": "A" * 17}),
        ("transaction_uid", {"transaction_uid": ""}),
        ("transaction_uid", {"references": [pb.CommitmentReference(sop_class_uid="1.2", sop_instance_uid="1" * 65)]}),
    ):
        bad = pb.RequestCommitmentRequest()
        bad.CopyFrom(request)
        for name, value in broken.items():
            bad.ClearField(name)
            if isinstance(value, list):
                bad.references.extend(value)
            else:
                setattr(bad, name, value)
        with pytest.raises(RadmeshError, match=field) as caught:
            service.RequestCommitment(bad, CALL)
        assert caught.value.reason == "FIELD_INVALID"
