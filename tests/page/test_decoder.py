"""The page's decoder and its grey values, in a browser: against the arrays that were encoded, and against pydicom."""

import base64
from typing import Any

import numpy as np
import pydicom
import pytest
from browser_support import Visitor
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from radmesh_native import htj2k

HTJ2K = "1.2.840.10008.1.2.4.202"
LITTLE, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, JPEG_12 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
ROWS, COLUMNS = 70, 101

DECODE = """([worker, bytes, syntax, level, picture]) => new Promise((resolve, reject) => {
    globalThis.decoder ??= new Worker(worker);
    const data = Uint8Array.from(atob(bytes), c => c.charCodeAt(0));
    decoder.onerror = e => reject(e.message);
    decoder.onmessage = ({data: {frame, error, unsupported}}) => {
        if (!frame) return resolve({error, unsupported});
        let text = '';
        const raw = new Uint8Array(frame.data.buffer, frame.data.byteOffset, frame.data.byteLength);
        for (let i = 0; i < raw.length; i += 32768) text += String.fromCharCode(...raw.subarray(i, i + 32768));
        resolve({...frame, data: btoa(text), type: frame.data.constructor.name});
    };
    decoder.postMessage({id: 1, bytes: data, syntax, level, picture});
})"""
TYPES = {"Int8Array": "i1", "Uint8Array": "u1", "Int16Array": "<i2", "Uint16Array": "<u2", "Int32Array": "<i4"} | {
    "Uint32Array": "<u4",
    "Float32Array": "<f4",
    "Float64Array": "<f8",
}


class Decoder:
    """The worker of the page."""

    def __init__(self, visitor: Visitor) -> None:
        self.page = visitor.open("/login")
        base = self.page.locator("script[type=module]").get_attribute("src")
        assert base
        self.base = base.removesuffix("app.js")

    def __call__(
        self, data: bytes, syntax: str, *, level: int = 0, rows: int = ROWS, columns: int = COLUMNS, **picture: Any
    ) -> dict[str, Any]:
        about = {
            "rows": rows, "columns": columns, "samples": 1, "bitsAllocated": 16, "bitsStored": 16, "highBit": 15,
            "signed": False, "planar": False, "photometric": "MONOCHROME2", "padding": None, "paddingLimit": None,
            "float": False, "modality": "OT", **picture,
        }  # fmt: skip
        worker = f"{self.base}viewer/decode-worker.js"
        answer: dict[str, Any] = self.page.evaluate(
            DECODE, [worker, base64.b64encode(data).decode(), syntax, level, about]
        )
        if "data" in answer:
            found = np.frombuffer(base64.b64decode(answer["data"]), TYPES[answer["type"]])
            shape = (answer["height"], answer["width"]) + ((answer["samples"],) if answer["samples"] > 1 else ())
            answer["data"] = found.reshape(shape)
        return answer

    def painted(self, data: NDArray[Any], picture: dict[str, Any], window: dict[str, Any], **more: Any) -> NDArray[Any]:
        """What grey.js draws of a frame: (rows, columns), 0 to 255."""
        text = self.page.evaluate(
            """async ([module, data, type, width, height, range, whole, picture, window, invert]) => {
                const {paint} = await import(module);
                const raw = Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer;
                const image = new ImageData(width, height);
                const frame = {width, height, samples: 1, bits: 16, data: new globalThis[type](raw), range, whole};
                paint(image, frame, picture, window, invert);
                let text = '';
                for (let i = 0; i < image.data.length; i += 32768)
                    text += String.fromCharCode(...image.data.subarray(i, i + 32768));
                return btoa(text);
            }""",
            [
                f"{self.base}viewer/grey.js",
                base64.b64encode(data.tobytes()).decode(),
                next(name for name, kind in TYPES.items() if np.dtype(kind) == data.dtype),
                data.shape[1],
                data.shape[0],
                [data.min().item(), data.max().item()],
                data.dtype.kind != "f",
                {"photometric": "MONOCHROME2", "inverse": False, "slope": 1, "intercept": 0, "modalityTable": None}
                | picture,
                window,
                more.get("invert", False),
            ],
        )
        image = np.frombuffer(base64.b64decode(text), np.uint8).reshape(*data.shape, 4)
        assert (image[..., 3] == 255).all()
        assert (image[..., 0] == image[..., 1]).all()
        assert (image[..., 0] == image[..., 2]).all()
        return image[..., 0]


@pytest.fixture(scope="module")
def decode(browser, door):
    visitor = browser.visitor(door.url)
    yield Decoder(visitor)
    visitor.close()
    browser.leave()
    assert not visitor.faults


