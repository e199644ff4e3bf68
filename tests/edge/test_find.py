"""C-FIND as other people's programs do it, against a whole cluster: DCMTK, pynetdicom, dcmjs-dimse."""

import json
import os
import signal
import subprocess
from typing import Any

import pytest
from cluster_support import save
from hl7_partners import node
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)
from raw_dicom import Client, command, explicit, message, us
from ris_support import acknowledgement, ask, orm
from station_support import Edge, dcmtk, until

from radmesh.client.model import Station

NUMBER = 700
PATIENT = "FIND700"
# What came in which set, and how a query in UTF-8 names it (FEATURES GP11).
NAMES = (
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ("ISO_IR 126", "Διονυσιος"),
)


@pytest.fixture(scope="module")
def stored(edge: Edge) -> Edge:
    """Three studies of one patient, and one for each name."""
    folder = edge.folder / "find"
    folder.mkdir(exist_ok=True)
    files = [
        save(
            folder, NUMBER + number, PatientID=PATIENT, StudyDate=f"2026030{number}", StudyTime=f"0{number}3000",
            AccessionNumber=f"FA{number}", Modality="CT" if number < 3 else "MR",
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    for number, (character_set, name) in enumerate(NAMES, 10):
        named = {"SpecificCharacterSet": character_set.split("\\"), "PatientName": name}
        files.append(save(folder, NUMBER + number, PatientID=f"NAMED{number}", **named))
    edge.store(*files)
    return edge


def findscu(edge: Edge, *keys: str, options: tuple[str, ...] = ("-S",), calling: str = "FINDER") -> Any:
    """Run DCMTK's findscu; the identifiers as it prints them, and all that it says."""
    named = [part for key in keys for part in ("-k", key)]
    done = dcmtk("findscu", "-d", *options, "-aet", calling, "-aec", "RADMESH", *named, *edge.address)
    return done.stdout.count("DIMSE Status                  : 0xff0"), done.stdout


def dataset(level: str = "", **values: Any) -> Dataset:
    made = Dataset()
    if level:
        made.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def query(edge: Edge, sop_class: Any, identifier: Dataset, *, syntax: str = "", options: bytes = b"") -> Any:
    """Ask with pynetdicom; the status of the last response, its comment, and the rows."""
    ae = AE("FINDER")
    ae.add_requested_context(sop_class, syntax or ExplicitVRLittleEndian)
    negotiation = SOPClassExtendedNegotiation()
    negotiation.sop_class_uid, negotiation.service_class_application_information = sop_class, options
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH", ext_neg=[negotiation] if options else [])
    assert association.is_established
    try:
        answers = list(association.send_c_find(identifier, sop_class))
    finally:
        association.release()
    last = answers[-1][0]
    return last, [row for status, row in answers if status.Status in (0xFF00, 0xFF01)]


# -- partners


@pytest.mark.parametrize("options", [("-S", "-xi"), ("-S", "-xe"), ("-P",)])
def test_findscu(stored: Edge, options: tuple[str, ...]) -> None:
    number, text = findscu(
        stored, "QueryRetrieveLevel=STUDY", f"PatientID={PATIENT}", "StudyDate", "ModalitiesInStudy", options=options
    )
    assert number == 3
    assert "(0008,0005) CS (no value available)" in text
    assert text.count("(0008,0061) CS [CT]") == 2
    assert "DIMSE Status                  : 0x0000" in text
    number, _ = findscu(
        stored, "QueryRetrieveLevel=STUDY", f"PatientID={PATIENT}", "StudyDate=20260302-20260305", options=options
    )
    assert number == 2


def test_findscu_without_a_unique_key(stored: Edge) -> None:
    number, text = findscu(stored, "QueryRetrieveLevel=SERIES", "Modality")
    assert number == 0
    assert "0xa900" in text
    assert "UNIQUE_KEY_MISSING" in text
    assert "(0020,000d)" in text


def dcmjs(edge: Edge, kind: str, **keys: Any) -> Any:
    """Ask with dcmjs-dimse: the status of the last response, and the rows."""
    command, environment = node("find.cjs", edge.port, kind, json.dumps(keys))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["status"], answer["rows"]


def test_dcmjs_dimse(stored: Edge) -> None:
    status, rows = dcmjs(stored, "createStudyFindRequest", PatientID=PATIENT, AccessionNumber="FA?")
    assert status == 0
    assert {row["AccessionNumber"]: row["ModalitiesInStudy"] for row in rows} == {"FA1": "CT", "FA2": "CT", "FA3": "MR"}
    uid = rows[0]["StudyInstanceUID"]
    status, rows = dcmjs(stored, "createSeriesFindRequest", StudyInstanceUID=uid, Modality="")
    assert (status, [row["Modality"] for row in rows]) == (0, ["MR"])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_pynetdicom_at_every_level(stored: Edge, syntax: str) -> None:
    model = PatientRootQueryRetrieveInformationModelFind
    asked = dataset("PATIENT", PatientID=PATIENT, PatientName="", NumberOfPatientRelatedStudies=None)
    last, (person,) = query(stored, model, asked, syntax=syntax)
    assert (last.Status, person.NumberOfPatientRelatedStudies) == (0, 3)
    asked = dataset("STUDY", PatientID=PATIENT, StudyInstanceUID="", AccessionNumber="FA*", StudyTime="0200-")
    _, studies = query(stored, model, asked, syntax=syntax)
    assert [row.AccessionNumber for row in studies] == ["FA3", "FA2"]
    above = {"PatientID": PATIENT, "StudyInstanceUID": studies[0].StudyInstanceUID}
    _, (series,) = query(stored, model, dataset("SERIES", SeriesInstanceUID="", Modality="", **above), syntax=syntax)
    assert (series.Modality, series.RetrieveAETitle) == ("MR", "RADMESH")
    above["SeriesInstanceUID"] = series.SeriesInstanceUID
    _, (image,) = query(stored, model, dataset("IMAGE", SOPInstanceUID="", Rows=None, **above), syntax=syntax)
    assert image.Rows == 16


# -- what is said


@pytest.mark.parametrize(("number", "name"), [(n, name) for n, (_, name) in enumerate(NAMES, 10)])
def test_names_of_any_set_are_found_by_utf_8(stored: Edge, number: int, name: str) -> None:
    for group in name.split("="):
        asked = dataset("STUDY", PatientName=f"{group[:-1]}*", PatientID=f"NAMED{number}")
        asked.SpecificCharacterSet = "ISO_IR 192"
        _, (row,) = query(stored, StudyRootQueryRetrieveInformationModelFind, asked)
        assert row.PatientName == name
        assert row.SpecificCharacterSet == "ISO_IR 192"


def test_a_station_that_asks_in_latin_1_is_answered_so(stored: Edge) -> None:
    asked = dataset("STUDY", PatientName="Äneas*", PatientID="NAMED10")
    asked.SpecificCharacterSet = "ISO_IR 100"
    _, (row,) = query(stored, StudyRootQueryRetrieveInformationModelFind, asked)
    assert (row.SpecificCharacterSet, str(row.PatientName)) == ("ISO_IR 100", "Äneas^Rüdiger")


def test_a_station_is_answered_in_its_own_set(stored: Edge) -> None:
    cluster = stored.cluster.client()
    cluster.set_station(Station("FINDER", "FINDER", grants=("query",), character_set="ISO_IR 126"))

    def answered() -> str:
        asked = dataset("STUDY", PatientName="Διο*")
        asked.SpecificCharacterSet = "ISO_IR 192"
        _, (row,) = query(stored, StudyRootQueryRetrieveInformationModelFind, asked)
        assert str(row.PatientName) == "Διονυσιος"
        return str(row.SpecificCharacterSet)

    try:
        until(lambda: answered() == "ISO_IR 126", 20)
    finally:
        cluster.delete_station("FINDER")
        until(lambda: answered() == "ISO_IR 192", 20)


def test_options_are_what_was_negotiated(stored: Edge) -> None:
    model = StudyRootQueryRetrieveInformationModelFind
    asked = dataset("SERIES", Modality="MR", PatientID=PATIENT, SeriesInstanceUID="")
    assert query(stored, model, asked)[0].Status == 0xA900
    last, rows = query(stored, model, asked, options=b"\1\0")
    assert (last.Status, len(rows)) == (0, 1)
    asked = dataset("STUDY", PatientID=PATIENT, StudyDate="20260301-20260303", StudyTime="0100-0200")
    assert [len(query(stored, model, asked, options=options)[1]) for options in (b"\0\0", b"\0\1")] == [1, 2]
    asked = dataset("STUDY", PatientID="NAMED10", PatientName="Ruediger Aeneass")
    assert [len(query(stored, model, asked, options=options)[1]) for options in (b"\0\0\0", b"\0\0\1")] == [0, 1]


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (dataset("STUDY", StudyDate="yesterday"), 0xA900, "QUERY_KEY_INVALID"),
        (dataset("FRAME", StudyDate=""), 0xA900, "QUERY_LEVEL_INVALID"),
        (dataset("PATIENT", PatientID=""), 0xA900, "QUERY_LEVEL_INVALID"),
    ],
)
def test_refusals_say_why_and_the_association_lives(stored: Edge, asked: Dataset, status: int, reason: str) -> None:
    last, rows = query(stored, StudyRootQueryRetrieveInformationModelFind, asked)
    assert (last.Status, rows) == (status, [])
    assert last.ErrorComment.startswith(reason)
    assert len(last.ErrorComment) <= 64
    assert "OffendingElement" in last


