"""`make bench`: DICOM intake of radmesh and of its peers, in one run, as ratios.

Every load runs against every server, one after another, in rounds, so that a noisy neighbour meets all of them; the
table
shows the median of the rounds. radmesh runs as `make up` ships it: digest, registration and durable answer on. After
each
load the SHA-256 that radmesh reports for an object is compared with that of the bytes that were sent, and the counts
with what
was sent. Peers listen on all addresses: as root, everything runs in a network namespace that has nothing but loopback.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "tests" / "support")]

import servers
import sets
from raw_sender import RawAssociation, read_part10

WARM_UP = 20
"""Objects that each association sends before the clock starts; of few and large ones a fifth."""
SETTLE_SECONDS = 3.0
"""Between those and the rest: what a server begins with the first objects of a day is begun."""
RAW_LOADS = (("ct", 1), ("ct", 4), ("small", 1), ("small", 4), ("large", 1), ("large", 4))


def raw_sender(files: list[Path], warm: int, port: int, ae_title: str, ready: Any, go: Any, results: Any) -> None:
    """One association: objects from memory, one send each, no DICOM library in the loop; `warm` come before."""
    objects = [read_part10(path) for path in files]
    to: dict[str, Any] = {"called": ae_title, "calling": "BENCH"}
    bad, latencies, waits = 0, [], True
    try:
        if warm:
            with RawAssociation("127.0.0.1", port, objects=objects[:warm], **to) as association:
                bad += sum(association.store(number) != 0 for number in range(warm))
        association = RawAssociation("127.0.0.1", port, objects=objects[warm:], **to)
        ready.release()
        waits = False
        go.wait()
        with association:
            for number in range(len(objects) - warm):
                start = time.perf_counter()
                bad += association.store(number) != 0
                latencies.append(time.perf_counter() - start)
    except Exception as error:
        print(f"bench: sender: {error!r}", file=sys.stderr)
        bad += len(objects) - warm - len(latencies)
        if waits:
            ready.release()
    results.put((bad, statistics.median(latencies or [0])))


def touch_memory(folder: Path, size: int) -> None:
    """Use as much memory as the load will, and give it back.

    A virtual machine gets its memory page by page from its host, when it first touches it, which costs more than
    writing it does: whoever is measured first would pay for all.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    block = bytes(1 << 20)
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else folder.parent) as file:
        for _ in range(size >> 20):
            file.write(block)


