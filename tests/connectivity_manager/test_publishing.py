"""What the RIS said reaches the Database Server: in order, each once, whoever was down meanwhile."""

import shutil

import pytest
from connectivity_mesh import DATABASE, World
from connectivity_support import a40, adt, code, message, msh, obr, orm, pid, segment
from waiting import wait_for

from radmesh.mesh import sections
from radmesh.runtime.errors import RadmeshError


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, sections.Domain(name="clinic"), sections.Domain(name="town"))
    made.start()
    yield made
    made.close()


def waiting(world: World) -> float:
    return world.contexts["connectivity-manager-0"].status.figures()["events_waiting"]


def order(n: int, patient: str = "", **more) -> bytes:
    return orm(f"A{n}", patient or pid(f"P{n}"), **more)


def accepted(world: World, *raws: bytes, domain: str = "clinic") -> None:
    with world.peer(domain) as peer:
        for raw in raws:
            assert code(peer.ask(raw)) == "AA"


def test_every_kind_is_told_in_order(world):
    accepted(world, order(1), adt("A08", pid("P1", "Doe-Roe^John")), a40("P1", "P2"), order(2))
    wait_for(lambda: len(world.told.kinds) == 4)
    assert world.told.kinds == ["order", "patient", "merge", "order"]
    wait_for(lambda: not waiting(world))
    told = [event for event in world.told.events if event.HasField("merge")]
    assert (told[0].merge.prior.patient_name, told[0].merge.surviving.patient_id) == ("Doe-Roe^John", "P2")
    # Each domain was said to be there.
    states = {e.domain: e.domain_state.available for e in world.told.events if e.HasField("domain_state")}
    assert states == {"clinic": True, "town": True}


def test_after_an_outage_all_is_told_once_and_meanwhile_everything_works(world):
    accepted(world, order(0))
    wait_for(lambda: world.told.accessions == ["A0"])
    world.told.stop()
    many = [[pid(f"P{n}") + "\r" + obr(f"A{n}") for n in range(start, start + 50)] for start in range(1, 251, 50)]
    accepted(world, *(message(msh("ORM^O01"), *groups) for groups in many))
    accepted(world, *(order(n) for n in range(251, 300)))
    accepted(world, order(300), domain="town")
    assert world.verify("clinic", patient_id="P7", accession_number="A7").orders[0].order_id == "clinic/A7"
    assert waiting(world) == 300
    wait_for(lambda: "PUBLISHER_FAILING" in world.alarms())
    world.told.start()
    wait_for(lambda: not waiting(world), 30)
    assert world.told.accessions == [f"A{n}" for n in range(301)]
    wait_for(lambda: "PUBLISHER_FAILING" not in world.alarms())


def test_what_was_not_answered_is_told_again_and_counts_once(world):
    """The database commits and dies before it answers: twice."""
    silent = 2

    def after(_name: str) -> None:
        nonlocal silent
        if silent:
            silent -= 1
            raise RadmeshError("DATABASE_UNAVAILABLE", "it died")

    world.told.after = after
    accepted(world, order(1), order(2))
    wait_for(lambda: not waiting(world), 30)
    assert world.told.accessions == ["A1", "A2"]
    assert world.told.calls >= 3


def test_a_manager_that_was_stopped_goes_on_where_it_was(world):
    world.told.stop()
    accepted(world, order(1), order(2))
    world.stop()
    world.told.start()
    world.start()
    wait_for(lambda: world.told.accessions == ["A1", "A2"])
    accepted(world, order(3))
    wait_for(lambda: world.told.accessions == ["A1", "A2", "A3"])
    assert len(world.told.last) == 1


