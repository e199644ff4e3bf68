"""Stores objects while the disk fails: python faulty.py ROOT, with faults.so preloaded. Prints a JSON line a case."""

import ctypes
import errno
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from store_support import CHUNK, all_rows, body, digest_of, header, open_store, put, send, sha256
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError

DATA, META, SYNC, NAME, OPEN = range(1, 6)
faults = ctypes.CDLL(None)


def case(root: Path, kind: int, part: str, error: int, skip: int) -> dict[str, Any]:
    """Objects of two studies, small and large; the disk fails in between, and is well again."""
    alarms: list[str] = []
    store = open_store(root, alarm=lambda reason, _text: alarms.append(reason))
    acknowledged: dict[Any, bytes] = {}
    reasons: Counter[str] = Counter()

    def store_it(number: int) -> None:
        large = number % 5 == 4
        data = body(2 * CHUNK + number if large else 3_000 * (number % 4), number)
        try:
            stored = (send if large else put)(store, header(number % 2, number), data, number)
            acknowledged[stored.ref] = sha256(data)
        except RadmeshError as failure:
            reasons[failure.reason] += 1

    for number in range(10):
        store_it(number)
    assert not reasons
    faults.fault_arm(kind, part.encode(), error, skip, 1_000_000 if error == errno.ENOSPC else 1)
    for number in range(10, 30):
        store_it(number)
    # Another study's first object, registration and settling, while the disk fails.
    for call in (
        lambda: put(store, header(7, 0), b"new study"),
        lambda: store.mark_registered(*next((h, g) for h, g, _, _ in store.unregistered()), 5),
    ):
        try:
            call()
        except RadmeshError as failure:
            reasons[failure.reason] += 1
    hits = faults.fault_disarm()
    unreadable = sum(digest_of(store, ref) != digest for ref, digest in acknowledged.items())
    # The disk is well again: everything that failed is sent again, and stored once.
    failed = dict(reasons)
    reasons.clear()
    for number in range(30):
        store_it(number)
    put(store, header(7, 0), b"new study")
    again = dict(reasons)
    wait_for(lambda: not store._suspect, 20)
    store.close()
    store = open_store(root)
    count = Counter((row.header.sop_instance_uid, row.sha256) for row in all_rows(store))
    lost = sum(digest_of(store, ref) != digest for ref, digest in acknowledged.items())
    store.close()
    return {
        "case": [kind, part, errno.errorcode[error], skip],
        "hits": hits,
        "failed": failed,
        "again": again,
        "acknowledged": len(acknowledged),
        "unreadable": unreadable,
        "lost": lost,
        "instances": len(count),
        "most": max(count.values()),
        "alarms": sorted(set(alarms)),
    }


for index, (part, kind, error, skip) in enumerate(
    [
        (part, kind, error, skip)
        for part in ("/studies/", "/catalogue/")
        for kind in (DATA, META, SYNC)
        for error in (errno.EIO, errno.ENOSPC)
        for skip in (0, 1, 5)
    ]
    + [("/studies/", kind, error, 0) for kind in (NAME, OPEN) for error in (errno.EIO, errno.ENOSPC)]
):
    print(json.dumps(case(Path(sys.argv[1]) / str(index), kind, part, error, skip)), flush=True)
