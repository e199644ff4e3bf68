"""Small pictures: a prefix of a code stream decoded, shown by the window that the object asks for (PS3.3 C.11)."""

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from radmesh.application_server.metadata import Look
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.codec import Buffer
from radmesh_native.htj2k import CodestreamError, decode

JPEG, PNG = "image/jpeg", "image/png"
TYPES: Final = (JPEG, PNG)
DEFAULT_SIDE: Final = 128
SIDE_MOST: Final = 1024
SAMPLES_MOST: Final = 1 << 26
"""Samples of a frame that is decoded for a picture."""
_QUALITY: Final = 85
# Without a window, all but this part of the samples at either end is shown.
_OUTLIERS: Final = 0.5


def viewport(text: str) -> tuple[int, int]:
    """Return (columns, rows) of the parameter `viewport` (PS3.18 8.3.5.1.3); empty: 128 by 128.

    Raises:
        RadmeshError: FIELD_INVALID: none of two numbers from 1 to 1,024; parts of an image are not shown.
    """
    if not text:
        return DEFAULT_SIDE, DEFAULT_SIDE
    sides = text.split(",")
    if len(sides) != 2 or not all(s.isascii() and s.isdecimal() and 1 <= int(s[:5]) <= SIDE_MOST for s in sides):
        raise RadmeshError(
            "FIELD_INVALID", f"viewport: width,height, each 1 to {SIDE_MOST}", metadata={"field": "viewport"}
        )
    return int(sides[0]), int(sides[1])


def reduction(look: Look, levels: int, box: tuple[int, int]) -> int:
    """Return how many levels of the wavelet can be left out of a frame that is to fill `box` (columns, rows)."""
    reduce = 0
    # Whatever fills one side of the box is large enough.
    scale = max(look.columns / box[0], look.rows / box[1])
    while reduce < levels and scale >= 2 ** (reduce + 1):
        reduce += 1
    return reduce


def shown(frame: npt.NDArray[np.generic], look: Look) -> npt.NDArray[np.uint8]:
    """Return a frame as it is shown: uint8, (rows, columns) or (rows, columns, 3)."""
    if frame.ndim == 3:
        bits = frame.dtype.itemsize * 8
        wide = frame.astype(np.int32) + (1 << (bits - 1) if frame.dtype.kind == "i" else 0)
        return (wide >> (bits - 8)).astype(np.uint8)
    values = frame.astype(np.float64) * look.slope + look.intercept
    if look.center is not None and look.width is not None and look.width >= 1:
        # C.11.2.1.2.1, the linear function.
        width = max(look.width - 1.0, 1e-6)
        grey = (values - (look.center - 0.5)) / width + 0.5
    else:
        low, high = np.percentile(values, (_OUTLIERS, 100 - _OUTLIERS))
        grey = (values - low) / max(high - low, 1e-6)
    grey = np.clip(grey, 0.0, 1.0)
    if look.photometric_interpretation == "MONOCHROME1":
        grey = 1.0 - grey
    return np.asarray(np.rint(grey * 255), dtype=np.uint8)


def thumbnail(codestream: Buffer, reduce: int, look: Look, box: tuple[int, int], kind: str) -> bytes:
    """Return a JPEG or PNG of at most `box` (columns, rows), its sides in the frame's proportion.

    Args:
        codestream: as much of it as `reduce` needs.
        reduce: levels of the wavelet that are left out.
        look: how it wants to be shown.
        box: to fill; a smaller frame is not made larger.
        kind: JPEG or PNG.

    Raises:
        RadmeshError: RENDITION_DAMAGED: it cannot be decoded.
    """
    from PIL import Image  # noqa: PLC0415 - only where somebody asks for it

    try:
        frame = decode(codestream, reduce=reduce, max_samples=SAMPLES_MOST)
    except (CodestreamError, MemoryError) as error:
        raise RadmeshError("RENDITION_DAMAGED", "the picture cannot be decoded") from error
    picture: Any = Image.fromarray(shown(frame, look))
    picture.thumbnail(box, Image.Resampling.BOX)
    out = io.BytesIO()
    if kind == PNG:
        picture.save(out, "PNG")
    else:
        picture.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
