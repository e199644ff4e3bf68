"""Small pictures: as large as asked for, from as little as needed, shown as the object wants."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from radmesh.application_server.dicomweb import thumbnails
from radmesh.application_server.metadata import Look
from radmesh.runtime.errors import RadmeshError
from radmesh_native import htj2k


def gradient(rows, columns, dtype=np.uint16, most=4095):
    return (np.add.outer(np.arange(rows), np.arange(columns)) * most // (rows + columns)).astype(dtype)


def reason(function, *arguments):
    with pytest.raises(RadmeshError) as caught:
        function(*arguments)
    return caught.value.reason


@pytest.mark.parametrize("kind", thumbnails.TYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "expected"), [(512, 512, (100, 100)), (300, 600, (100, 50)), (20, 30, (30, 20))]
)
def test_a_prefix_makes_a_picture(kind, rows, columns, expected):
    encoded = htj2k.encode(gradient(rows, columns), bits_stored=12)
    levels = len(encoded.resolution_offsets) - 1
    look = Look(rows, columns, "MONOCHROME2", 2048, 4096)
    reduce = thumbnails.reduction(look, levels, (100, 100))
    prefix = encoded.codestream[: encoded.resolution_offsets[levels - reduce]]
    made = thumbnails.thumbnail(prefix, reduce, look, (100, 100), kind)
    picture = Image.open(io.BytesIO(made))
    assert (picture.size, picture.mode, picture.get_format_mimetype()) == (expected, "L", kind)
    assert picture.getpixel((0, 0)) < 10
    assert picture.getpixel((expected[0] - 1, expected[1] - 1)) > 235


def test_colour_is_shown():
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    frame[:, 32:, 0] = 255
    encoded = htj2k.encode(frame, bits_stored=8)
    look = Look(64, 64, "YBR_RCT")
    made = thumbnails.thumbnail(encoded.codestream, 0, look, (64, 64), thumbnails.PNG)
    picture = Image.open(io.BytesIO(made))
    assert (picture.getpixel((0, 0)), picture.getpixel((63, 0))) == ((0, 0, 0), (255, 0, 0))
    deep = np.full((8, 8, 3), 0xFF00, dtype=np.uint16)
    assert np.all(thumbnails.shown(deep, look) == 255)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 8), st.integers(1, 1024), st.integers(1, 1024))
def test_no_less_than_is_shown_is_read(rows, columns, levels, width, height):
    reduce = thumbnails.reduction(Look(rows, columns), levels, (width, height))
    assert 0 <= reduce <= levels
    if reduce:
        # As large as the box at least, in one direction.
        assert rows / 2**reduce >= height or columns / 2**reduce >= width


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [(40, 400), (1024, 2048), (-300, 50)])
def test_the_window_is_that_of_the_standard(interpretation, window):
    stored = gradient(32, 32, np.int16, 2000) - 1000
    ds = Dataset()
    ds.RescaleSlope, ds.RescaleIntercept = "2", "-100"
    ds.WindowCenter, ds.WindowWidth = map(str, window)
    ds.BitsStored, ds.PixelRepresentation, ds.PhotometricInterpretation = 16, 1, interpretation
    expected = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    # pydicom maps to the range of what can be stored, after the modality's transformation.
    bottom, top = 2.0 * -32768 - 100, 2.0 * 32767 - 100
    grey = (expected - bottom) / (top - bottom) * 255
    look = Look(32, 32, interpretation, *map(float, window), slope=2.0, intercept=-100.0)
    shown = thumbnails.shown(stored, look).astype(float)
    assert shown.min() < shown.max()
    assert np.abs(shown - (255 - grey if interpretation == "MONOCHROME1" else grey)).max() <= 1.0


def test_without_a_window_all_is_shown():
    shown = thumbnails.shown(gradient(64, 64), Look(64, 64, "MONOCHROME2"))
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.all(thumbnails.shown(np.full((8, 8), 7, np.uint8), Look(8, 8)) == 0)


def test_viewports_are_checked():
    assert thumbnails.viewport("") == (128, 128)
    assert thumbnails.viewport("256,100") == (256, 100)
    for text in ("0,1", "1", "1,2,3", "1025,1", "a,b", "-1,1", "1,2,0,0,10,10", "٣,1"):
        assert reason(thumbnails.viewport, text) == "FIELD_INVALID"


@given(st.binary(max_size=200))
def test_what_is_no_code_stream_is_told(data):
    assert reason(thumbnails.thumbnail, data, 0, Look(8, 8), (8, 8), thumbnails.PNG) == "RENDITION_DAMAGED"
