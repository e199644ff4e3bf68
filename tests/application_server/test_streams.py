"""The door's stream of objects: what breaks its rules is refused, and never stored as something it is not."""

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise

import grpc
import pytest
from cluster_support import RealCluster, data_set, save
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_dicom import image

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.client import Cluster
from radmesh.runtime.rpc import from_rpc_error

EXPLICIT = "1.2.840.10008.1.2.1"
CHUNK_MAX = 1_048_560


@pytest.fixture(scope="module")
def door(cluster: RealCluster) -> Iterator[Cluster]:
    with cluster.client() as client:
        yield client


def call(door: Cluster, messages: list[pb.StoreInstancesRequest]) -> tuple[list[pb.StoreInstancesResponse], str]:
    """The answers to messages, and the reason with which the stream ended, if it did."""
    answers = []
    try:
        answers.extend(door._studies.StoreInstances(iter(messages), metadata=door._metadata, timeout=30))
    except grpc.RpcError as error:
        return answers, from_rpc_error(error).reason
    return answers, ""


def message(data: bytes, label: str = "", syntax: str = "", *, last: bool = False) -> pb.StoreInstancesRequest:
    return pb.StoreInstancesRequest(transfer_syntax_uid=syntax, label=label, data=data, last=last)


def found(cluster: RealCluster) -> set[str]:
    """Which studies there are of those that were sent in pieces."""
    studies = {s["study_instance_uid"] for s in cluster.run("find", "--json").json["studies"]}
    return studies & {"2.25.501", "2.25.502", "2.25.503", "2.25.504"}


def test_an_object_that_begins_within_another_ends_the_stream(cluster, door):
    one, two = image("2.25.501"), image("2.25.502")
    answers, reason = call(
        door,
        [message(one[:100], "a", EXPLICIT), message(two, "b", EXPLICIT, last=True)],
    )
    assert (answers, reason) == ([], "TRANSFER_INVALID")
    assert found(cluster) == set()


def test_a_stream_that_ends_within_an_object_stores_nothing_of_it(cluster, door):
    whole = image("2.25.503", pixels=400_000)
    good = image("2.25.504", "2.25.504.1.1")
    answers, reason = call(
        door, [message(good, "good", EXPLICIT, last=True), message(whole[:200_000], "cut", EXPLICIT)]
    )
    assert ([a.outcome for a in answers], reason) == (["STORED"], "TRANSFER_INVALID")
    assert found(cluster) == {"2.25.504"}


@pytest.mark.parametrize("first", [True, False])
def test_a_message_that_is_too_long_ends_the_stream(door, first):
    head = image("2.25.505", pixels=4_000_000)
    long = CHUNK_MAX + 1
    messages = [message(head[:long], "a", EXPLICIT)] if first else [message(head[:1000], "a", EXPLICIT)]
    answers, reason = call(door, [*messages, message(head[1000 : 1000 + long], last=True)])
    assert (answers, reason) == ([], "CHUNK_TOO_LARGE")


@pytest.mark.parametrize(
    ("syntax", "data", "outcome"),
    [
        (EXPLICIT, b"", "DATA_SET_MISSING"),
        ("", b"x" * 100, "UID_INVALID"),
        ("1.2.3\n", b"x" * 100, "UID_INVALID"),
        ("1.2.840.10008.1.2.1.99", b"\xff" * 100, "DATA_SET_UNREADABLE"),
    ],
)
def test_what_is_refused_leaves_the_stream_usable(door, syntax, data, outcome):
    good = image("2.25.506", "2.25.506.1.1")
    messages = [
        message(data[:10], "bad", syntax),
        message(data[10:]),
        message(b"", last=True),
        message(good[:300], "good", EXPLICIT),
        message(good[300:], last=True),
    ]
    answers, reason = call(door, messages)
    assert reason == ""
    assert (answers[0].label, answers[0].outcome) == ("bad", outcome)
    assert answers[1].label == "good"
    assert answers[1].outcome in ("STORED", "ALREADY")
    assert answers[1].identity.sha256 == hashlib.sha256(good).digest()
    assert answers[0].message
    assert "x" * 10 not in answers[0].message


@settings(max_examples=examples(40))
@given(cuts=st.lists(st.integers(0, 1400), max_size=6), rubbish=st.binary(max_size=200))
def test_any_cut_and_any_rubbish_are_answered(door, cuts, rubbish):
    good = image("2.25.507", "2.25.507.1.1")
    places = [0, *sorted(min(c, len(good)) for c in cuts), len(good)]
    pieces = [good[a:b] for a, b in pairwise(places)]
    messages = [message(p, "good" * (n == 0), EXPLICIT * (n == 0)) for n, p in enumerate(pieces)]
    messages[-1].last = True
    answers, reason = call(door, [message(rubbish, "bad", EXPLICIT, last=True), *messages])
    assert reason == ""
    assert answers[0].outcome not in ("STORED", "ALREADY", "VARIANT")
    assert answers[1].outcome in ("STORED", "ALREADY")
    assert answers[1].registered


def test_reading_from_an_offset_and_a_part(cluster, door, tmp_path):
    path = save(tmp_path, 600, PixelData=os.urandom(512) * 6000, Rows=9600, Columns=160)
    assert cluster.run("store", path).code == 0
    whole = data_set(path)
    for offset, length in ((0, 0), (1, 0), (1_048_560, 10), (len(whole) - 1, 0), (len(whole), 0), (500, 2_000_000)):
        request = pb.ReadInstanceRequest(
            study_instance_uid="2.25.77.600", sop_instance_uid="2.25.77.600.1.1", offset=offset, length=length
        )
        messages = list(door._studies.ReadInstance(request, metadata=door._metadata, timeout=30))
        expected = whole[offset : offset + length] if length else whole[offset:]
        assert b"".join(m.data for m in messages) == expected
        assert messages[0].instance.length == len(whole)
        assert max(len(m.data) for m in messages) <= CHUNK_MAX


@pytest.mark.parametrize("offset", [2**40, 2**63])
def test_reading_beyond_the_end_is_refused(cluster, door, tmp_path, offset):
    assert cluster.run("store", save(tmp_path, 601)).code == 0
    request = pb.ReadInstanceRequest(
        study_instance_uid="2.25.77.601", sop_instance_uid="2.25.77.601.1.1", offset=offset
    )
    with pytest.raises(grpc.RpcError) as raised:
        list(door._studies.ReadInstance(request, metadata=door._metadata, timeout=30))
    assert from_rpc_error(raised.value).code in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
