"""C-MOVE and C-GET as other people's programs do them, against a whole cluster."""

import json
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import data_store
import pydicom.data
import pytest
import raw_dicom
import raw_station
from cluster_support import data_set, save
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from station_support import Edge, dcmtk, received, storescp, until

from radmesh.dicom import part10
from radmesh.runtime.errors import RadmeshError

STUDY = "2.25.77.900"
STUDY_MOVE = str(StudyRootQueryRetrieveInformationModelMove)
STUDY_GET = str(StudyRootQueryRetrieveInformationModelGet)
NUMBER = 6


@pytest.fixture(scope="module")
def files(edge: Edge) -> list[Path]:
    """A study of two series, at the cluster; a private element is in each image."""
    folder = edge.folder / "in"
    folder.mkdir(exist_ok=True)
    made = [
        save(
            folder,
            900,
            SeriesInstanceUID=f"{STUDY}.{1 + n % 2}",
            SOPInstanceUID=f"{STUDY}.{1 + n % 2}.{n}",
            InstanceNumber=n,
            PatientName="Ångström^Ø",
            SpecificCharacterSet="ISO_IR 100",
        )
        for n in range(1, NUMBER + 1)
    ]
    edge.store(*made)
    return made


@pytest.fixture(scope="module")
def station(edge: Edge) -> Iterator[Path]:
    """A station that takes every transfer syntax, and writes what comes bit by bit."""
    with storescp(edge.folder / "station", edge.ports["STORESCP"], "+B", "+xa") as folder:
        yield folder


def keys(level: str, **values: str) -> list[str]:
    return [f"QueryRetrieveLevel={level}", *(f"{name}={value}" for name, value in values.items())]


def test_a_study_moves_bit_by_bit(edge: Edge, files: list[Path], station: Path) -> None:
    moved = edge.move("STORESCP", *keys("STUDY", StudyInstanceUID=STUDY))
    assert (moved.status, moved.numbers["completed"], moved.numbers["failed"]) == (0, NUMBER, 0)
    there = {path.name.partition(".")[2]: data_set(path) for path in station.iterdir()}
    for path in files:
        assert there[path.stem] == data_set(path)