def test_orders_at_their_longest_are_told_too(world):
    """256 of them are more than a message between components may have."""
    world.told.stop()
    text = "\U00020000" * 1000
    last = segment("OBR", f1="1", f4=f"{text}^{text}", f18="A%d", f19=text, f24=text)
    long = [(pid(f"P{n}", f"{text}^X"), f"PV1|1|||||||1^{text}", "ORC|NW", last % n) for n in range(300)]
    accepted(world, *(message(msh("ORM^O01"), *sum(long[n : n + 50], ())) for n in range(0, 300, 50)))
    world.told.start()
    wait_for(lambda: not waiting(world), 60)
    assert world.told.accessions == [f"A{n}" for n in range(300)]


# Stores that are from a backup


def test_a_database_from_a_backup_is_told_everything_anew(world):
    accepted(world, order(1), order(2), a40("P1", "P9"), adt("A04", pid("P5")))
    wait_for(lambda: not waiting(world))
    before = world.told.last["connectivity-manager-0"]
    world.told.last["connectivity-manager-0"] = (before[0], 2)
    world.told.events.clear()
    accepted(world, order(3))
    wait_for(lambda: not waiting(world))
    assert world.told.last["connectivity-manager-0"][0] != before[0]
    assert sorted(world.told.accessions) == ["A1", "A2", "A3"]
    assert [e.merge.surviving.patient_id for e in world.told.events if e.HasField("merge")] == ["P9"]
    assert "P5" in [e.patient.patient_id for e in world.told.events if e.HasField("patient")]
    # The order of the merged patient is told with who that is now.
    (first,) = [e.order for e in world.told.events if e.order.accession_number == "A1"]
    assert first.patient.patient_id == "P9"


@pytest.mark.parametrize("behind", [0, 1, 4])
@pytest.mark.parametrize("away", [False, True])
def test_a_manager_from_a_backup_tells_what_it_has_and_nothing_new_is_lost(world, behind, away):
    """Its numbers begin again below those that the database has: they must not be taken for what was told before."""
    accepted(world, order(1))
    wait_for(lambda: not waiting(world))
    world.stop()
    backup = world.mesh.folder / "backup"
    shutil.copytree(world.mesh.folder / "connectivity-manager-0", backup)
    world.start()
    accepted(world, *(order(n) for n in range(2, 2 + behind)))
    wait_for(lambda: not waiting(world))
    world.stop()
    shutil.rmtree(world.mesh.folder / "connectivity-manager-0")
    shutil.copytree(backup, world.mesh.folder / "connectivity-manager-0")
    world.told.events.clear()
    if away:
        world.told.stop()
    world.start()
    accepted(world, *(order(n) for n in range(50, 54)))
    if away:
        world.told.start()
    wait_for(lambda: not waiting(world), 20)
    assert set(world.told.accessions) >= {f"A{n}" for n in range(50, 54)}
    assert "A1" in world.told.accessions


def test_an_order_that_the_database_refuses_is_an_alarm_and_intake_goes_on(world):
    world.told.refuse = RadmeshError("FIELD_INVALID", "nonsense")
    accepted(world, order(1))
    wait_for(lambda: "PUBLISHER_FAILING" in world.alarms())
    accepted(world, order(2))
    assert world.verify("clinic", patient_id="P2", accession_number="A2").orders
    world.told.refuse = None
    wait_for(lambda: world.told.accessions == ["A1", "A2"])


def test_merges_are_told_anew_in_an_order_that_makes_the_same_tree(world):
    accepted(world, order(1), a40("P1", "P2"), a40("P3", "P2"), a40("P2", "P0"), a40("P5", "P2"))
    wait_for(lambda: not waiting(world))
    before = world.told.last["connectivity-manager-0"]
    world.told.last["connectivity-manager-0"] = (before[0], 2)
    world.told.events.clear()
    accepted(world, order(6))
    wait_for(lambda: not waiting(world))
    merges = [
        (e.merge.prior.patient_id, e.merge.surviving.patient_id) for e in world.told.events if e.HasField("merge")
    ]
    assert sorted(merges) == [("P1", "P2"), ("P2", "P0"), ("P3", "P2"), ("P5", "P0")]
    assert merges.index(("P2", "P0")) > max(merges.index(("P1", "P2")), merges.index(("P3", "P2")))