def noise(low: int, high: int, dtype: str, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> NDArray[Any]:
    """Every kind of value, the extremes among them."""
    made = np.random.default_rng(7).integers(low, high, shape, endpoint=True).astype(dtype)
    made[0, 0], made[-1, -1] = low, high
    return made


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", range(1, 17))
def test_htj2k_of_every_depth_is_what_was_encoded(decode, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    frame = noise(low, high, ("i" if signed else "u") + ("1" if bits <= 8 else "2"))
    found = decode(htj2k.encode(frame, bits_stored=bits).codestream, HTJ2K)
    assert np.array_equal(found["data"], frame)
    assert found["range"] == [low, high]


@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (12, "u2"), (16, "u2")])
def test_htj2k_of_colours_is_what_was_encoded(decode, bits, dtype):
    frame = noise(0, 2**bits - 1, dtype, (ROWS, COLUMNS, 3))
    found = decode(htj2k.encode(frame, bits_stored=bits).codestream, HTJ2K, samples=3, photometric="YBR_RCT")
    assert np.array_equal(found["data"], frame)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [7, 12])
def test_prefixes_are_smaller_pictures(decode, bits, signed):
    y, x = np.mgrid[0:300, 0:260]
    frame = ((x * y) % 2**bits - (2 ** (bits - 1) if signed else 0)).astype(
        ("i" if signed else "u") + ("1" if bits <= 8 else "2")
    )
    made = htj2k.encode(frame, bits_stored=bits)
    levels = len(made.resolution_offsets) - 1
    assert levels >= 3
    for number, prefix in enumerate(made.resolution_offsets):
        level = levels - number
        found = decode(made.codestream[:prefix], HTJ2K, level=level, rows=300, columns=260)
        assert np.array_equal(found["data"], htj2k.decode(made.codestream[:prefix], reduce=level))


def test_damaged_code_streams_are_named(decode):
    stream = htj2k.encode(noise(0, 4095, "u2"), bits_stored=12).codestream
    for data in (b"", bytes(100), stream[:20], stream[:50], stream[:60] + bytes(400), b"\xff\x4f\xff\x51" + bytes(200)):
        found = decode(data, HTJ2K)
        assert found["error"], len(data)
        assert not found["unsupported"]
    # And the next one decodes.
    assert "data" in decode(stream, HTJ2K)


def test_a_code_stream_of_another_size_than_its_metadata_is_refused(decode):
    stream = htj2k.encode(noise(0, 4095, "u2"), bits_stored=12).codestream
    for about in ({"rows": 71}, {"columns": 100}, {"samples": 3}):
        assert "its metadata" in decode(stream, HTJ2K, **about)["error"]
    assert "is not shown here" in decode(stream, HTJ2K, rows=60000, columns=60000)["error"]


@pytest.mark.parametrize("syntax", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("u1", 8),
        ("i1", 8),
        ("u2", 16),
        ("u2", 12),
        ("i2", 16),
        ("i2", 12),
        ("u4", 32),
        ("i4", 32),
        ("f4", 0),
        ("f8", 0),
    ],
)
def test_native_frames(decode, syntax, dtype, stored):
    kind = np.dtype(dtype)
    if kind.kind == "f":
        frame = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(dtype)
    elif kind.kind == "i":
        frame = noise(-(2 ** (stored - 1)), 2 ** (stored - 1) - 1, dtype)
    else:
        frame = noise(0, 2**stored - 1, dtype)
    raw = frame.astype(kind.newbyteorder(">" if syntax == BIG else "<"))
    if stored == 12:
        # What stands above the stored bits is not the sample's.
        bits = raw.view(kind.newbyteorder(raw.dtype.byteorder).str.replace("i", "u"))
        raw = ((bits & 0x0FFF) | 0x9000).astype(bits.dtype)
    found = decode(
        raw.tobytes(), syntax, bitsAllocated=8 * kind.itemsize, bitsStored=stored, highBit=stored - 1,
        signed=kind.kind == "i", float=kind.kind == "f",
    )  # fmt: skip
    assert np.array_equal(found["data"], frame)
    assert "shorter" in decode(raw.tobytes()[:-1], syntax, bitsAllocated=8 * kind.itemsize, bitsStored=stored)["error"]


def test_frames_of_one_bit(decode):
    frame = noise(0, 1, "u1")
    packed = np.packbits(frame.ravel(), bitorder="little").tobytes()
    assert np.array_equal(decode(packed, LITTLE, bitsAllocated=1, bitsStored=1, highBit=0)["data"], frame)
    assert "shorter" in decode(packed[:-1], LITTLE, bitsAllocated=1)["error"]


