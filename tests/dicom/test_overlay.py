"""Corrected values in a data set that streams by: in pieces of any size, and with bounded memory."""

import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

import pydicom
import pytest
from cluster_support import data_set, image, save
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from radmesh.dicom import part10
from radmesh.dicom.overlay import HEAD_MOST, Corrected
from radmesh.runtime.errors import RadmeshError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Correction:
    keyword: str
    value: str
    source: str = "ris:main"
    time: datetime = NOW


NEW = [Correction("PatientName", "Müller^Ö"), Correction("PatientID", "NEW")]


def encoded(number, **values):
    buffer = io.BytesIO()
    image(number, **values).save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    part10.seek_data_set(buffer)
    return buffer.read()


def read(body, syntax=ExplicitVRLittleEndian):
    meta = part10.preamble_and_meta("1.2", "1.3", syntax)
    return pydicom.dcmread(io.BytesIO(meta + body))


def cut(body, sizes):
    offset = 0
    for size in itertools.chain(sizes, itertools.repeat(1 << 20)):
        if offset >= len(body):
            return
        yield memoryview(body)[offset : offset + size]
        offset += size


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, 400), max_size=40), st.booleans())
def test_however_it_comes_it_is_the_same(sizes, latin):
    body = encoded(1, InstitutionName="Klinik", **({"SpecificCharacterSet": "ISO_IR 100"} if latin else {}))
    data = Corrected(cut(body, sizes), ExplicitVRLittleEndian, NEW)
    made = b"".join(data)
    assert made == b"".join(Corrected([body], ExplicitVRLittleEndian, NEW))
    assert len(made) == len(body) + data.grown
    ds = read(made)
    assert (str(ds.PatientName), ds.PatientID, ds.InstitutionName) == ("Müller^Ö", "NEW", "Klinik")
    assert ds.SpecificCharacterSet == ("ISO_IR 100" if latin else "ISO_IR 192")
    assert ds.PixelData == image(1).PixelData


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_encoding(tmp_path, syntax):
    ds = image(2)
    path = tmp_path / "file.dcm"
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path, ds, force_encoding=True, little_endian=syntax.is_little_endian, implicit_vr=syntax.is_implicit_VR
    )
    body = data_set(path)
    same = Corrected(cut(body, [7, 9]), syntax, [Correction("PatientID", "P2")])
    assert (same.changed, same.grown, b"".join(same)) == ((), 0, body)
    made = b"".join(Corrected(cut(body, [7, 9]), syntax, NEW))
    assert str(read(made, syntax).PatientName) == "Müller^Ö"
    assert len(made) % 2 == 0


def test_what_lies_behind_is_not_kept(tmp_path):
    """Two GiB behind the patient: what is kept in memory is the beginning."""
    body = data_set(save(tmp_path, 3))
    pixels = body.index(b"\xe0\x7f\x10\x00")
    most = 0

    def pieces():
        yield body[:pixels]
        yield b"\xe0\x7f\x10\x00OW\0\0" + (512 << 20).to_bytes(4, "little")
        block = bytes(1 << 20)
        for _ in range(512):
            yield block

    import tracemalloc

    tracemalloc.start()
    try:
        corrected = Corrected(pieces(), ExplicitVRLittleEndian, NEW)
        size = sum(map(len, corrected))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == pixels + 12 + (512 << 20) + corrected.grown
    assert most < 16 << 20


def test_a_beginning_that_is_too_large_is_refused(tmp_path):
    body = data_set(save(tmp_path, 4))
    start = body.index(b"\x10\x00\x10\x00PN")

    def pieces():
        yield body[:start]
        yield b"\x09\x00\x10\x10OB\0\0" + (HEAD_MOST + 2).to_bytes(4, "little")
        while True:
            yield bytes(1 << 20)

    with pytest.raises(RadmeshError) as caught:
        Corrected(pieces(), ExplicitVRLittleEndian, NEW)
    assert caught.value.reason == "CORRECTION_NOT_APPLIED"


