"""Re-encodes data sets for receivers that cannot take the transfer syntax they are stored in.

Between native transfer syntaxes that is done here. Compressed pixel data is decoded in a process of its own: decoders
are written in C and meet whatever was sent. The process is started once and used again, one object at a time.
"""

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import threading
import zlib
from typing import Any, BinaryIO, Final, cast

from radmesh.dicom.uids import NATIVE, transfer_syntax
from radmesh.runtime.errors import RadmeshError
from radmesh_native import splice

MOST: Final = 512 << 20
"""Bytes of a data set, before and after."""
WALL_SECONDS: Final = 120.0
_MEMORY: Final = 8 << 30
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_PIXELS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_JPEG_BASELINE, _JPEG_EXTENDED, _JPEG_LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57))
# Retired JPEG processes (PS3.5 A.4.1 of 2007): a decoder of JPEG reads them, whatever the transfer syntax calls them.
_AS_JPEG: Final = {
    f"1.2.840.10008.1.2.4.{n}": _JPEG_LOSSLESS if n in (58, 65, 66) else _JPEG_EXTENDED
    for n in (*range(52, 57), *range(58, 67))
}
# Marker of a progressive frame (SOF2), whose scans have a part of the coefficients each.
_PROGRESSIVE: Final = b"\xff\xc2"
_DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
_NO_DECODER: Final = NotImplementedError.__name__
# Length and outcome before what is answered.
_HEAD: Final = struct.Struct("<Q?")


