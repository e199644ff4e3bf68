"""Acceptor processes: shared port, shared counts, restarts, drains, memory."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from depth import times
from edge_mesh import World
from raw_dicom import ASSOCIATE_RJ, CT, Client, associate_rq, image, message, store_rq
from transfer_support import rss_anon
from waiting import wait_for

from radmesh.dicom.stations import Station
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.acceptor import Settings
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.supervisor import Supervisor
from radmesh_gateway_proxy.tally import OPEN, Board, Tally


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


Run = Callable[..., Supervisor]


@pytest.fixture
def run(world: World) -> Iterator[Run]:
    running: list[Supervisor] = []

    def start(stations: tuple[Station, ...] = (), **settings: Any) -> Supervisor:
        supervisor = world.supervisor(stations, **settings)
        supervisor.start()
        running.append(supervisor)
        return supervisor

    yield start
    for supervisor in running:
        supervisor.stop(0.1)


def acceptors(supervisor: Supervisor) -> list[int]:
    return list(supervisor.pids())[1:]


def test_settings_survive_the_pipe() -> None:
    settings = Settings(
        section=Section(private_sop_classes=("1.2.3",), idle_timeout=5.0),
        stations=(Station("CT1", ("10.0.0.0/8",), ("store", "query")),),
        instance="gateway-proxy",
        component="gateway-proxy",
        data="/d",
        credentials="/c",
        addresses={"a": "unix:/b"},
        listener=3,
        tls_listener=-1,
        board=4,
        rows=2,
        row=1,
        parent=5,
    )
    assert Settings.from_json(settings.to_json().encode()) == settings


def test_counts_are_shared_and_never_exceed_the_limit() -> None:
    board = Board(3)
    tallies = [Tally(board, row, 10) for row in range(3)]
    granted = [tally.associate() for _ in range(5) for tally in tallies]
    assert sum(granted) == board.total(OPEN) == 10
    # A process that was killed gives back what it had, whoever reads the board.
    other = Board(3, board.descriptor)
    mine = board.get(0, OPEN)
    other.end(0)
    assert board.total(OPEN) == 10 - mine
    assert tallies[1].associate()


def test_store_through_processes(world: World, run: Run) -> None:
    supervisor = run()
    assert len(acceptors(supervisor)) == 2
    data = image("2.25.200", "2.25.200.1", pixels=320_000)
    with Client(supervisor.port, calling="CT1") as client:
        assert client.store(data, "2.25.200.1").status == 0
        assert client.echo() == 0
        client.release()
    assert world.stored("2.25.200.1")[1] == data
    figures = wait_for(lambda: (f := world.context.status.figures())["associations_open"] == 0 and f)
    assert figures["objects_stored"] >= 1
    assert figures["bytes_received"] >= len(data)
    supervisor._publish()
    samples = world.context.metrics.registry
    assert (
        samples.get_sample_value("radmesh_dimse_responses_total", {"command": "C-STORE", "status": "0x0000"}) or 0
    ) >= 1
    assert (samples.get_sample_value("radmesh_intake_seconds_count") or 0) >= 1
    assert supervisor.endpoints()["dicom"] == f"dicom://127.0.0.1:{supervisor.port}"


def spread(supervisor: Any) -> list[Client]:
    """Four associations, two in each process: where a process has no time to take its share, the other takes it."""
    board = supervisor._board

    def four() -> list[Client]:
        wait_for(lambda: board.total(OPEN) == 0)
        clients = [Client(supervisor.port) for _ in range(4)]
        wait_for(lambda: board.total(OPEN) == 4)
        if [board.get(row, OPEN) for row in range(2)] == [2, 2]:
            return clients
        for client in clients:
            client.close()
        return []

    made: list[Client] = wait_for(four)
    return made


def test_associations_are_spread_and_limited_over_processes(run: Run) -> None:
    supervisor = run(max_associations=4)
    board = supervisor._board
    clients = spread(supervisor)
    assert Client(supervisor.port).answer == (ASSOCIATE_RJ, bytes((0, 2, 3, 2)))
    for client in clients:
        client.close()
    wait_for(lambda: board.total(OPEN) == 0)


def test_a_killed_acceptor_is_replaced_and_its_associations_are_not_counted(run: Run) -> None:
    supervisor = run()
    before = acceptors(supervisor)
    clients = spread(supervisor)
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: supervisor._board.total(OPEN) == 2)
    # The other goes on, and serves new ones too.
    with Client(supervisor.port) as client:
        assert client.echo() == 0
        client.release()
    after = wait_for(lambda: len(pids := acceptors(supervisor)) == 2 and pids)
    assert before[1] in after
    assert before[0] not in after
    for client in clients:
        client.close()
    for _ in range(4):
        with Client(supervisor.port) as client:
            assert client.echo() == 0


def test_drain_finishes_what_has_begun(world: World, run: Run) -> None:
    supervisor = run()
    port = supervisor.port
    data = image("2.25.201", "2.25.201.1", pixels=64_000)
    sent = message(1, store_rq(CT, "2.25.201.1"), data, max_pdu=4096)
    client = Client(port)
    client.send(sent[:10_000])
    stopping = threading.Thread(target=supervisor.stop, args=(60.0,))
    stopping.start()
    wait_for(lambda: _refused(port))
    client.send(sent[10_000:])
    assert client.response().status == 0
    stopping.join(60)
    assert not stopping.is_alive()
    assert world.stored("2.25.201.1")[1] == data
    assert acceptors(supervisor) == []


def _refused(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(associate_rq(((1, CT, ("1.2.840.10008.1.2",)),)))
            return probe.recv(1) != b"\x02"
    except OSError:
        return True


def test_unknown_stations_reach_the_audit(world: World, run: Run) -> None:
    supervisor = run((Station("CT1"),), check_stations="on")
    assert Client(supervisor.port, calling="NOBODY").answer == (ASSOCIATE_RJ, bytes((0, 1, 1, 3)))
    with Client(supervisor.port, calling="CT1") as client:
        assert client.echo() == 0
    (event,) = wait_for(lambda: world.accounts.events)
    assert (event.action, event.actor, event.source_address, event.outcome) == (
        "ASSOCIATION_REFUSED",
        "NOBODY",
        "127.0.0.1",
        "STATION_UNKNOWN",
    )


def test_a_port_in_use_is_named(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        supervisor = world.supervisor(port=port)
        import radmesh_gateway_proxy.supervisor as module

        patience, module._PORT_PATIENCE = module._PORT_PATIENCE, 0.1  # type: ignore[misc]
        try:
            with pytest.raises(RadmeshError, match=f"port {port}") as caught:
                supervisor.start()
        finally:
            module._PORT_PATIENCE = patience  # type: ignore[misc]
        assert caught.value.reason == "PORT_IN_USE"


PARENT = """
import sys, time
from pathlib import Path
from edge_mesh import World
world = World(Path(sys.argv[1]))
supervisor = world.supervisor()
supervisor.start()
print(supervisor.port, *supervisor.pids(), flush=True)
time.sleep(60)
"""


def test_acceptors_end_with_a_parent_that_is_killed() -> None:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, folder], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert parent.stdout is not None
        port, pid, *children = map(int, parent.stdout.readline().split())
        assert pid == parent.pid
        assert len(children) == 2
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
        with socket.create_server(("127.0.0.1", port), reuse_port=False):
            pass  # and the port is free
        parent.stdout.close()


def test_bare_probes_leave_memory_flat(run: Run) -> None:
    supervisor = run()
    count = int(os.environ.get("RADMESH_TEST_PROBES", times(100_000, 2_000)))
    pids = acceptors(supervisor)

    def grown() -> int:
        """By how much the processes grow over some probes, bytes."""
        before = [rss_anon(pid) for pid in pids]
        for _ in range(count):
            socket.create_connection(("127.0.0.1", supervisor.port)).close()
        with Client(supervisor.port) as client:
            assert client.echo() == 0
        return max(rss_anon(pid) - was for pid, was in zip(pids, before, strict=True))

    # Arenas and caches fill, the more the busier the machine; what leaks grows each time.
    assert any(grown() < min(count * 500, 4 << 20) for _ in range(8))
    assert pids == acceptors(supervisor)


def test_a_large_object_needs_little_memory(world: World, run: Run) -> None:
    """RADMESH_TEST_LARGE=2147483648 for the whole claim."""
    size = int(os.environ.get("RADMESH_TEST_LARGE", str(160 << 20)))
    supervisor = run()
    pids = acceptors(supervisor)
    with Client(supervisor.port) as client:
        assert client.store(image("2.25.202", "2.25.202.0"), "2.25.202.0").status == 0
        before = [rss_anon(pid) for pid in pids]
        peak = [0, 0]
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                for number, pid in enumerate(pids):
                    peak[number] = max(peak[number], rss_anon(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        head = image("2.25.202", "2.25.202.1", pixels=0)[:-4] + size.to_bytes(4, "little")
        client.send(message(1, store_rq(CT, "2.25.202.1")))
        block = bytes(131_072 - 6)
        client.send(_fragment(head, last=False))
        left = size
        while left:
            piece = block[: min(left, len(block))]
            left -= len(piece)
            client.send(_fragment(piece, last=not left))
        client.socket.settimeout(60)
        assert client.response().status == 0
        stop.set()
        watcher.join()
    grown = [max(0, high - was) for high, was in zip(peak, before, strict=True)]
    print(f"{size} bytes: RssAnon grew by at most {max(grown) >> 20} MiB")
    assert max(grown) < 64 << 20
    row = next(row for row in world.rows() if row.header.sop_instance_uid == "2.25.202.1")
    assert row.length == len(head) + size


def _fragment(data: bytes, *, last: bool) -> bytes:
    from raw_dicom import P_DATA, pdu, pdv

    return pdu(P_DATA, pdv(1, 2 if last else 0, data))