def load_raw(server: servers.Running, files: list[Path], associations: int) -> dict[str, float]:
    """The first objects warm the server up: what is measured is a modality's day, not a server's first second."""
    context = multiprocessing.get_context("fork")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    parts = [files[i::associations] for i in range(associations)]
    warm = min(WARM_UP, len(parts[-1]) // 5)
    files = [path for part in parts for path in part[warm:]]
    senders = [
        context.Process(target=raw_sender, args=(part, warm, server.port, server.ae_title, ready, go, results))
        for part in parts
    ]
    for sender in senders:
        sender.start()
    for _ in senders:
        ready.acquire()
    time.sleep(SETTLE_SECONDS)
    cpu, start = servers.cpu_seconds(server.pid), time.perf_counter()
    go.set()
    answers = [results.get(timeout=900) for _ in senders]
    seconds = time.perf_counter() - start
    for sender in senders:
        sender.join()
    return figures(server, files, seconds, cpu) | {
        "failed": sum(a[0] for a in answers),
        "p50_ms": max(a[1] for a in answers) * 1e3,
    }


def load_dcmtk(server: servers.Running, files: list[Path], program: str) -> dict[str, float]:
    """An unmodified sender, as shipped."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        command = [program, "-aec", server.ae_title, "127.0.0.1", str(server.port), *map(str, files)]
        cpu, start = servers.cpu_seconds(server.pid), time.perf_counter()
        code = subprocess.run(command, stdout=listing, stderr=subprocess.STDOUT, check=False, timeout=600).returncode
        seconds = time.perf_counter() - start
    return figures(server, files, seconds, cpu) | {"failed": float(code != 0)}


def figures(server: servers.Running, files: list[Path], seconds: float, cpu_before: float) -> dict[str, float]:
    size = sum(path.stat().st_size for path in files)
    return {
        "instances_s": len(files) / seconds,
        "mb_s": size / seconds / 1e6,
        "cpu_s_gb": (servers.cpu_seconds(server.pid) - cpu_before) / (size / 1e9),
    }


def check_radmesh(server: servers.Running, files: list[Path]) -> None:
    """Every object is there once, and the digest stored is the digest sent."""
    from radmesh.client import Cluster

    expected = {item.sop_instance_uid: item for item in map(read_part10, files)}
    with Cluster.local(server.data) as cluster:
        deadline = time.monotonic() + 10
        while True:
            found = {
                instance.sop_instance_uid: instance.sha256
                for study in cluster.find()
                for instance in cluster.instances(study.study_instance_uid, variants=True)
            }
            if len(found) >= len(expected) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    for uid in random.sample(sorted(expected), min(20, len(expected))):
        if found.get(uid) != hashlib.sha256(expected[uid].data_set).hexdigest():
            sys.exit(f"bench: radmesh does not hold {uid} as it was sent")
    if set(found) != set(expected):
        sys.exit(f"bench: radmesh holds {len(found)} objects of {len(expected)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--where", choices=("tmpfs", "disk", "both"), default="both", help="where servers keep their data"
    )
    parser.add_argument("--only", default="", help="loads whose name contains this, such as 'ct'")
    parser.add_argument("--transport", choices=("unix", "tls"), default="unix", help="between radmesh's components")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()

    if subprocess.run([Path(__file__).parents[1] / "tools/partners", "--bench"], check=False).returncode != 0:
        sys.exit("bench: the peers are not here")
    if os.geteuid() == 0 and os.environ.get("RADMESH_BENCH_NETNS") != "1":
        inner = 'ip link set lo up; exec "$@"'
        os.environ["RADMESH_BENCH_NETNS"] = "1"
        os.execvp("unshare", ["unshare", "-n", "sh", "-c", inner, "sh", sys.executable, *sys.argv])

    shm = Path("/dev/shm")
    scratch = {"tmpfs": Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None, prefix="radmesh-bench-"))}
    scratch["disk"] = Path(tempfile.mkdtemp(dir=arguments.out.parent, prefix=".bench-"))
    arguments.out.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        files = {name: sorted(sets.make(scratch["tmpfs"], name).rglob("*.dcm")) for name in ("ct", "small", "large")}
        for where in ("tmpfs", "disk") if arguments.where == "both" else (arguments.where,):
            run_all(arguments, where, scratch[where] / "data", files, rows)
    finally:
        for folder in scratch.values():
            shutil.rmtree(folder, ignore_errors=True)
        (arguments.out / "intake.json").write_text(json.dumps(rows, indent=1))
    report(rows)


def run_all(
    arguments: argparse.Namespace, where: str, data: Path, files: dict[str, list[Path]], rows: list[dict[str, Any]]
) -> None:
    def measure(
        load: str,
        server: AbstractContextManager[servers.Running],
        run: Callable[[servers.Running], dict[str, float]],
        sent: list[Path],
    ) -> None:
        touch_memory(data, 2 * sum(path.stat().st_size for path in sent) + (512 << 20))
        with server as running:
            result = run(running)
            if running.name == "radmesh":
                check_radmesh(running, sent)
        rows.append({"where": where, "load": load, "server": running.name, **result})
        print(
            f"  {where:6}{load:22}{running.name:20}{result['instances_s']:9.1f}/s{result['mb_s']:9.1f} MB/s"
            f"{result['cpu_s_gb']:8.2f} CPU s/GB{result['failed']:6.0f} failed",
            flush=True,
        )

    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}, {where}", flush=True)
        for name, associations in RAW_LOADS:
            load = f"{name}, {associations} assoc"
            if arguments.only not in load:
                continue
            sent = files[name]
            for server in (
                servers.radmesh(data, transport=arguments.transport),
                servers.peer("orthanc", data, tuned=True),
                servers.peer("dcmqrscp", data, tuned=True),
                servers.peer("storescp", data, tuned=True),
            ):
                measure(load, server, lambda running, s=sent, a=associations: load_raw(running, s, a), sent)
        if where == "disk":
            continue
        for name, program in (("ct", "storescu"), ("ct", "dcmsend"), ("small", "storescu"), ("small", "dcmsend")):
            load = f"{name}, {program}"
            if arguments.only not in load:
                continue
            # As shipped, a peer takes 22 instances/s of any size: a fifth of the objects is enough to see it.
            for server, sent in (
                (servers.radmesh(data, transport=arguments.transport), files[name]),
                (servers.peer("orthanc", data, tuned=False), files[name][:: len(files[name]) // 100]),
            ):
                measure(load, server, lambda running, s=sent, p=program: load_dcmtk(running, s, p), sent)


def report(rows: list[dict[str, Any]]) -> None:
    """Medians, and radmesh divided by each peer."""
    print("\nmedian instances/s, and radmesh ÷ peer")
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault((row["where"], row["load"]), {}).setdefault(row["server"], []).append(row["instances_s"])
    for (where, load), by_server in cells.items():
        ours = statistics.median(by_server.get("radmesh", [0]))
        peers = "".join(
            f"  {name} {statistics.median(values):.0f} (÷ {ours / statistics.median(values):.2f})"
            for name, values in by_server.items()
            if name != "radmesh"
        )
        print(f"  {where:6}{load:22}radmesh {ours:7.0f} {peers}")


if __name__ == "__main__":
    main()
