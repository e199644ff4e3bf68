"""DICOMweb (PS3.18): QIDO-RS and WADO-RS at /dicom-web."""

from collections.abc import Sequence

from radmesh.application_server.dicomweb import retrieving, searching
from radmesh.application_server.http.app import Door
from radmesh.application_server.http.routes import Route
from radmesh.application_server.metadata import Metadata
from radmesh.application_server.pictures import Pictures


def routes(door: Door, pictures: Pictures, metadata: Metadata) -> Sequence[Route]:
    """Return everything under /dicom-web."""
    return (*searching.routes(door), *retrieving.routes(door, pictures, metadata))
