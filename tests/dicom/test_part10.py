"""Part 10 files: written ones as others read them, real ones, irregular ones, and such as are none."""

import io
import struct
from pathlib import Path

import pydicom.data
import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info

from radmesh.dicom import part10, uids
from radmesh.dicom.header import QueryableHeader, new_scanner
from radmesh.runtime.errors import RadmeshError

CT, INSTANCE = "1.2.840.10008.5.1.4.1.1.2", "2.25.7"
EXPLICIT, IMPLICIT, BIG = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)
JPEG = "1.2.840.10008.1.2.4.50"
# (0008,0016) SOP Class UID, in each encoding: what data sets begin with.
FIRST = {
    EXPLICIT: b"\x08\0\x16\0UI\x04\0" + b"1.2\0",
    IMPLICIT: b"\x08\0\x16\0\x04\0\0\0" + b"1.2\0",
    BIG: b"\0\x08\0\x16UI\0\x04" + b"1.2\0",
}
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"


def found(data: bytes) -> tuple[str, bytes]:
    """What is said to be the transfer syntax, and the data set."""
    file = io.BytesIO(data)
    return part10.seek_data_set(file), file.read()


def meta(*elements: tuple[int, bytes, bytes]) -> bytes:
    """Group 0002 with 16-bit lengths, and nothing but what is given."""
    return b"".join(struct.pack("<HH2sH", 2, number, vr, len(value)) + value for number, vr, value in elements)


@pytest.mark.parametrize("ae_title", ["", "CT1", "A" * 16, "ODD"])
def test_what_is_written_is_a_file_of_the_standard(tmp_path: Path, ae_title: str) -> None:
    path = tmp_path / "image.dcm"
    head = part10.preamble_and_meta(CT, INSTANCE, EXPLICIT, ae_title)
    path.write_bytes(head + FIRST[EXPLICIT])
    seen = read_file_meta_info(path)
    assert (seen.MediaStorageSOPClassUID, seen.MediaStorageSOPInstanceUID) == (CT, INSTANCE)
    assert seen.TransferSyntaxUID == EXPLICIT
    assert seen.ImplementationClassUID == uids.IMPLEMENTATION_CLASS_UID
    assert seen.ImplementationVersionName == uids.IMPLEMENTATION_VERSION_NAME
    assert seen.FileMetaInformationVersion == b"\0\1"
    assert seen.get("SourceApplicationEntityTitle", "") == ae_title
    # The group's length is that of all behind it (PS3.10 7.1): preamble, prefix, and its own twelve bytes before.
    assert seen.FileMetaInformationGroupLength == len(head) - 128 - 4 - 12
    assert len(head) % 2 == 0
    assert dcmread(path).SOPClassUID == "1.2"


def test_an_ae_title_that_is_none_does_not_spoil_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(part10.preamble_and_meta(CT, INSTANCE, EXPLICIT, "ÄÖÜ" + "X" * 40))
    assert read_file_meta_info(path).SourceApplicationEntityTitle == "???" + "X" * 13


@given(
    st.from_regex(r"[0-2](\.[1-9][0-9]{0,8}){1,5}", fullmatch=True),
    st.from_regex(r"[0-2](\.[1-9][0-9]{0,8}){1,5}", fullmatch=True),
    st.text(max_size=20),
    st.binary(max_size=60),
)
def test_what_is_written_is_found_again(instance: str, syntax: str, ae_title: str, data_set: bytes) -> None:
    # A data set that begins with group 0002 is none.
    data_set = b"\x08\0" + data_set
    assert found(part10.preamble_and_meta(CT, instance, syntax, ae_title) + data_set) == (syntax, data_set)


def test_files_of_pydicom() -> None:
    """The data set of each begins where pydicom finds its first elements."""
    looked = 0
    for path in sorted(TEST_FILES.rglob("*.dcm")):
        known = dcmread(path, stop_before_pixels=True, force=True)
        syntax_said = known.file_meta.get("TransferSyntaxUID")
        if not syntax_said or "SOPInstanceUID" not in known:
            continue
        with path.open("rb") as file:
            assert part10.seek_data_set(file) == syntax_said, path.name
            data = file.read(1 << 20)
        syntax = uids.transfer_syntax(syntax_said)
        if syntax.deflated:
            continue
        scanner = new_scanner(syntax)
        scanner.feed(data)
        scanner.finish()
        assert QueryableHeader.parse(scanner.header()).text("SOPInstanceUID") == known.SOPInstanceUID, path.name
        looked += 1
    assert looked > 60


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_data_set_without_a_file_around_it(syntax: str) -> None:
    assert found(FIRST[syntax]) == (syntax, FIRST[syntax])
    # Preamble and prefix, but no meta information.
    assert found(bytes(128) + b"DICM" + FIRST[syntax]) == (syntax, FIRST[syntax])


