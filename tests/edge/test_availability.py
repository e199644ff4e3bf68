"""Stations with the option `availability` are told of studies that are complete, and of what comes later."""

from typing import Any

from cluster_support import save
from pynetdicom import AE, evt
from pynetdicom.sop_class import InstanceAvailabilityNotification
from station_support import Edge, until

STUDY = "2.25.77.960"


def test_a_station_is_told_of_a_study_and_again_when_more_has_come(edge: Edge) -> None:
    told: list[Any] = []

    def created(event: Any) -> tuple[int, Any]:
        if event.attribute_list.StudyInstanceUID == STUDY:
            told.append((event.request.AffectedSOPInstanceUID, event.attribute_list))
            # The first time it is told that this cannot be kept now: it is told again.
            return 0x0213 if len(told) == 1 else 0, event.attribute_list
        return 0, event.attribute_list

    ae = AE("PLAIN")
    ae.add_supported_context(InstanceAvailabilityNotification)
    port = edge.ports["PLAIN"]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_CREATE, created)])
    assert server is not None
    assert edge.cluster.run("stations", "set", "PLAIN", "--options", "availability").code == 0
    try:
        edge.store(*(save(edge.folder, 960, SOPInstanceUID=f"{STUDY}.1.{n}") for n in (1, 2)))
        until(lambda: len(told) == 2, 40)
        assert told[0] == told[1]
        (series,) = told[1][1].ReferencedSeriesSequence
        assert series.SeriesInstanceUID == f"{STUDY}.1"
        assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == [
            f"{STUDY}.1.1",
            f"{STUDY}.1.2",
        ]
        assert {(item.RetrieveAETitle, item.InstanceAvailability) for item in series.ReferencedSOPSequence} == {
            ("RADMESH", "ONLINE")
        }
        assert len(told[1][1].ReferencedPerformedProcedureStepSequence) == 0
        edge.store(save(edge.folder, 960, SOPInstanceUID=f"{STUDY}.1.3"))
        until(lambda: len(told) == 3, 40)
        assert told[2][0] != told[1][0]
        assert len(told[2][1].ReferencedSeriesSequence[0].ReferencedSOPSequence) == 3
    finally:
        assert edge.cluster.run("stations", "set", "PLAIN", "--options", "").code == 0
        server.shutdown()
