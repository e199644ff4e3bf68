"""Transfer between components: MB/s and CPU s/GB of Put and ReadRange, sender and store each a process.

The store is a real StudyStore, whose commits are durable; the sender hashes what it sends, as the gateway proxy does.
What is timed is the mesh alone: no DICOM, no database.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from radmesh.mesh.up import MALLOC

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "support")]

SIZES = {"9 kB": (9_000, 2000), "0.5 MB": (525_000, 400), "20 MB": (20_000_000, 20)}


def seconds_of_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve(folder: Path, transport: str, pipe: Any) -> None:
    """The store's process; it says its CPU seconds whenever it is asked."""
    from transfer_support import Mesh, open_store

    from radmesh.transfer.receiver import TransferReceiver

    mesh = Mesh(folder, transport, issue=False)
    context = mesh.context("archive-server-0")
    store = open_store(folder / "store", mesh.clock)
    server = context.server(max_connection_age=None)
    TransferReceiver(store, context.credentials, mesh.clock).serve(server)
    server.start()
    pipe.send((server.target, server.line_target, store.store_id, store.epoch))
    while pipe.recv():
        pipe.send(seconds_of_cpu())
    server.stop(1)
    store.close()


def measure(folder: Path, transport: str) -> list[dict[str, Any]]:
    """One run of every size."""
    from transfer_support import Mesh, admission_key, object_header, uid

    from radmesh.transfer.reader import read_range
    from radmesh.transfer.sender import Sender

    mesh = Mesh(folder, transport)
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, transport, other))
    process.start()
    target, put_target, store_id, epoch = pipe.recv()

    class Store:
        pass

    store: Any = Store()
    store.store_id, store.epoch = store_id, epoch
    client = mesh.context("gateway-proxy")
    sender = Sender(client.line, lambda a: mesh.ticket(store, put_target, a.key), mesh.clock)
    rows = []

    def cpu() -> float:
        pipe.send(True)
        return float(pipe.recv()) + seconds_of_cpu()

    for name, (size, count) in SIZES.items():
        study = uid("transfer", name)
        key = admission_key(study)
        data = os.urandom(size)
        headers = [object_header(study, uid("object", name, number), key) for number in range(count)]
        # Another digest for each, as other objects would have.
        contents = [number.to_bytes(8, "big") + data[8:] for number in range(count)]
        places = []
        start, used = time.perf_counter(), cpu()
        for header, content in zip(headers, contents, strict=True):
            sha256 = hashlib.sha256(content).digest()
            places.append(sender.send(header, key, content, sha256=sha256, queryable=b"").object)
        rows.append(figures("put", transport, name, size * count, count, time.perf_counter() - start, cpu() - used))
        channel = client.channels.get(target)
        start, used = time.perf_counter(), cpu()
        for place in places:
            with read_range(channel, place) as reader:
                for _ in reader:
                    pass
        rows.append(figures("read", transport, name, size * count, count, time.perf_counter() - start, cpu() - used))
    sender.close()
    pipe.send(False)
    process.join()
    mesh.close()
    return rows


def figures(what: str, transport: str, name: str, size: int, count: int, seconds: float, cpu: float) -> dict[str, Any]:
    return {
        "what": what,
        "transport": transport,
        "objects": name,
        "objects_s": count / seconds,
        "mb_s": size / seconds / 1e6,
        "cpu_s_gb": cpu / (size / 1e9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # As every process of a cluster has it.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    shm = Path("/dev/shm")
    rows: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        for transport in ("unix", "tls"):
            folder = Path(tempfile.mkdtemp(prefix="rm-", dir=shm if shm.is_dir() else None))
            try:
                rows += measure(folder, transport)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "transfer.json").write_text(json.dumps(rows, indent=1))
    print("transfer, sender and store together, medians")
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["what"], row["transport"], row["objects"]), []).append(row)
    for (what, transport, objects), runs in cells.items():
        per_second, speed, cpu = (statistics.median(run[k] for run in runs) for k in ("objects_s", "mb_s", "cpu_s_gb"))
        print(f"  {what:6}{transport:6}{objects:8}{per_second:9.0f}/s{speed:9.0f} MB/s{cpu:8.2f} CPU s/GB")


if __name__ == "__main__":
    main()