@pytest.mark.parametrize(
    ("root", "level", "values", "number"),
    [
        ("-S", "SERIES", {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.1"}, 3),
        (
            "-S",
            "SERIES",
            {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.1\\{STUDY}.2"},
            NUMBER,
        ),
        (
            "-S",
            "IMAGE",
            {
                "StudyInstanceUID": STUDY,
                "SeriesInstanceUID": f"{STUDY}.1",
                "SOPInstanceUID": f"{STUDY}.1.2\\{STUDY}.1.4",
            },
            2,
        ),
        ("-P", "PATIENT", {"PatientID": "P900"}, NUMBER),
        ("-P", "STUDY", {"PatientID": "P900", "StudyInstanceUID": STUDY}, NUMBER),
        ("-S", "STUDY", {"StudyInstanceUID": "2.25.77.901"}, 0),
        ("-P", "PATIENT", {"PatientID": "nobody"}, 0),
    ],
)
def test_each_level_moves_what_it_names(
    edge: Edge, files: list[Path], station: Path, root: str, level: str, values: dict[str, str], number: int
) -> None:
    moved = edge.move("STORESCP", *keys(level, **values), root=root)
    assert (moved.status, moved.numbers["completed"]) == (0, number), moved.text


@pytest.mark.parametrize(
    ("root", "level", "values"),
    [
        ("-S", "STUDY", {}),
        ("-S", "SERIES", {"SeriesInstanceUID": f"{STUDY}.1"}),
        ("-S", "PATIENT", {"PatientID": "P900"}),
        ("-S", "STUDY", {"StudyInstanceUID": "2.25.*"}),
        ("-P", "PATIENT", {"PatientID": "P9*"}),
        ("-S", "OTHER", {"StudyInstanceUID": STUDY}),
    ],
)
def test_what_breaks_the_rules_of_unique_keys_is_refused(
    edge: Edge, root: str, level: str, values: dict[str, str]
) -> None:
    assert edge.move("STORESCP", *keys(level, **values), root=root).status == 0xA900


def test_what_is_held_goes_to_nobody_but_who_sent_it(edge: Edge, station: Path) -> None:
    """Its own station may have it, for itself."""
    folder = edge.folder / "held"
    folder.mkdir()
    edge.store(save(folder, 930), calling="HOLDER")
    (found,) = edge.cluster.client().find(verification="held")
    assert (found.study_instance_uid, found.verification_reason) == ("2.25.77.930", "NO_ORDER")
    study = keys("STUDY", StudyInstanceUID="2.25.77.930")
    assert edge.get(edge.folder / "got-held", *study, calling="HOLDER").numbers["completed"] == 1
    assert edge.get(edge.folder / "got-none", *study).numbers["completed"] == 0
    for caller in ("HOLDER", "MOVER"):
        assert edge.move("STORESCP", *study, calling=caller).numbers["completed"] == 0
    assert edge.cluster.run("send", "2.25.77.930", "--to", "STORESCP", "--json").reason == "STUDY_NOT_FOUND"


def test_an_unknown_destination_is_a801(edge: Edge, files: list[Path]) -> None:
    assert edge.move("NOBODY", *keys("STUDY", StudyInstanceUID=STUDY)).status == 0xA801


def test_a_dead_destination_is_a702_and_names_what_failed(edge: Edge, files: list[Path]) -> None:
    moved = edge.move("DEAD", *keys("STUDY", StudyInstanceUID=STUDY))
    assert (moved.status, moved.numbers["failed"], moved.numbers["completed"]) == (0xA702, NUMBER, 0)
    assert "STATION_UNREACHABLE" in moved.text
    assert all(path.stem in moved.text for path in files)


def test_getscu_gets_a_study_bit_by_bit(edge: Edge, files: list[Path]) -> None:
    into = edge.folder / "got"
    moved = edge.get(into, *keys("STUDY", StudyInstanceUID=STUDY), options=("+B",))
    assert (moved.status, moved.numbers["completed"]) == (0, NUMBER)
    assert sorted(data_set(path) for path in into.iterdir()) == sorted(data_set(path) for path in files)


def test_corrected_values_leave_and_those_that_came_are_kept_in_them(edge: Edge, station: Path) -> None:
    folder = edge.folder / "corrected"
    folder.mkdir()
    path = save(folder, 910, PatientName="Wrong^Name", SpecificCharacterSet="ISO_IR 100")
    edge.store(path)
    edge.cluster.correct("2.25.77.910", PatientName="山田^太郎")
    moved = edge.move("STORESCP", *keys("STUDY", StudyInstanceUID="2.25.77.910"))
    assert (moved.status, moved.numbers["completed"]) == (0, 1)
    there = received(station)["2.25.77.910.1.1"]
    assert (there.PatientName, there.SpecificCharacterSet) == ("山田^太郎", "ISO_IR 192")
    original = there.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert original.PatientName == "Wrong^Name"
    assert there.PixelData == dcmread(path).PixelData


def test_a_station_without_unicode_gets_what_its_character_set_has_room_for(edge: Edge) -> None:
    """By C-GET as by C-MOVE: the name of the modality, counted with a warning; others get the right one."""
    folder = edge.folder / "latin"
    folder.mkdir()
    path = save(folder, 911, PatientName="Wrong^Name", SpecificCharacterSet="ISO_IR 100")
    edge.store(path)
    edge.cluster.correct("2.25.77.911", PatientName="山田^太郎")
    to = ("--host", "127.0.0.1", "--port", str(edge.ports["PYNET"]), "--grants", "query,retrieve")
    assert edge.cluster.run("stations", "set", "LATIN", "--character-set", "ISO_IR 100", *to).code == 0

    def got(calling: str) -> tuple[int, str]:
        into = edge.folder / "got-latin"
        moved = edge.get(into, *keys("STUDY", StudyInstanceUID="2.25.77.911"), calling=calling)
        (there,) = received(into).values()
        return moved.numbers["warning"], str(there.PatientName)

    until(lambda: got("LATIN") == (1, "Wrong^Name"))
    assert got("GETTER") == (0, "山田^太郎")
    edge.cluster.run("stations", "remove", "LATIN")


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_who_cannot_take_what_is_stored_gets_it_decoded(edge: Edge, name: str) -> None:
    path = Path(get_testdata_file(name))
    stored = dcmread(path)
    dcmtk("dcmsend", "--no-uid-checks", "-aec", "RADMESH", *edge.address, path)
    with storescp(edge.folder / f"plain-{name}", edge.ports["PLAIN"], "+xi") as folder:
        moved = edge.move("PLAIN", *keys("STUDY", StudyInstanceUID=str(stored.StudyInstanceUID)))
        assert (moved.status, moved.numbers["completed"]) == (0, 1), moved.text
        there = received(folder)[str(stored.SOPInstanceUID)]
    assert there.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert (there.pixel_array == stored.pixel_array).all()


class Taking:
    """A pynetdicom station: says what came, and answers as it is told."""

    def __init__(self, port: int, status: int = 0, pause: float = 0.0) -> None:
        self.requests: list[Any] = []
        self.associations = 0
        self.status, self.pause = status, pause
        self.go_on = threading.Event()
        ae = AE("PYNET")
        ae.supported_contexts = [build_context(CTImageStorage)]
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self.server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def _accepted(self, _event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        self.requests.append(event.request)
        if self.pause:
            self.go_on.wait(self.pause)
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        assert self.server is not None
        self.server.shutdown()


def move_by_pynetdicom(edge: Edge, destination: str, root: Any = StudyRootQueryRetrieveInformationModelMove) -> Any:
    ae = AE("MOVER")
    ae.add_requested_context(root)
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH")
    assert association.is_established
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.PatientID = "STUDY", STUDY, "P900"
    return association, association.send_c_move(query, destination, root, msg_id=77)


def test_one_association_a_batch_and_the_originator_is_named(edge: Edge, files: list[Path]) -> None:
    with Taking(edge.ports["PYNET"]) as taking:
        association, answers = move_by_pynetdicom(edge, "PYNET", PatientRootQueryRetrieveInformationModelMove)
        statuses = [status.Status for status, _ in answers]
        association.release()
        assert statuses[-1] == 0
        assert taking.associations == 1
        assert {r.AffectedSOPInstanceUID for r in taking.requests} == {path.stem for path in files}
        assert {(r.MoveOriginatorApplicationEntityTitle, r.MoveOriginatorMessageID) for r in taking.requests} == {
            ("MOVER", 77)
        }


def test_objects_that_a_station_refuses_are_listed(edge: Edge, files: list[Path]) -> None:
    with Taking(edge.ports["PYNET"], status=0xA700):
        association, answers = move_by_pynetdicom(edge, "PYNET")
        status, identifier = list(answers)[-1]
        association.release()
    assert (status.Status, status.NumberOfFailedSuboperations) == (0xA702, NUMBER)
    assert sorted(identifier.FailedSOPInstanceUIDList) == sorted(path.stem for path in files)


def test_warnings_of_a_station_are_counted(edge: Edge, files: list[Path]) -> None:
    with Taking(edge.ports["PYNET"], status=0xB000):
        association, answers = move_by_pynetdicom(edge, "PYNET")
        status, _ = list(answers)[-1]
        association.release()
    assert (status.Status, status.NumberOfWarningSuboperations) == (0xB000, NUMBER)


def test_a_cancel_ends_a_move_though_the_destination_does_not_answer(edge: Edge, files: list[Path]) -> None:
    with Taking(edge.ports["PYNET"], pause=30.0) as taking:
        association, answers = move_by_pynetdicom(edge, "PYNET")
        until(lambda: taking.requests)
        association.send_c_cancel(77, query_model=StudyRootQueryRetrieveInformationModelMove)
        status, _ = list(answers)[-1]
        taking.go_on.set()
        association.release()
    assert status.Status == 0xFE00
    assert status.NumberOfRemainingSuboperations == NUMBER
    assert len(taking.requests) == 1


def test_a_cancel_ends_a_get_after_the_object_that_is_under_way(edge: Edge, files: list[Path]) -> None:
    taken = raw_station.Taken()
    contexts = [(1, STUDY_GET, [raw_dicom.IMPLICIT]), (3, raw_dicom.CT, [raw_dicom.EXPLICIT])]
    us = raw_dicom.us
    cancel = raw_dicom.command({0x0100: us(0x0FFF), 0x0120: us(1), 0x0800: us(0x0101)})
    with raw_dicom.Client(edge.port, contexts, calling="GETTER", roles=[(raw_dicom.CT, 0, 1)]) as client:

        def answered(number: int) -> int:
            if number == 1:
                client.send(raw_dicom.message(1, cancel))
            return 0

        answer = raw_station.retrieve(client, STUDY_GET, study_keys(STUDY), taken, status=answered)
        client.release()
    assert taken.count == 2
    counts = [answer[element] for element in (0x0900, 0x1020, 0x1021, 0x1022)]
    assert counts == [us(n) for n in (0xFE00, NUMBER - 2, 2, 0)]


@pytest.mark.parametrize("destination", ["PYNET", ""])
def test_pending_responses_say_how_far_it_is(edge: Edge, files: list[Path], destination: str) -> None:
    """By C-MOVE and C-GET: of a receiver that takes its time there is something to say between two objects."""

    def slowly(number: int) -> int:
        threading.Event().wait(0.25 if number < 2 else 0)
        return 0xB000 if number == 0 else 0xA700 if number == 1 else 0

    us = raw_dicom.us
    taken = raw_station.Taken()
    root = STUDY_MOVE if destination else STUDY_GET
    contexts = [(1, root, [raw_dicom.IMPLICIT]), (3, raw_dicom.CT, [raw_dicom.EXPLICIT])]
    with (
        raw_station.Station(edge.ports["PYNET"], status=slowly),
        raw_dicom.Client(edge.port, contexts, calling="GETTER", roles=[(raw_dicom.CT, 0, 1)]) as client,
    ):
        answer = raw_station.retrieve(client, root, study_keys(STUDY), taken, destination=destination, status=slowly)
        client.release()
    # Remaining, completed, failed, warning (PS3.7 9.1.3.1.7 to .10).
    counts = [[pending[element] for element in range(0x1020, 0x1024)] for pending in taken.pending]
    assert [us(NUMBER - 1), us(0), us(0), us(1)] in counts
    assert [us(NUMBER - 2), us(0), us(1), us(1)] in counts
    assert [answer.get(n) for n in range(0x1020, 0x1024)] == [None, us(NUMBER - 2), us(1), us(1)]
    assert answer[0x0900] == us(0xB000)


def test_a_caller_that_is_cut_off_ends_what_it_began(edge: Edge, files: list[Path]) -> None:
    with Taking(edge.ports["PYNET"], pause=30.0) as taking:
        association, _answers = move_by_pynetdicom(edge, "PYNET")
        until(lambda: taking.requests)
        before = len(edge.ended("aborted"))
        association.abort()
        until(lambda: len(edge.ended("aborted")) > before)
        taking.go_on.set()
        assert taking.server is not None
        until(lambda: not taking.server.active_associations)
        assert len(taking.requests) == 1


def test_a_get_without_the_scp_role_fails_each(edge: Edge, files: list[Path]) -> None:
    for roles, expected in ([], 0xA702), ([build_role(CTImageStorage, scp_role=True)], 0):
        ae = AE("GETTER")
        ae.add_requested_context(PatientRootQueryRetrieveInformationModelGet)
        ae.add_requested_context(CTImageStorage)
        got: list[str] = []

        def take(event: Any, got: list[str] = got) -> int:
            got.append(event.request.AffectedSOPInstanceUID)
            return 0

        association = ae.associate(
            "127.0.0.1", edge.port, ae_title="RADMESH", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, take)]
        )
        query = Dataset()
        query.QueryRetrieveLevel, query.PatientID = "PATIENT", "P900"
        status, _ = list(association.send_c_get(query, PatientRootQueryRetrieveInformationModelGet))[-1]
        association.release()
        assert status.Status == expected
        assert len(got) == (0 if expected else NUMBER)


def test_a_destination_that_takes_nothing_is_given_up(edge: Edge, files: list[Path]) -> None:
    """It accepts connections, and says nothing: the caller's cancel ends that, before it is found to be dead."""
    with socket.create_server(("127.0.0.1", edge.ports["SLOW"])) as server:
        association, answers = move_by_pynetdicom(edge, "SLOW")
        connection, _ = server.accept()
        association.send_c_cancel(77, query_model=StudyRootQueryRetrieveInformationModelMove)
        status, _ = list(answers)[-1]
        connection.close()
        association.release()
    assert status.Status == 0xFE00


Stored = dict[tuple[str, str], tuple[str, str, bytes]]
"""Study and SOP Instance UID: SOP class, transfer syntax, data set."""


def study_keys(study: str) -> bytes:
    return raw_dicom.element(0x0008, 0x0052, b"STUDY", b" ") + raw_dicom.element(0x0020, 0x000D, study.encode())


def renamed(data: bytes, syntax: str, number: int, *uids: str) -> bytes:
    """The same data set with other UIDs of the same length: others may send these files, too."""
    deflated = syntax == raw_dicom.DEFLATED
    data = zlib.decompressobj(-15).decompress(data) if deflated else data
    for uid in uids:
        data = data.replace(uid.encode(), another(uid, number).encode())
    if deflated:
        deflater = zlib.compressobj(wbits=-15)
        data = deflater.compress(data) + deflater.flush()
        data += bytes(len(data) % 2)
    return data


def another(uid: str, number: int) -> str:
    return f"2.7{number}{uid[4:]}"


def bundled() -> Iterator[tuple[str, str, str, str, bytes]]:
    """Study, SOP instance, SOP class, transfer syntax and data set of what comes with pydicom and has them all."""
    roots = [Path(pydicom.data.__file__).parent, Path(data_store.__file__).parent]
    for path in sorted(path for root in roots for path in root.rglob("*") if path.is_file()):
        try:
            ds = dcmread(path, stop_before_pixels=True)
            with path.open("rb") as file:
                syntax = part10.seek_data_set(file)
                data = file.read()
        except (InvalidDicomError, RadmeshError, EOFError, ValueError):
            continue
        uids = [str(ds.get(name) or "") for name in ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")]
        if all(uids) and syntax:
            study, instance, sop_class = uids
            data = renamed(data, syntax, 0, study, instance)
            yield another(study, 0), another(instance, 0), sop_class, syntax, data


@pytest.fixture(scope="module")
def everything(edge: Edge) -> Stored:
    """All that pydicom comes with and that is taken, sent without a byte changed; of each instance what came first."""
    objects = list(bundled())
    kinds = sorted({(sop_class, syntax) for _, _, sop_class, syntax, _ in objects})
    assert len({syntax for _, syntax in kinds}) >= 11
    taken: Stored = {}
    contexts = [(2 * n + 1, sop_class, [syntax]) for n, (sop_class, syntax) in enumerate(kinds)]
    assert len(contexts) <= 128
    with raw_dicom.Client(edge.port, contexts, calling="MODALITY") as client:
        for study, instance, sop_class, syntax, data in objects:
            context = 2 * kinds.index((sop_class, syntax)) + 1
            if (
                context in client.accepted
                and client.store(data, instance, context=context, sop_class=sop_class).status == 0
            ):
                taken.setdefault((study, instance), (sop_class, syntax, data))
        client.release()
    assert len(taken) > 150
    return taken


def by_study(stored: Stored) -> dict[str, dict[str, tuple[str, bytes]]]:
    found: dict[str, dict[str, tuple[str, bytes]]] = {}
    for (study, instance), (_, syntax, data) in stored.items():
        found.setdefault(study, {})[instance] = (syntax, data)
    return found


def test_everything_moves_bit_by_bit_to_who_takes_it(edge: Edge, everything: Stored) -> None:
    for study, expected in by_study(everything).items():
        with (
            raw_station.Station(edge.ports["PYNET"]) as station,
            raw_dicom.Client(edge.port, [(1, STUDY_MOVE, [raw_dicom.IMPLICIT])], calling="MOVER") as client,
        ):
            answer = raw_station.retrieve(client, STUDY_MOVE, study_keys(study), station.taken, destination="PYNET")
            client.release()
        assert (answer[0x0900], answer[0x1021]) == (raw_dicom.us(0), raw_dicom.us(len(expected)))
        assert station.taken.objects == expected
        assert station.taken.associations == 1


def test_everything_is_got_bit_by_bit_by_who_takes_it(edge: Edge, everything: Stored) -> None:
    for study, expected in by_study(everything).items():
        kinds = {(c, s) for (of, _), (c, s, _) in everything.items() if of == study}
        contexts = [(2 * n + 3, sop_class, [syntax]) for n, (sop_class, syntax) in enumerate(kinds)]
        taken = raw_station.Taken()
        with raw_dicom.Client(
            edge.port,
            [(1, STUDY_GET, [raw_dicom.IMPLICIT]), *contexts],
            calling="GETTER",
            roles=[(sop_class, 0, 1) for sop_class in {c for c, _ in kinds}],
        ) as client:
            answer = raw_station.retrieve(client, STUDY_GET, study_keys(study), taken)
            client.release()
        assert (answer[0x0900], answer[0x1021]) == (raw_dicom.us(0), raw_dicom.us(len(expected)))
        assert taken.objects == expected


def test_who_gets_may_refuse_some_and_is_told_which(edge: Edge, files: list[Path]) -> None:
    taken = raw_station.Taken()
    contexts = [(1, STUDY_GET, [raw_dicom.IMPLICIT]), (3, raw_dicom.CT, [raw_dicom.EXPLICIT])]
    with raw_dicom.Client(edge.port, contexts, calling="GETTER", roles=[(raw_dicom.CT, 0, 1)]) as client:
        answer = raw_station.retrieve(
            client, STUDY_GET, study_keys(STUDY), taken, status=lambda number: 0xA700 if number < 2 else 0
        )
        client.release()
    counts = [answer[element] for element in (0x0900, 0x1021, 0x1022, 0x1023)]
    assert counts == [raw_dicom.us(n) for n in (0xB000, NUMBER - 2, 2, 0)]
    assert b"0xA700" in answer[0x0902]
    refused = [raw_station.text(command[0x1000]) for command in taken.commands[:2]]
    assert raw_station.text(answer[0][8:]).split("\\") == refused


@pytest.mark.parametrize("max_pdu", [32, 4099, 16_383, 131_072])
def test_fragments_are_even_whatever_length_the_receiver_takes(edge: Edge, everything: Stored, max_pdu: int) -> None:
    """Also of what is made on the way, such as deflated data sets with corrected values."""
    (study, instance), (sop_class, syntax, data) = next(
        (uids, found) for uids, found in everything.items() if found[1] == raw_dicom.DEFLATED
    )
    data = renamed(data, syntax, 1, study, instance)
    study, instance = another(study, 1), another(instance, 1)
    with raw_dicom.Client(edge.port, [(1, sop_class, [syntax])], calling="MODALITY") as client:
        assert client.store(data, instance, sop_class=sop_class).status == 0
        client.release()
    edge.cluster.correct(study, PatientName=f"Even^{max_pdu}")
    with (
        raw_station.Station(edge.ports["PYNET"], max_pdu=max_pdu) as station,
        raw_dicom.Client(edge.port, [(1, STUDY_MOVE, [raw_dicom.IMPLICIT])], calling="MOVER") as client,
    ):
        answer = raw_station.retrieve(client, STUDY_MOVE, study_keys(study), station.taken, destination="PYNET")
        client.release()
    assert answer[0x0900] == raw_dicom.us(0)
    ((syntax, data),) = station.taken.objects.values()
    assert syntax == raw_dicom.DEFLATED
    assert f"Even^{max_pdu}".encode() in zlib.decompressobj(-15).decompress(data)


def test_one_that_cannot_be_decoded_fails_alone_and_is_named(edge: Edge, tmp_path: Path) -> None:
    """Of a study of two the other one arrives; the comment says what is missing."""
    study = "2.25.77.931"
    jpeg_xl = "1.2.840.10008.1.2.4.111"
    plain = raw_dicom.image(study, f"{study}.1")
    contexts = [(1, raw_dicom.CT, [raw_dicom.EXPLICIT]), (3, raw_dicom.CT, [jpeg_xl])]
    with raw_dicom.Client(edge.port, contexts, calling="MODALITY") as client:
        assert client.store(plain, f"{study}.1").status == 0
        head = raw_dicom.image(study, f"{study}.2", pixels=32)[: -12 - 32]
        data = head + raw_dicom.encapsulated(b"\xff\x0a" * 8)
        assert client.store(data, f"{study}.2", context=3).status == 0
        client.release()
    taken = raw_station.Taken()
    contexts = [(1, STUDY_GET, [raw_dicom.IMPLICIT]), (3, raw_dicom.CT, [raw_dicom.EXPLICIT])]
    with raw_dicom.Client(edge.port, contexts, calling="GETTER", roles=[(raw_dicom.CT, 0, 1)]) as client:
        answer = raw_station.retrieve(client, STUDY_GET, study_keys(study), taken)
        client.release()
    assert answer[0x0900] == raw_dicom.us(0xB000)
    assert answer[0x0902].decode().strip() == f"TRANSCODING_FAILED: no decoder for {jpeg_xl}"
    assert taken.objects == {f"{study}.1": (raw_dicom.EXPLICIT, plain)}
    assert raw_station.text(answer[0][8:]) == f"{study}.2"
    (event,) = until(lambda: audited(edge, study))
    assert (event["actor"], event["outcome"]) == ("GETTER", "TRANSCODING_FAILED")
    assert event["detail"] == {"destination": "GETTER", "instances": 1, "failed": 1}


def audited(edge: Edge, study: str) -> list[dict[str, Any]]:
    """What the audit says of what was sent of a study, newest first."""
    found = edge.cluster.run("audit", "--action", "INSTANCES_SENT", "--object", study, "--json").json["events"]
    return [{**event, "detail": json.loads(event["detail"])} for event in found]


def test_the_audit_says_what_was_sent_where(edge: Edge, station: Path) -> None:
    folder = edge.folder / "audited"
    folder.mkdir()
    edge.store(*(save(folder, 950, SOPInstanceUID=f"2.25.77.950.1.{n}") for n in range(3)))
    study = keys("STUDY", StudyInstanceUID="2.25.77.950")
    assert edge.move("STORESCP", *study).status == 0
    assert edge.move("DEAD", *study).status == 0xA702
    until(lambda: len(audited(edge, "2.25.77.950")) == 2)
    failed, done = audited(edge, "2.25.77.950")
    assert (failed["actor"], failed["outcome"]) == ("MOVER", "STATION_UNREACHABLE")
    assert failed["detail"] == {"destination": "DEAD", "instances": 0, "failed": 3}
    assert done["outcome"] == "SUCCESS"
    assert done["detail"] == {"destination": "STORESCP", "instances": 3, "failed": 0}
