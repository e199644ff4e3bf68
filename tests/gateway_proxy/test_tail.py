"""The walk behind the head: real and made data sets, whole and cut, in chunks of any size."""

import io

import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from radmesh_gateway_proxy.tail import Tail


def data_set(*, implicit: bool = False, big_endian: bool = False, compressed: bool = False) -> bytes:
    ds = Dataset()
    ds.Rows, ds.Columns = 4, 4
    item = Dataset()
    item.StudyID = ""
    nested = Dataset()
    nested.CodeValue = "X"
    item.ConceptNameCodeSequence = [nested]
    ds.PerFrameFunctionalGroupsSequence = [item, item]
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    if compressed:
        ds.PixelData = encapsulate([b"abcd", b"efgh" * 5])
        ds["PixelData"].is_undefined_length = True
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = bytes(range(32))
        ds["PixelData"].VR = "OW"
    ds.DataSetTrailingPadding = b"\0" * 10
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = not big_endian, implicit
    write_dataset(stream, ds)
    return stream.getvalue()


FORMS = [
    pytest.param({}, id="explicit"),
    pytest.param({"implicit": True}, id="implicit"),
    pytest.param({"big_endian": True}, id="big-endian"),
    pytest.param({"compressed": True}, id="compressed"),
]


def walk(data: bytes, form: dict[str, bool], sizes: list[int] | None = None) -> Tail:
    tail = Tail(implicit=form.get("implicit", False), big_endian=form.get("big_endian", False), position=0)
    stream = io.BytesIO(data)
    for size in sizes or []:
        tail.feed(stream.read(size))
    tail.feed(stream.read())
    return tail


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_data_set_ends_between_elements(form: dict[str, bool]) -> None:
    tail = walk(data_set(**form), form)
    assert tail.ends_inside() is None
    assert tail.remark == ""


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_inside_an_element_is_seen(form: dict[str, bool]) -> None:
    data = data_set(**form)
    whole = [cut for cut in range(len(data) + 1) if walk(data[:cut], form).ends_inside() is None]
    # Whole at the beginning, and at the ends of Rows, Columns, the sequence, pixel data and padding.
    assert len(whole) == 6
    assert (whole[0], whole[-1]) == (0, len(data))


@settings(max_examples=examples(150))
@given(data=st.data(), form=st.sampled_from([f.values[0] for f in FORMS]))
def test_how_it_is_cut_into_chunks_does_not_matter(data: st.DataObject, form: dict[str, bool]) -> None:
    whole = data_set(**form)
    end = data.draw(st.integers(0, len(whole)))
    sizes = data.draw(st.lists(st.integers(0, 20), max_size=60))
    assert walk(whole[:end], form, sizes).ends_inside() == walk(whole[:end], form).ends_inside()


@settings(max_examples=examples(300))
@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans(), st.booleans())
def test_any_bytes_are_borne(chunks: list[bytes], implicit: bool, big_endian: bool) -> None:
    tail = Tail(implicit=implicit, big_endian=big_endian, position=0)
    for chunk in chunks:
        tail.feed(chunk)
    tail.ends_inside()


def test_a_bad_vr_is_a_remark_and_no_cut() -> None:
    tail = walk(b"\xe0\x7f\x10\x00??\0\0\x10\0\0\0", {})
    assert tail.remark == "BAD_VR 7FE0,0010"
    assert tail.ends_inside() is None


def test_depth_is_bounded() -> None:
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    tail = walk(opened * 200, {})
    assert tail.remark == "DATA_SET_UNREADABLE 0008,1140"
    assert len(tail._open) < 70


def test_some_zeros_behind_the_last_element_are_padding() -> None:
    assert walk(data_set() + b"\0\0\0\0", {}).ends_inside() is None