class Transcoder:
    """Thread-safe; decodes one object at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, data: bytes, source: str, target: str) -> bytes:
        """Return a data set in another transfer syntax, a native one.

        Args:
            data: its bytes, without preamble and group 0002.
            source: Transfer Syntax UID in which it is.
            target: Transfer Syntax UID in which it is wanted.

        Raises:
            RadmeshError: TRANSCODING_FAILED.
        """
        if target not in NATIVE:
            raise RadmeshError("TRANSCODING_FAILED", "objects are not compressed for a receiver")
        # One at a time of either, which bounds what is held.
        with self._lock:
            if source not in NATIVE:
                return self._decode(data, source, target)
            try:
                return reencode(data, source, target)
            except Exception as error:
                # Whatever pydicom makes of bytes that are no valid data set.
                raise RadmeshError(
                    "TRANSCODING_FAILED", f"the data set cannot be re-encoded ({type(error).__name__})"
                ) from error

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _decode(self, data: bytes, source: str, target: str) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        # A decoder that does not come back is ended, and so are the reads and writes below.
        timer = threading.Timer(WALL_SECONDS, process.kill)
        timer.start()
        try:
            head = f"{source} {target} {len(data)}\n".encode()
            process.stdin.write(head)
            process.stdin.write(data)
            process.stdin.flush()
            length, done = _HEAD.unpack(_exactly(process.stdout, _HEAD.size))
            answer = _exactly(process.stdout, min(length, MOST))
        except (OSError, EOFError, struct.error):
            self._end()
            raise RadmeshError("TRANSCODING_FAILED", "pixel data cannot be decoded") from None
        finally:
            timer.cancel()
        if not done:
            kind = answer.decode()
            why = f"no decoder for {source}" if kind == _NO_DECODER else f"pixel data cannot be decoded ({kind})"
            raise RadmeshError("TRANSCODING_FAILED", why)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "radmesh.dicom.transcoding"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._process.wait()
            self._process = None


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def reencode(data: bytes, source: str, target: str, *, decode: bool = False) -> bytes:
    """Return a data set in another native transfer syntax.

    `decode`: its pixel data is compressed. Raises whatever pydicom and decoders raise.
    """
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - brings much, for few
    from pydicom.filebase import DicomFileLike  # noqa: PLC0415
    from pydicom.filereader import read_dataset  # noqa: PLC0415
    from pydicom.filewriter import write_dataset  # noqa: PLC0415
    from pydicom.uid import UID  # noqa: PLC0415

    before, after = transfer_syntax(source), transfer_syntax(target)
    if before.deflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflater.decompress(data, MOST)
        if not inflater.eof:
            raise ValueError("too long, or cut")
    # pydicom leaves out an element that is cut, without a word.
    if splice.locate(data, _PIXELS, implicit=before.implicit, big_endian=before.big_endian)[0] == splice.CUT:
        raise ValueError("it ends within an element")
    dataset = read_dataset(io.BytesIO(data), before.implicit, not before.big_endian)
    # What has no pixels has none that are compressed, whatever its transfer syntax says.
    if decode and any(tag in dataset for tag in _PIXELS):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(_AS_JPEG.get(source, source))
        dataset.set_original_encoding(before.implicit, not before.big_endian, dataset.original_character_set)
        _decompress(dataset)
    elif before.big_endian != after.big_endian:
        _swap_words(dataset)
    for tag in [tag for tag in dataset.keys() if tag.group == 0xFFFE]:  # noqa: SIM118 - a data set yields elements
        # Delimiters that end nothing.
        del dataset[tag]
    buffer = io.BytesIO()
    sink = DicomFileLike(buffer)
    sink.is_little_endian, sink.is_implicit_VR = not after.big_endian, after.implicit
    write_dataset(cast("Any", sink), dataset)
    made = buffer.getvalue()
    if after.deflated:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        made = deflater.compress(made) + deflater.flush()
        made += b"\0" * (len(made) % 2)
    return made


def _decompress(dataset: Any) -> None:
    """Decode pixel data in place, YCbCr to RGB; raises NotImplementedError if nothing here can."""
    from pydicom.pixels import get_decoder  # noqa: PLC0415

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED_FRAMES:
        _inflate_frames(dataset)
        return
    if not get_decoder(syntax).is_available:
        raise NotImplementedError
    try:
        dataset.decompress(generate_instance_uid=False)
    except RuntimeError:
        if syntax not in (_JPEG_BASELINE, _JPEG_EXTENDED) or _PROGRESSIVE in dataset.PixelData:
            raise
        dataset.PixelData = _whole_scans(dataset.PixelData)
        dataset.decompress(generate_instance_uid=False)


def _inflate_frames(dataset: Any) -> None:
    """Deflated Image Frame Compression: each frame is deflated by itself (RFC 1951)."""
    from pydicom.encaps import generate_frames  # noqa: PLC0415

    number = int(dataset.get("NumberOfFrames") or 1)
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    if bits % 8 and number > 1:
        raise ValueError("frames that do not end at a byte")
    size = (bits + 7) // 8
    if size * number > MOST:
        raise ValueError("too long")
    pixels = bytearray()
    for frame in generate_frames(dataset.PixelData, number_of_frames=number):
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size + 1)
        if len(inflated) not in (size, size + size % 2):
            raise ValueError("a frame of another size")
        pixels += inflated[:size]
    if len(pixels) != size * number:
        raise ValueError("frames are missing")
    dataset.PixelData = bytes(pixels) + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    dataset["PixelData"].is_undefined_length = False


def _whole_scans(data: bytes) -> bytes:
    """Return encapsulated JPEG whose sequential scans have all coefficients, as they must (ISO 10918-1 B.2.3).

    Some writers leave the selection at 0 to 0; decoders differ in whether they mind.
    """
    changed = bytearray(data)
    at = 0
    while (at := data.find(b"\xff\xda", at)) >= 0:
        components = data[at + 4] if at + 4 < len(data) else 0
        end = at + 8 + 2 * components
        # Within a scan 0xFF is followed by zero or RSTn: this is a marker.
        if int.from_bytes(data[at + 2 : at + 4], "big") == 6 + 2 * components and end + 2 <= len(data):
            changed[end - 3 : end] = b"\x00\x3f\x00"
        at += 2
    return bytes(changed)


def _swap_words(dataset: Any) -> None:
    """Turn the bytes of OW values, which pydicom keeps as they are; of sequences in it too."""
    for element in dataset.iterall():
        if element.VR == "OW" and element.value:
            if dataset.get("BitsAllocated", 16) > 16:
                raise ValueError("words of more than 16 bits in another byte order")
            swapped = bytearray(element.value)
            swapped[0::2], swapped[1::2] = swapped[1::2], swapped[0::2]
            element.value = bytes(swapped)


def main() -> int:
    """Answer requests on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    from radmesh.dicom import pydicom_htj2k  # noqa: PLC0415 - brings much, for this process alone

    pydicom_htj2k.register()
    stream, out = cast("BinaryIO", sys.stdin.buffer), sys.stdout.buffer
    while head := stream.readline():
        source, target, size = head.decode().split()
        data = stream.read(int(size))
        try:
            answer, done = reencode(data, source, target, decode=True), True
        except Exception as error:  # noqa: BLE001 - of whatever a decoder says, the kind is told
            answer, done = type(error).__name__.encode(), False
        out.write(_HEAD.pack(len(answer), done))
        out.write(answer)
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
