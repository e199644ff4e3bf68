"""DICOMweb of a real cluster: people who ask, and pictures that are stored."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cluster_support import RealCluster, image
from dicomweb_client.api import DICOMwebClient
from http_support import People
from pydicom.uid import JPEG2000Lossless, RLELossless
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError

# What `user:tom` stores is held until its order comes.
CONFIGURATION = (
    '[[stations]]\nae_title = "user:tom"\nverification = "required"\n\n[[stations]]\nae_title = "user:admin"\n'
)


@dataclass(frozen=True)
class Web:
    """The cluster, its people, and the service's URL."""

    cluster: RealCluster
    people: People

    @property
    def url(self) -> str:
        return f"{self.cluster.ready['urls']['http']}/dicom-web"

    def client(self, name: str = "radiologist") -> DICOMwebClient:
        """dicomweb-client, with the token of a person."""
        return DICOMwebClient(self.url, headers={"Authorization": f"Bearer {self.people.tokens[name]}"})

    def get(self, path: str, name: str = "radiologist", **headers: str) -> Any:
        return self.people[name].get(f"/dicom-web{path}", headers=headers)

    def store(self, folder: Path, *datasets: Any, user: str = "admin", password: str | None = None) -> None:
        """Store data sets, and wait until they can be found."""
        paths = []
        for number, ds in enumerate(datasets):
            path = folder / f"{number}.dcm"
            ds.save_as(path, enforce_file_format=True)
            paths.append(path)
        with self.cluster.client(user, password) as client:
            results = list(client.store(paths))
        assert all(result.stored for result in results), results
        with self.cluster.client() as client:
            for result in results:
                found = partial(
                    client.instances, result.study_instance_uid, sop_instance_uid=result.sop_instance_uid, variants=True
                )
                wait_for(lambda found=found: _any(found), 30.0)

    def curated(self, *studies: str) -> None:
        """Wait until all instances of the studies are curated."""

        def done() -> bool:
            answers = [self.people["administrator"].get(f"/api/v1/studies/{uid}?instances=false") for uid in studies]
            found = [answer.json()["study"] for answer in answers]
            return all(study["curated_count"] == study["instance_count"] for study in found)

        wait_for(done, 30.0)


def _any(find: Any) -> bool:
    """Whether something is found; a study that nothing is known of yet has nothing."""
    try:
        return any(True for _ in find())
    except RadmeshError as error:
        if error.reason != "STUDY_NOT_FOUND":
            raise
        return False


def pixels(number: int, rows: int = 64, columns: int = 48, frames: int = 1) -> Any:
    """Pixels of 12 bits that only this image has; (rows, columns), of several frames (frames, rows, columns)."""
    rng = np.random.default_rng(number)
    ramp = np.add.outer(np.arange(rows), np.arange(columns)) * 16
    made = (ramp + rng.integers(0, 64, (frames, rows, columns))).astype("<u2") & 0xFFF
    return made if frames > 1 else made[0]


def picture(study: int, number: int, *, frames: int = 1, series: int = 1, **values: Any) -> Any:
    """CT image `number` of a series of a study."""
    uid = f"2.25.77.{study}.{series}"
    extra = {"NumberOfFrames": str(frames)} if frames > 1 else {}
    array = pixels(study * 1000 + number, frames=frames)
    return image(
        study,
        SeriesInstanceUID=uid,
        SOPInstanceUID=f"{uid}.{number}",
        InstanceNumber=str(number),
        SeriesNumber=str(series),
        Rows=array.shape[-2],
        Columns=array.shape[-1],
        PixelData=array.tobytes(),
        WindowCenter="1000",
        WindowWidth="2000",
        **extra,
        **values,
    )


def compressed(ds: Any, syntax: str) -> Any:
    """The same, compressed."""
    ds.compress(syntax, generate_instance_uid=False)
    return ds


J2K, RLE = JPEG2000Lossless, RLELossless
STUDY = "2.25.77.1"
SERIES = "2.25.77.1.1"
