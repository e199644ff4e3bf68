"""The DICOM JSON of an instance: what was looked at before, and what its writer gave no VR."""

import io
import json
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian

from radmesh.curator.worker.metadata import Identity, describe
from radmesh.curator.worker.table import State

SERVED = {"state": State.PASSED, "transfer_syntax_uid": "1.2.840.10008.1.2.4.50", "photometric_interpretation": "RGB",
          "derived": False, "bits": 8, "signed": False, "samples": 1, "number_of_frames": 1}  # fmt: skip
KNOWN_AS = Identity("2.25.1", "2.25.1.1", "1.2.840.10008.5.1.4.1.1.2", "2.25.1.1.1")


def described(**looked_at: bool) -> dict[str, Any]:
    """Of a data set in Implicit VR; with `everything`, after every element was used."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.PixelRepresentation, ds.BitsStored, ds.PatientComments = 0, 8, ""
    ds.private_block(0x0009, "RADMESH TEST", create=True).add_new(1, "US", 0)
    file = io.BytesIO()
    ds.save_as(file, implicit_vr=True, little_endian=True)
    read = dcmread(io.BytesIO(file.getvalue()), force=True)
    if looked_at:
        for element in read:
            assert element.tag
    found: dict[str, Any] = json.loads(describe(read, KNOWN_AS, SERVED))
    return found


def test_zero_is_a_value_and_a_creator_has_a_name() -> None:
    for found in (described(), described(everything=True)):
        assert found["00280103"] == {"vr": "US", "Value": [0]}
        assert found["00280101"] == {"vr": "US", "Value": [8]}
        assert found["00104000"] == {"vr": "LT"}
        assert found["00090010"] == {"vr": "LO", "Value": ["RADMESH TEST"]}


def test_an_instance_is_described_under_the_name_that_it_is_known_by() -> None:
    """Whoever joins metadata looks for that, whatever was cut off or changed in the data set."""
    found = described()
    assert found["00080018"] == {"vr": "UI", "Value": ["2.25.1.1.1"]}
    assert found["0020000E"] == {"vr": "UI", "Value": ["2.25.1.1"]}
