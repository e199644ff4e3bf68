"""HTJ2K of pydicom's data sets by our own decoder: a decoding plugin of pydicom 3 for .201, .202 and .203.

Where radmesh is installed pydicom has our decoder through pylibjpeg, without a word (components/_radmesh_htj2k.py), and
OpenJPEG for what ours refuses. This is for who wants to name it, or to hear why a frame is refused:

    from radmesh.dicom import pydicom_htj2k

    pydicom_htj2k.register()
    pydicom.pixels.pixel_array("image.dcm", decoding_plugin="radmesh")

It is then asked before pylibjpeg, which still gets what ours refuses.
"""

from typing import Final

from pydicom.pixels.decoders import HTJ2KDecoder, HTJ2KLosslessDecoder, HTJ2KLosslessRPCLDecoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL

from radmesh_native import htj2k

LABEL: Final = "radmesh"

# pydicom reads it where a plugin is not available, which ours always is.
DECODER_DEPENDENCIES: Final = dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), ("radmesh",))

_PYLIBJPEG: Final = ("pylibjpeg", ("pydicom.pixels.decoders.pylibjpeg", "_decode_frame"))


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax are decoded here."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytearray:
    """A frame as pydicom wants it: little endian, colour by pixel, RGB where the code stream has a colour transform.

    Raises:
        CodestreamError: the frame cannot be decoded.
    """
    frame = htj2k.decode(src, max_samples=runner.rows * runner.columns * runner.samples_per_pixel)
    if runner.samples_per_pixel == 3:
        runner.set_option("planar_configuration", 0)
        if runner.photometric_interpretation in {"YBR_RCT", "YBR_ICT"}:
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return bytearray(frame.astype(frame.dtype.newbyteorder("<"), copy=False).data)


def register() -> None:
    """Have pydicom decode HTJ2K here first. More than once is the same as once; not while another thread decodes."""
    for decoder in (HTJ2KLosslessDecoder, HTJ2KLosslessRPCLDecoder, HTJ2KDecoder):
        if LABEL in decoder.available_plugins:
            continue
        others = _PYLIBJPEG[0] in decoder.available_plugins
        # They are tried in the order in which they were added.
        if others:
            decoder.remove_plugin(_PYLIBJPEG[0])
        decoder.add_plugin(LABEL, (__name__, "decode_frame"))
        if others:
            decoder.add_plugin(*_PYLIBJPEG)