def test_keys_that_are_not_known_are_said_to_be(stored: Edge) -> None:
    _, text = findscu(stored, "QueryRetrieveLevel=STUDY", "AccessionNumber=FA1", "0032,1030")
    assert "0xff01" in text


FIND = StudyRootQueryRetrieveInformationModelFind
REQUEST = {0x0002: FIND.encode(), 0x0100: us(0x0020), 0x0110: us(7), 0x0700: us(0), 0x0800: us(1)}
STUDIES = explicit((0x00080052, "CS", b"STUDY "), (0x0020000D, "UI", b""))


def asking(edge: Edge) -> Client:
    return Client(edge.port, [(1, FIND, [ExplicitVRLittleEndian])])


def statuses_of(client: Client) -> list[int]:
    """The status of each response to a C-FIND."""
    statuses: list[int] = []
    while not statuses or statuses[-1] == 0xFF00:
        statuses.append(client.response().status)
        if statuses[-1] == 0xFF00:
            client.pdu()
    return statuses


def test_a_cancel_that_has_come_ends_a_query(stored: Edge) -> None:
    with asking(stored) as client:
        cancel = {0x0100: us(0x0FFF), 0x0120: us(7), 0x0800: us(0x0101)}
        # Both are there when the request is looked at.
        client.send(message(1, command(REQUEST), STUDIES) + message(1, command(cancel)))
        assert client.response().status == 0xFE00
        client.send(message(1, command({**REQUEST, 0x0110: us(8)}), STUDIES))
        statuses = statuses_of(client)
        assert statuses[-1] == 0
        assert len(statuses) > len(NAMES)
        client.release()