def test_an_undo_reaches_the_manager_whoever_is_down(tmp_path):
    """The manager is away when a person undoes a merge, and the database when the manager comes back."""
    from component_mesh import Components

    from radmesh.api.database.v1 import database_pb2

    parts = Components(tmp_path)
    parts.database()
    world = World.__new__(World)
    world.mesh, world.running, world.contexts = parts.mesh, {}, {}
    world.mesh.settings["domains"] = (sections.Domain(name="clinic", issuer="CLINIC"), sections.Domain(name="town"))
    parts.kill(DATABASE)
    parts.database()
    world.start()
    try:
        accepted(world, order(1), order(2), a40("P1", "P9"), order(3, patient=pid("P1")))
        wait_for(lambda: not waiting(world), 30)
        client = parts.client("application-server", database_pb2, "OrderService", DATABASE)
        (merge,) = client.ListMerges(database_pb2.ListMergesRequest(), timeout=30.0).merges
        world.stop()
        assert client.UndoMerge(database_pb2.UndoMergeRequest(id=merge.id, actor="admin"), timeout=30.0).undo_actor
        parts.kill(DATABASE)
        world.start()
        assert world.verify("clinic", patient_id="P1", accession_number="A1").orders[0].patient.patient_id == "P9"
        parts.database()
        client = parts.client("application-server", database_pb2, "OrderService", DATABASE)

        def shown() -> dict[str, str]:
            orders = client.FindOrders(database_pb2.FindOrdersRequest(), timeout=30.0).orders
            return {order.accession_number: order.patient.patient_id for order in orders}

        def asked() -> list[str]:
            keys = ({"patient_id": "P1", "accession_number": accession} for accession in ("A1", "A3"))
            return [world.verify("clinic", **key).orders[0].patient.patient_id for key in keys]

        wait_for(lambda: asked() == ["P1", "P1"], 30)
        # What came meanwhile under the prior ID was told as the surviving patient's: the database hears of that too.
        wait_for(lambda: shown() == {"A1": "P1", "A2": "P2", "A3": "P1"}, 20)
        # The RIS may merge them again.
        accepted(world, a40("P1", "P9"))
        wait_for(lambda: shown() == {"A1": "P9", "A2": "P2", "A3": "P9"}, 20)
    finally:
        world.stop()
        parts.close()


def test_the_real_database_has_what_was_said(tmp_path):
    """Beside a Database Server as it is wired, which is away for a while."""
    from component_mesh import Components

    from radmesh.api.database.v1 import database_pb2

    parts = Components(tmp_path)
    parts.database()
    world = World.__new__(World)
    world.mesh, world.running, world.contexts = parts.mesh, {}, {}
    world.mesh.settings["domains"] = (sections.Domain(name="clinic", issuer="CLINIC"),)
    world.start()
    try:
        accepted(world, order(1, study="2.25.1"))
        parts.kill(DATABASE)
        accepted(world, order(2), a40("P1", "P9"), order(1, control="CA"))
        parts.database()
        client = parts.client("application-server", database_pb2, "OrderService", DATABASE)
        wait_for(lambda: not waiting(world), 30)
        found = client.FindOrders(database_pb2.FindOrdersRequest(), timeout=30.0).orders
        assert {(o.order_id, o.patient.patient_id, o.status) for o in found} == {
            ("clinic/A1", "P9", database_pb2.ORDER_STATUS_CANCELLED),
            ("clinic/A2", "P2", database_pb2.ORDER_STATUS_SCHEDULED),
        }
        assert {o.patient.issuer_of_patient_id for o in found} == {"CLINIC"}
        (merge,) = client.ListMerges(database_pb2.ListMergesRequest(), timeout=30.0).merges
        assert (merge.prior.patient_id, merge.surviving.patient_id) == ("P1", "P9")
    finally:
        world.stop()
        parts.close()
