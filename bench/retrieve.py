"""C-GET and C-MOVE beside Orthanc's and dcmqrscp's, in one run, on tmpfs (bench/README.md).

All have the same study of CT images; radmesh and Orthanc also many small studies (bench/queries.py), as a year brings
them. It is asked for by the same program, which drops what comes.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "tests" / "support")]

import queries
import raw_dicom
import raw_station
import servers
import sets
from raw_sender import RawAssociation, read_part10

CT = sets.SOP_CLASS["CT"]
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
SINK = "SINK"
MARKS = (("orthanc", 0.5, 1.0), ("dcmqrscp", 0.4, 0.9))


def identifier(study: str) -> bytes:
    """The keys of a study, in Implicit VR Little Endian."""
    return raw_dicom.element(0x0008, 0x0052, b"STUDY", b" ") + raw_dicom.element(0x0020, 0x000D, study.encode())


def load(server: servers.Running, files: list[Path]) -> str:
    """Store the study; return its UID."""
    objects = [read_part10(path) for path in files]
    with RawAssociation("127.0.0.1", server.port, called=server.ae_title, calling="BENCH", objects=objects) as sender:
        if any(sender.store(number) for number in range(len(objects))):
            sys.exit(f"bench: {server.name} refused an object")
    return sets.uid("bench", "CT", 0)


def get(server: servers.Running, study: str) -> raw_station.Taken:
    taken = raw_station.Taken(keep=False)
    contexts = [(1, GET, [raw_dicom.IMPLICIT]), (3, CT, [raw_dicom.EXPLICIT])]
    roles = [(CT, 0, 1)]
    with raw_dicom.Client(server.port, contexts, called=server.ae_title, calling="BENCH", roles=roles) as client:
        answer = raw_station.retrieve(client, GET, identifier(study), taken)
        client.release()
    return checked(server, taken, answer)


def move(server: servers.Running, study: str, sink: raw_station.Station) -> raw_station.Taken:
    sink.taken = raw_station.Taken(keep=False)
    contexts = [(1, MOVE, [raw_dicom.IMPLICIT])]
    with raw_dicom.Client(server.port, contexts, called=server.ae_title, calling="BENCH") as client:
        answer = raw_station.retrieve(client, MOVE, identifier(study), sink.taken, destination=SINK)
        client.release()
    return checked(server, sink.taken, answer)


def checked(server: servers.Running, taken: raw_station.Taken, answer: dict[int, bytes]) -> raw_station.Taken:
    if answer[0x0900] != raw_dicom.us(0):
        sys.exit(f"bench: {server.name} answers 0x{int.from_bytes(answer[0x0900], 'little'):04X}")
    return taken


def measure(what: str, server: servers.Running, study: str, sink: raw_station.Station, count: int) -> dict[str, float]:
    """Return instances a second, and CPU seconds of the server and of who receives for each GB."""
    before, own = servers.cpu_seconds(server.pid), _own_cpu()
    began = time.perf_counter()
    taken = get(server, study) if what == "C-GET" else move(server, study, sink)
    seconds = time.perf_counter() - began
    if taken.count != count:
        sys.exit(f"bench: {server.name} sent {taken.count} of {count} instances")
    gigabytes = taken.size / 1e9
    return {
        "instances_s": count / seconds,
        "cpu_s_gb": (servers.cpu_seconds(server.pid) - before) / gigabytes,
        "receiver_cpu_s_gb": (_own_cpu() - own) / gigabytes,
    }


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def fill(server: servers.Running, studies: int) -> None:
    """Store many small studies."""
    work = [(server.port, server.ae_title, studies, first, 4) for first in range(4)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        if refused := sum(pool.map(queries.fill, work)):
            sys.exit(f"bench: {server.name} refused {refused} objects")


def main() -> int:
    """Run, print a table, and write bench/out/retrieve.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000, help="small studies beside the one that is retrieved")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transport", choices=("unix", "tls"), default="unix")
    parser.add_argument("--only", default="", help="radmesh, orthanc or dcmqrscp alone")
    parser.add_argument("--at", type=Path, default=Path("/dev/shm/radmesh-bench-retrieve"))
    options = parser.parse_args()
    with ExitStack() as stack:
        # Half a GB of images, in memory.
        stack.callback(shutil.rmtree, options.at, ignore_errors=True)
        files = sorted((sets.make(options.at / "sets", "ct") / "s00").iterdir())[: options.images]
        sink = stack.enter_context(raw_station.Station(keep=False))
        configuration = options.at / "radmesh.toml"
        configuration.write_text(
            f'[[stations]]\nae_title = "{SINK}"\nhost = "127.0.0.1"\nport = {sink.port}\n'
            '[[stations]]\nae_title = "BENCH"\ngrants = ["store", "query", "retrieve"]\n'
            # Who fills it calls itself otherwise.
            '[[stations]]\nae_title = "RAWSCU"\ngrants = ["store", "query", "retrieve"]\n'
        )
        made = {
            "radmesh": lambda: servers.radmesh(
                options.at / "radmesh", transport=options.transport, extra=("--config", str(configuration))
            ),
            "orthanc": lambda: servers.peer("orthanc", options.at / "orthanc", tuned=True, to=(SINK, sink.port)),
            "dcmqrscp": lambda: servers.peer("dcmqrscp", options.at / "dcmqrscp", tuned=True, to=(SINK, sink.port)),
        }
        running = [stack.enter_context(make()) for name, make in made.items() if options.only in ("", name)]
        studies = {}
        for server in running:
            # dcmqrscp reads its whole index for each request: it is given the one study.
            if server.name != "dcmqrscp" and options.studies:
                fill(server, options.studies)
            studies[server.name] = load(server, files)
        for server in running:
            queries.settle(server)
        rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number in range(options.rounds + 1):
            for what in ("C-GET", "C-MOVE"):
                for server in running:
                    found = measure(what, server, studies[server.name], sink, len(files))
                    # The first round warms up.
                    if number:
                        rounds.setdefault((what, server.name), []).append(found)
    figures = {f"{what} {name}": queries.median(found) for (what, name), found in rounds.items()}
    for name, found in figures.items():
        print(
            f"{name:16} {found['instances_s']:8.0f} instances/s  {found['cpu_s_gb']:6.2f} CPU s/GB, "
            f"the receiver {found['receiver_cpu_s_gb']:.2f}"
        )
    for what in ("C-GET", "C-MOVE"):
        for peer, must, goal in MARKS if not options.only else ():
            each = zip(rounds[what, "radmesh"], rounds[what, peer], strict=True)
            ratio = statistics.median(ours["instances_s"] / theirs["instances_s"] for ours, theirs in each)
            print(f"{what} ÷ {peer}: {ratio:.2f} (at least {must}, goal {goal}){'' if ratio >= must else '  MISSED'}")
    out = Path(__file__).with_name("out")
    out.mkdir(exist_ok=True)
    (out / "retrieve.json").write_text(json.dumps({"studies": options.studies, **figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