def test_a_store_that_fails_says_so_itself():
    def pieces():
        yield encoded(5)[:100]
        raise RadmeshError("OBJECT_CORRUPT", "the SHA-256 of what was read is not that of the object")

    with pytest.raises(RadmeshError) as caught:
        Corrected(pieces(), ExplicitVRLittleEndian, NEW)
    assert caught.value.reason == "OBJECT_CORRUPT"


@given(st.binary(max_size=300), st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian]), st.booleans())
def test_any_bytes_are_corrected_or_refused(body, syntax, deflated):
    if deflated:
        syntax = DeflatedExplicitVRLittleEndian
        squeeze = zlib.compressobj(wbits=-15)
        body = squeeze.compress(body) + squeeze.flush()
    try:
        b"".join(Corrected([body] if body else [], syntax, NEW))
    except RadmeshError as error:
        assert error.reason == "CORRECTION_NOT_APPLIED"


def test_the_same_correction_gives_the_same_bytes():
    first, second = (b"".join(Corrected([encoded(6)], ExplicitVRLittleEndian, NEW)) for _ in range(2))
    assert first == second
    item = read(first).OriginalAttributesSequence[0]
    assert item.AttributeModificationDateTime == "20260102030405.000000+0000"


def element(tag, vr, value):
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


GROUP_10 = element(0x00100010, "PN", b"Doe^John") + element(0x00100020, "LO", b"OLD ")
ODD = (
    element(0x00080005, "CS", b"ISO_IR 100")
    + element(0x00080013, "TM", b"no time!")
    + element(0x00091001, "ZZ", b"\xff\xfe\x00\x01")
    + element(0x00100000, "UL", struct.pack("<I", len(GROUP_10)))
)
BEHIND = element(0x00110010, "LO", b"ACME") + element(0x00111001, "SH", b"\x00\x01") + element(0x00200010, "SH", b"S1")


def test_every_other_byte_is_copied():
    corrected = Corrected([ODD + GROUP_10 + BEHIND + b"\xe0\x7f\x10\x00OW\0\0\0\0\0\0"], ExplicitVRLittleEndian, NEW)
    body = b"".join(corrected)
    name, patient = element(0x00100010, "PN", "Müller^Ö".encode("latin-1")), element(0x00100020, "LO", b"NEW ")
    new_length = element(0x00100000, "UL", struct.pack("<I", len(name + patient)))
    assert body.startswith(ODD[: -len(new_length)] + new_length + name + patient + BEHIND)
    assert not corrected.recoded
    # What was there is kept as its bytes were.
    assert body.count(GROUP_10) == 1
    assert body.endswith(b"\xe0\x7f\x10\x00OW\0\0\0\0\0\0")
    assert len(body) == len(ODD + GROUP_10 + BEHIND) + 12 + corrected.grown


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_history_gets_one_more(syntax, undefined):
    first = b"".join(Corrected([encoded(1)], ExplicitVRLittleEndian, [Correction("PatientID", "SECOND")]))
    ds = read(first)
    ds["OriginalAttributesSequence"].is_undefined_length = undefined
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    buffer.seek(0)
    part10.seek_data_set(buffer)
    body = b"".join(Corrected([buffer.read()], syntax, [Correction("PatientID", "THIRD", "user:jo")]))
    found = read(body, syntax)
    history = found.OriginalAttributesSequence
    assert found.PatientID == "THIRD"
    assert [item.ModifiedAttributesSequence[0].PatientID for item in history] == ["P1", "SECOND"]
    assert [item.ModifyingSystem for item in history] == ["radmesh ris:main", "radmesh user:jo"]


def test_it_is_said_when_the_character_set_changes():
    for charset, value, recoded in (("ISO_IR 100", "山田", True), ("ISO_IR 192", "山田", False), ("", "Doe", False)):
        body = encoded(1, SpecificCharacterSet=charset) if charset else encoded(1)
        corrected = Corrected([body], ExplicitVRLittleEndian, [Correction("PatientName", value)])
        assert corrected.recoded == recoded
        assert str(read(b"".join(corrected)).PatientName) == value