@pytest.mark.parametrize(
    "head",
    [
        # No preamble.
        b"DICM" + meta((0x10, b"UI", JPEG.encode())),
        # A group length that is wrong, or is not there; twice the same element: the last counts.
        bytes(128) + b"DICM" + meta((0, b"UL", b"\xff\xff\xff\x7f"), (0x10, b"UI", JPEG.encode())),
        bytes(128) + b"DICM" + meta((0x10, b"UI", b"1.2.3\0"), (0x10, b"UI", JPEG.encode())),
        # A preamble with a TIFF in it.
        b"II*\0" + bytes(124) + b"DICM" + meta((0x10, b"UI", JPEG.encode() + b"\0")),
        # Spaces instead of a NUL.
        bytes(128) + b"DICM" + meta((0x10, b"UI", JPEG.encode() + b"  ")),
        # Implicit VR where no standard allows it.
        bytes(128) + b"DICM" + struct.pack("<HHI", 2, 0x10, len(JPEG)) + JPEG.encode(),
        # Meta information without a preamble and without a prefix.
        meta((0x02, b"UI", CT.encode() + b"\0"), (0x10, b"UI", JPEG.encode())),
    ],
)
def test_irregular_heads(head: bytes) -> None:
    assert found(head + FIRST[EXPLICIT]) == (JPEG, FIRST[EXPLICIT])


@pytest.mark.parametrize("said", [b"", b"nonsense", b"1..2", b"1" * 66])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_transfer_syntax_that_is_none_is_seen_from_the_data_set(said: bytes, syntax: str) -> None:
    head = bytes(128) + b"DICM" + meta((0x10, b"UI", said))
    assert found(head + FIRST[syntax]) == (syntax, FIRST[syntax])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"DIC",
        bytes(4096),
        b"\xff" * 4096,
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"%PDF-1.7\n" + b"x" * 200,
        b"<html>" + b" " * 200,
        # Group 0008, but with more than any first element has.
        b"\x08\0\x05\0\xff\xff\xff\x7f",
        FIRST[EXPLICIT][:7],
    ],
)
def test_what_is_no_dicom_file_is_named(data: bytes) -> None:
    with pytest.raises(RadmeshError) as raised:
        found(data)
    assert raised.value.reason == "FILE_NOT_DICOM"


@pytest.mark.parametrize("length", [1 << 20, 0xFFFFFFFF])
def test_meta_information_is_bounded(length: int) -> None:
    """However long it says that it is, a mebibyte of it is read."""
    asked: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size)

    private = struct.pack("<HH2sHI", 2, 0x0102, b"OB", 0, length)
    with pytest.raises(RadmeshError) as raised:
        part10.seek_data_set(Counted(bytes(128) + b"DICM" + private + bytes(3 << 20)))
    assert raised.value.reason == "FILE_NOT_DICOM"
    assert all(0 <= size <= 1 << 20 for size in asked)


@settings(max_examples=examples(300))
@given(st.data())
def test_flipped_bytes_have_a_result(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([EXPLICIT, IMPLICIT, BIG]))
    whole = bytearray(part10.preamble_and_meta(CT, INSTANCE, syntax, "CT1") + FIRST[syntax])
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(120, len(whole) - 1))] = data.draw(st.integers(0, 255))
    start = data.draw(st.sampled_from([0, 0, 128, 132]))
    file = io.BytesIO(bytes(whole[start : data.draw(st.integers(start, len(whole)))]))
    size = len(file.getvalue())
    try:
        assert uids.is_valid_uid(part10.seek_data_set(file))
    except RadmeshError as error:
        assert error.reason == "FILE_NOT_DICOM"
    else:
        assert file.tell() <= size
