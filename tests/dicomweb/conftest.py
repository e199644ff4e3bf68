"""One real cluster for all tests of DICOMweb, with people of every role, and what they stored."""

from collections.abc import Iterator

import pytest
from cluster_support import RealCluster
from dicomweb_support import CONFIGURATION, STUDY, Web, picture
from http_support import people_of


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("dicomweb")
    (folder / "radmesh.toml").write_text(CONFIGURATION)
    cluster = RealCluster(folder / "data", "--config", str(folder / "radmesh.toml"))
    people = None
    try:
        people = people_of(cluster)
        people.add("tom", "technologist")
        yield Web(cluster, people)
    finally:
        if people is not None:
            people.close()
        cluster.close()


@pytest.fixture(scope="session")
def stored(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Web:
    """Study 1: eight images and one of three frames, of another series; study 2: another patient's."""
    folder = tmp_path_factory.mktemp("stored")
    web.store(
        folder,
        *(picture(1, number, StudyID="S1", ReferringPhysicianName="Roe^Richard") for number in range(1, 9)),
        picture(1, 1, series=2, frames=3, SeriesDescription="Cine", Modality="US"),
        picture(2, 1, PatientName="Müller^Ö", SpecificCharacterSet="ISO_IR 100", StudyDate="20250303"),
    )
    web.curated(STUDY, "2.25.77.2")
    return web