def test_a_hundred_stations_ask_at_once(stored: Edge) -> None:
    clients = [asking(stored) for _ in range(100)]
    for client in clients:
        client.send(message(1, command(REQUEST), STUDIES))
    answers = [statuses_of(client) for client in clients]
    assert {statuses[-1] for statuses in answers} == {0}
    assert len({len(statuses) for statuses in answers}) == 1
    for client in clients:
        client.release()


def test_a_database_that_dies_ends_queries_and_no_association(stored: Edge) -> None:
    def answered() -> list[int]:
        client.send(message(1, command(REQUEST), STUDIES))
        return statuses_of(client)

    with asking(stored) as client:
        before = answered()
        assert before[-1] == 0
        os.kill(int(stored.cluster.ready["pids"]["database-server"][0]), signal.SIGKILL)
        ends: set[int] = set()

        def again() -> bool:
            statuses = answered()
            ends.add(statuses[-1])
            return statuses == before

        until(again, 60)
        assert ends <= {0, 0xA700}
        client.release()


# -- the worklist


def test_the_worklist(stored: Edge) -> None:
    port = int(stored.cluster.ready["ports"]["hl7"])
    for number in (1, 2):
        message = orm(f"WL{number}", f"WP{number}", "Müller^Eva", modality="MR", scheduled=f"2026040{number}0900")
        assert acknowledgement(ask(port, message)) == "AA"
    cancelled = orm("WL2", "WP2", "Müller^Eva", modality="MR", control="CA")
    assert acknowledgement(ask(port, cancelled)) == "AA"

    def worklist(**step: str) -> list[Dataset]:
        asked = dataset(PatientName="", AccessionNumber="WL*", StudyInstanceUID="", RequestedProcedureID="")
        asked.RequestedProcedureCodeSequence = []
        asked.ScheduledProcedureStepSequence = [dataset(**step)] if step else []
        last, rows = query(stored, ModalityWorklistInformationFind, asked)
        assert last.Status == 0
        return list(rows)

    def only_the_first() -> bool:
        return [row.AccessionNumber for row in worklist()] == ["WL1"]

    until(only_the_first, 20)
    (row,) = worklist()
    (step,) = row.ScheduledProcedureStepSequence
    assert (step.Modality, step.ScheduledProcedureStepStartDate) == ("MR", "20260401")
    assert row.StudyInstanceUID
    assert str(row.PatientName) == "Müller^Eva"
    (code,) = row.RequestedProcedureCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("CTABD", "L", "CT abdomen")
    step = {"Modality": "MR", "ScheduledProcedureStepStartDate": "20260401-"}
    assert len(worklist(**step)) == 1
    assert worklist(Modality="CT", ScheduledProcedureStepStartDate="") == []
    number, text = findscu(
        stored, "0008,0050=WL1", "(0040,0100)[0].Modality=MR", "(0040,0100)[0].ScheduledProcedureStepStartDate",
        options=("-W",),
    )  # fmt: skip
    assert number == 1
    assert "[20260401]" in text


def test_worklist_values_that_are_none(stored: Edge) -> None:
    asked = dataset(PatientName="")
    asked.ScheduledProcedureStepSequence = [dataset(ScheduledProcedureStepStartTime="noon")]
    last, _ = query(stored, ModalityWorklistInformationFind, asked)
    assert last.Status == 0xA900
