"""Frames of a DICOM file as others see them: pydicom tells them apart, imagecodecs and plain numpy decode them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut

from radmesh.curator.worker import instance as making
from radmesh.curator.worker.instance import Again, Begin, Done, End, Metadata, Wish
from radmesh.curator.worker.metadata import Identity
from radmesh.dicom import part10, uids
from radmesh.dicom.elements import inflate
from radmesh.dicom.header import QueryableHeader, new_scanner

RLE = "1.2.840.10008.1.2.5"
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
J2K = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
HTJ2K = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))
HTJ2K_RPCL = HTJ2K[1]


@dataclass
class Made:
    """What was made of an instance."""

    facts: dict[str, Any] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=list)
    offsets: list[tuple[int, ...]] = field(default_factory=list)
    metadata: bytes = b""
    wishes: list[Wish] = field(default_factory=list)


def identity_of(data: bytes, syntax: str) -> Identity:
    """What an instance is known as: what was scanned at its arrival."""
    scanner = new_scanner(uids.transfer_syntax(syntax))
    chunks = inflate([data]) if uids.transfer_syntax(syntax).deflated else [data]
    for chunk in chunks:
        if scanner.feed(chunk):
            break
    scanner.finish()
    header = QueryableHeader.parse(scanner.header())
    return Identity(
        *(header.text(name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"))
    )


def make(data: bytes, syntax: str, piece: int = 1 << 20) -> Made:
    """Make an instance, in this process; again, as often as it asks for that."""
    identity = identity_of(data, syntax)
    wishes: list[Wish] = []
    while True:
        made = Made(wishes=wishes)
        pieces = (data[at : at + piece] for at in range(0, len(data), piece))
        again = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for message in making.make(pieces, identity, syntax, wishes[-1] if wishes else Wish()):
                if isinstance(message, bytes):
                    assert 0 < len(message) <= making.CHUNK
                    made.frames[-1] += message
                elif isinstance(message, Begin):
                    assert message.frame == len(made.frames) + 1
                    made.frames.append(b"")
                elif isinstance(message, End):
                    made.offsets.append(message.offsets)
                elif isinstance(message, Metadata):
                    made.metadata += message.data
                elif isinstance(message, Done):
                    made.facts = dict(message.facts)
                else:
                    assert isinstance(message, Again)
                    again = message.wish
        if again is None:
            return made
        wishes.append(again)
        assert len(wishes) < 5


def open_file(path: Path) -> tuple[bytes, str]:
    """Data set and transfer syntax of a file."""
    with path.open("rb") as file:
        syntax = part10.seek_data_set(file)
        return file.read(), syntax


def decoded(stream: bytes) -> Any:
    """A code stream that was made, decoded by OpenJPH."""
    return imagecodecs.htj2k_decode(stream)


def raw_frames(ds: Any) -> list[bytes]:
    """The frames as they are in the file, in Little Endian."""
    syntax = ds.file_meta.TransferSyntaxUID
    try:
        count = int(ds.get("NumberOfFrames") or 1)
    except ValueError:
        count = 1
    if syntax not in uids.NATIVE:
        return list(generate_frames(ds.PixelData, number_of_frames=count))[:count]
    element = next(ds[name] for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in ds)
    bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(element.keyword, ds.BitsAllocated)
    data = element.value
    if not isinstance(data, bytes):
        data = np.asarray(data, f"<f{bits // 8}").tobytes()
    elif not syntax.is_little_endian and bits > 8:
        data = np.frombuffer(data, f">u{bits // 8}").astype(f"<u{bits // 8}").tobytes()
    elif not syntax.is_little_endian and element.VR == "OW":
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    pixels = ds.Rows * ds.Columns
    size = pixels * ds.SamplesPerPixel * bits
    if ds.PhotometricInterpretation == "YBR_FULL_422" and len(data) * 8 < size * count:
        size = pixels * 2 * 8
    if size % 8:
        flat = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little")
        return [np.packbits(flat[n * size : (n + 1) * size], bitorder="little").tobytes() for n in range(count)]
    return [data[n * size // 8 : (n + 1) * size // 8] for n in range(count)]


def expected(ds: Any) -> Iterator[Any]:
    """The samples of each frame: (rows, columns) or (rows, columns, 3)."""
    for frame in raw_frames(ds):
        yield _rgb(_samples(frame, ds), ds)


def _samples(frame: bytes, ds: Any) -> Any:
    syntax = str(ds.file_meta.TransferSyntaxUID)
    samples, bits = ds.SamplesPerPixel, ds.BitsAllocated
    shape = (ds.Rows, ds.Columns) if samples == 1 else (ds.Rows, ds.Columns, samples)
    if syntax in JPEG_LS:
        words = imagecodecs.jpegls_decode(frame)
    elif syntax in LOSSLESS_JPEG:
        words = imagecodecs.ljpeg_decode(frame)
    elif syntax in J2K:
        words = imagecodecs.jpeg2k_decode(frame)
    elif syntax in HTJ2K:
        words = imagecodecs.htj2k_decode(frame)
    elif syntax == RLE:
        words = _run_lengths(frame, shape, bits)
    else:
        words = np.frombuffer(frame, f"<u{bits // 8}")
        if ds.PhotometricInterpretation == "YBR_FULL_422" and words.size < np.prod(shape):
            pairs = words.reshape(-1, 4)
            words = pairs[:, [0, 2, 3, 1, 2, 3]].reshape(shape)
        elif samples > 1 and ds.get("PlanarConfiguration") == 1:
            words = np.moveaxis(words.reshape(samples, ds.Rows, ds.Columns), 0, 2)
    words = words.reshape(shape)
    # As they lie in their words, whatever sign the decoder gives them.
    return _signed(words.astype("i8") & ((1 << bits) - 1), ds)


def _signed(words: Any, ds: Any) -> Any:
    stored = ds.BitsStored
    values = words >> max(0, ds.HighBit + 1 - stored)
    if any(ds.get((group, 0x0102)) and ds[group, 0x0102].value for group in range(0x6000, 0x6020, 2)):
        values = values & ((1 << stored) - 1)
    if ds.PixelRepresentation == 1:
        values = values & ((1 << stored) - 1)
        values = np.where(values >> (stored - 1), values - (1 << stored), values)
    return values


def _run_lengths(frame: bytes, shape: tuple[int, ...], bits: int) -> Any:
    """PS3.5 annex G, by the letter."""
    count, *starts = np.frombuffer(frame[:64], "<u4").tolist()
    planes = []
    ends = [*starts[1:count], len(frame)]
    for start, end in zip(starts[:count], ends, strict=True):
        out, at = bytearray(), start
        while at < end and len(out) < shape[0] * shape[1]:
            code = frame[at]
            if code < 128:
                out += frame[at + 1 : at + 2 + code]
                at += 2 + code
            else:
                if code > 128:
                    out += frame[at + 1 : at + 2] * (257 - code)
                at += 2 if code > 128 else 1
        planes.append(np.frombuffer(bytes(out[: shape[0] * shape[1]]), "u1").reshape(shape[:2]).astype("i8"))
    width = bits // 8
    samples = [sum(planes[s * width + b] << (8 * (width - 1 - b)) for b in range(width)) for s in range(count // width)]
    return samples[0] if len(shape) == 2 else np.stack(samples, 2)


def _rgb(values: Any, ds: Any) -> Any:
    kind = ds.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        return apply_color_lut(values.astype("u2"), ds)[:, :, :3]
    if kind not in ("YBR_FULL", "YBR_FULL_422") or str(ds.file_meta.TransferSyntaxUID) in J2K:
        return values
    # PS3.3 C.7.6.3.1.2
    y, cb, cr = (values[:, :, n].astype(float) - (128 if n else 0) for n in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 2)
    return np.clip(np.floor(rgb + 0.5), 0, 255)


def read(path: Path) -> Any:
    """A pydicom dataset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)