def test_planes_of_colour_are_interleaved(decode):
    frame = noise(0, 255, "u1", (ROWS, COLUMNS, 3))
    about = {"samples": 3, "bitsAllocated": 8, "bitsStored": 8, "highBit": 7, "photometric": "RGB"}
    planes = np.ascontiguousarray(frame.transpose(2, 0, 1)).tobytes()
    assert np.array_equal(decode(planes, LITTLE, planar=True, **about)["data"], frame)
    assert np.array_equal(decode(frame.tobytes(), LITTLE, **about)["data"], frame)


def jpeg(name: str) -> tuple[pydicom.Dataset, bytes, dict[str, Any]]:
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    about = {
        "rows": ds.Rows, "columns": ds.Columns, "samples": ds.SamplesPerPixel, "bitsAllocated": ds.BitsAllocated,
        "bitsStored": ds.BitsStored, "highBit": ds.HighBit, "photometric": ds.PhotometricInterpretation,
    }  # fmt: skip
    return ds, get_frame(ds.PixelData, 0, number_of_frames=int(ds.get("NumberOfFrames", 1))), about


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_jpeg_dcmtk.dcm"],
)
def test_jpeg_is_passed_through_to_the_browser(decode, name):
    ds, frame, about = jpeg(name)
    found = decode(frame, JPEG, **about)
    reference = pixel_array(ds, as_rgb=True) if "+cr" not in name else pixel_array(ds, raw=True)
    # Two decoders of a lossy format round differently.
    assert np.abs(found["data"].astype(int) - reference.astype(int)).max() <= 6


def test_what_a_browser_cannot_decode_is_said(decode):
    ds, frame, about = jpeg("JPEG-lossy.dcm")
    assert ds.BitsStored > 8
    assert "more than 8 bits" in decode(frame, JPEG_12, **about)["error"]
    found = decode(b"x", "1.2.840.10008.1.2.4.91", **about)
    assert found["unsupported"]


# -- grey values ------------------------------------------------------------------------------------------------------


def reference(data: NDArray[Any], **elements: Any) -> NDArray[Any]:
    """What pydicom makes of the values with these elements: 0 to 255."""
    ds = Dataset()
    ds.BitsStored, ds.BitsAllocated, ds.PixelRepresentation = 16, 16, int(data.dtype.kind == "i")
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    values = apply_modality_lut(data, ds).astype(float)
    ds.BitsStored, ds.PixelRepresentation = 8, 0
    # pydicom's output runs over the stored values' range; with 8 bits after the modality LUT that is 0 to 255.
    ds.pop("RescaleSlope", None)
    ds.pop("RescaleIntercept", None)
    with np.errstate(over="ignore"):
        return np.rint(np.clip(apply_voi_lut(values, ds), 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("shape", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (0.5, 1.5), (2048, 4096), (100, 2)])
def test_grey_is_pydicoms_grey(decode, shape, center, width):
    data = noise(-2000, 4095, "<i2")
    window = {"center": center, "width": width, "shape": shape}
    found = decode.painted(data, {"slope": 1.5, "intercept": -1024}, window)
    wanted = reference(
        data, RescaleSlope=1.5, RescaleIntercept=-1024, WindowCenter=center, WindowWidth=width, VOILUTFunction=shape
    )
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    assert np.mean(found != wanted) < 0.01


def test_low_values_are_bright_where_the_image_says_so(decode):
    data = noise(0, 4095, "<u2")
    window = {"center": 2048, "width": 4096, "shape": "LINEAR"}
    plain = decode.painted(data, {}, window).astype(int)
    for about in ({"photometric": "MONOCHROME1"}, {"inverse": True}):
        assert np.abs(255 - plain - decode.painted(data, about, window)).max() <= 1
        assert np.array_equal(plain, decode.painted(data, about, window, invert=True))
    assert np.abs(255 - plain - decode.painted(data, {}, window, invert=True)).max() <= 1


def test_tables_are_looked_up_and_end_at_their_ends(decode):
    data = noise(0, 255, "<u2")
    modality = {"first": 10, "bits": 16, "values": [1000 + 3 * i for i in range(100)]}
    voi = {"first": 1000, "bits": 12, "values": [(i * i) % 4096 for i in range(300)]}
    found = decode.painted(data, {"modalityTable": modality}, {"table": voi, "label": "LUT"})
    values = np.array(modality["values"])[np.clip(data.astype(int) - 10, 0, 99)]
    wanted = np.rint(np.array(voi["values"])[np.clip(values - 1000, 0, 299)] / 4095 * 255)
    assert np.array_equal(found, wanted)


def test_floats_have_windows_too(decode):
    data = np.random.default_rng(3).normal(size=(40, 50)).astype("<f4")
    found = decode.painted(data, {}, {"center": 0, "width": 4, "shape": "LINEAR_EXACT"})
    assert np.array_equal(found, np.clip(np.rint((data.astype(float) / 4 + 0.5) * 255), 0, 255))
