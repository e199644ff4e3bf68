"""Modality Performed Procedure Steps of pynetdicom: what is refused, and what becomes of the study."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import ModalityPerformedProcedureStep, ModalityPerformedProcedureStepRetrieve
from station_support import Edge, until

FILE = Path(str(get_testdata_file("waveform_ecg.dcm")))


@contextmanager
def modality(edge: Edge, *syntaxes: str) -> Iterator[Any]:
    ae = AE("MODALITY")
    ae.add_requested_context(ModalityPerformedProcedureStep, list(syntaxes) or None)
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH")
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def begun(study: str, status: str | None = "IN PROGRESS") -> Dataset:
    """What a modality says when it begins (PS3.4 table F.7.2-1, shortened)."""
    attributes = Dataset()
    attributes.PatientName, attributes.PatientID = "Compressed^Samples", "X1"
    attributes.PerformedProcedureStepID = "PPS1"
    attributes.PerformedStationAETitle = "MODALITY"
    attributes.PerformedProcedureStepStartDate = "20261124"
    if status is not None:
        attributes.PerformedProcedureStepStatus = status
    scheduled = Dataset()
    scheduled.StudyInstanceUID = study
    scheduled.AccessionNumber = "A1"
    scheduled.ReferencedStudySequence = []
    attributes.ScheduledStepAttributesSequence = [scheduled]
    attributes.PerformedSeriesSequence = []
    return attributes


def ended(status: str) -> Dataset:
    attributes = Dataset()
    attributes.PerformedProcedureStepStatus = status
    attributes.PerformedProcedureStepEndDate = "20261124"
    series = Dataset()
    series.SeriesInstanceUID = generate_uid()
    image = Dataset()
    image.ReferencedSOPClassUID = image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2"
    series.ReferencedImageSequence = [image] * 200
    attributes.PerformedSeriesSequence = [series]
    return attributes


def acquisition(edge: Edge, study: str) -> str:
    return str(edge.cluster.run("show", study, "--json").json["study"]["acquisition"])


def test_a_step_moves_its_study_and_is_changed_no_more_once_it_ended(edge: Edge) -> None:
    study, step = str(dcmread(FILE).StudyInstanceUID), generate_uid()
    mpps = ModalityPerformedProcedureStep
    with modality(edge) as association:
        assert association.send_n_create(begun(study), mpps, step)[0].Status == 0
        edge.store(FILE)
        assert acquisition(edge, study) == "STARTED"
        assert association.send_n_create(begun(study), mpps, step)[0].Status == 0x0111
        assert association.send_n_set(ended("COMPLETED"), mpps, step)[0].Status == 0
        assert acquisition(edge, study) == "COMPLETED"
        status = association.send_n_set(ended("DISCONTINUED"), mpps, step)[0]
        assert (status.Status, status.ErrorID) == (0x0110, 0xA710)
        assert status.ErrorComment.startswith("PROCEDURE_STEP_ENDED")
        assert acquisition(edge, study) == "COMPLETED"
    # A modality that names no instance is told its UID.
    told: list[str] = []
    with modality(edge, ImplicitVRLittleEndian) as association:
        association.bind(
            evt.EVT_DIMSE_RECV, lambda event: told.append(str(event.message.command_set.AffectedSOPInstanceUID))
        )
        assert association.send_n_create(begun(study), mpps, None)[0].Status == 0
        assert acquisition(edge, study) == "STARTED"
        assert association.send_n_set(ended("DISCONTINUED"), mpps, told[0])[0].Status == 0
        assert acquisition(edge, study) == "COMPLETED"  # that of the step before


def test_what_makes_no_step_is_refused(edge: Edge) -> None:
    mpps, study = ModalityPerformedProcedureStep, generate_uid()
    studyless = begun(study)
    del studyless.ScheduledStepAttributesSequence
    nameless = begun(study)
    nameless.ScheduledStepAttributesSequence[0].StudyInstanceUID = ""
    with modality(edge) as association:
        for attributes, expected in (
            (begun(study, None), 0x0120),
            (begun(study, "COMPLETED"), 0x0106),
            (studyless, 0x0120),
            (nameless, 0x0106),
        ):
            status = association.send_n_create(attributes, mpps, generate_uid())[0]
            assert status.Status == expected
            assert status.ErrorComment
        assert association.send_n_set(ended("COMPLETED"), mpps, generate_uid())[0].Status == 0x0112
        assert association.send_n_create(begun(study), mpps, step := generate_uid())[0].Status == 0
        assert association.send_n_set(ended("FINISHED"), mpps, step)[0].Status == 0x0106
        assert association.send_n_set(ended("DISCONTINUED"), mpps, step)[0].Status == 0


def test_what_was_said_of_a_step_is_told_joined(edge: Edge) -> None:
    study, step = generate_uid(), generate_uid()
    begins = begun(study)
    begins.SpecificCharacterSet, begins.PatientName = "ISO_IR 100", "M\u00fcller^J"
    with modality(edge) as association:
        assert association.send_n_create(begins, ModalityPerformedProcedureStep, step)[0].Status == 0
    with modality(edge, ImplicitVRLittleEndian) as association:
        assert association.send_n_set(ended("COMPLETED"), ModalityPerformedProcedureStep, step)[0].Status == 0
    retrieve = ModalityPerformedProcedureStepRetrieve
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        ae = AE("READER")
        ae.add_requested_context(retrieve, syntax)
        association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH")
        assert association.is_established
        status, told = association.send_n_get([], retrieve, step)
        assert status.Status == 0
        assert (told.PatientName, told.PerformedProcedureStepStatus) == ("M\u00fcller^J", "COMPLETED")
        assert told.ScheduledStepAttributesSequence[0].StudyInstanceUID == study
        assert len(told.PerformedSeriesSequence[0].ReferencedImageSequence) == 200
        status, told = association.send_n_get([0x00400252, 0x00400253], retrieve, step)
        assert (status.Status, sorted(element.keyword for element in told)) == (
            0, ["PerformedProcedureStepID", "PerformedProcedureStepStatus", "SpecificCharacterSet"]
        )  # fmt: skip
        assert association.send_n_get([0x00400252, 0x00101010], retrieve, step)[0].Status == 0x0107
        assert association.send_n_get([], retrieve, "1.2.3")[0].Status == 0x0112
        association.release()


def test_steps_are_forwarded_in_order_until_they_are_taken(edge: Edge) -> None:
    study, step = generate_uid(), generate_uid()
    came: list[tuple[str, str, int]] = []

    def said(event: Any, name: str, attributes: Dataset, uid: str) -> tuple[int, Dataset]:
        if uid != step:
            return 0, Dataset()
        # At first there is no room.
        status = 0x0213 if not came else 0
        came.append((name, attributes.PerformedProcedureStepStatus, status))
        return status, Dataset()

    handlers: list[Any] = [
        (evt.EVT_N_CREATE, lambda e: said(e, "create", e.attribute_list, e.request.AffectedSOPInstanceUID)),
        (evt.EVT_N_SET, lambda e: said(e, "set", e.modification_list, e.request.RequestedSOPInstanceUID)),
    ]
    ae = AE("SLOW")
    ae.add_supported_context(ModalityPerformedProcedureStep, ImplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", edge.ports["SLOW"]), block=False, evt_handlers=handlers)
    assert server is not None
    assert edge.cluster.run("stations", "set", "SLOW", "--options", "mpps").code == 0
    try:
        with modality(edge, ExplicitVRLittleEndian) as association:
            mpps = ModalityPerformedProcedureStep
            assert association.send_n_create(begun(study), mpps, step)[0].Status == 0
            assert association.send_n_set(ended("COMPLETED"), mpps, step)[0].Status == 0
        until(lambda: len(came) == 3, 40)
    finally:
        assert edge.cluster.run("stations", "set", "SLOW", "--options", "").code == 0
        server.shutdown()
    assert came == [("create", "IN PROGRESS", 0x0213), ("create", "IN PROGRESS", 0), ("set", "COMPLETED", 0)]
