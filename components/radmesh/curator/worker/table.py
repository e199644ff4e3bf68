"""Which frames the web cache has of an instance: coded, passed through, original, or none."""

import enum
from dataclasses import dataclass
from typing import Any, Final

from radmesh.dicom import uids
from radmesh.dicom.elements import DOUBLE_PIXELS, FLOAT_PIXELS
from radmesh.dicom.image_check import JPIP, NO_IMAGES, VIDEO

HTJ2K_RPCL: Final = "1.2.840.10008.1.2.4.202"
RLE: Final = "1.2.840.10008.1.2.5"
DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
JPEG_LS: Final = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000: Final = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
SEQUENTIAL_JPEG: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
LOSSLESS_JPEG: Final = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
DECODABLE: Final = frozenset((RLE, DEFLATED_FRAMES, *LOSSLESS_JPEG, *JPEG_LS, *JPEG_2000))

# Of a frame: what the codec takes, and what there is memory for.
SAMPLES_MOST: Final = 1 << 27
FRAME_MOST: Final = 256 << 20

GREY: Final = ("MONOCHROME1", "MONOCHROME2", "")
YBR: Final = ("YBR_FULL", "YBR_FULL_422")
COLOUR: Final = ("RGB", "YBR_RCT", "YBR_ICT", *YBR)
PALETTE: Final = "PALETTE COLOR"


class State(enum.IntEnum):
    """What there is of an instance; numbers as in database.v1.RenditionState."""

    CODED = 1
    PASSED = 2
    ORIGINAL = 3
    NONE = 4


@dataclass(frozen=True, slots=True)
class Image:
    """What a data set says of its pixel data (PS3.3 C.7.6.3); `frames` 0: it cannot be understood.

    `overlays`: bits above the sample hold overlay planes (PS3.3 C.9.2, retired).
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    planar: int
    frames: int
    photometric: str
    overlays: bool

    @classmethod
    def of(cls, ds: Any) -> "Image":
        """Read it from a pydicom Dataset, whatever that holds."""
        photometric = _text(ds, 0x00280004).upper()
        allocated = _number(ds, 0x00280100)
        stored = min(_number(ds, 0x00280101) or allocated, allocated)
        high_bit = _number(ds, 0x00280102)
        return cls(
            rows=_number(ds, 0x00280010),
            columns=_number(ds, 0x00280011),
            samples=_number(ds, 0x00280002) or (3 if photometric in COLOUR else 1),
            allocated=allocated,
            stored=stored,
            # A high bit that leaves no room for the sample is a slip of the pen.
            high_bit=high_bit if stored - 1 <= high_bit < allocated else stored - 1,
            signed=_number(ds, 0x00280103) == 1,
            planar=_number(ds, 0x00280006) & 1,
            frames=_whole(_text(ds, 0x00280008) or "1"),
            photometric=photometric,
            overlays=any(_number(ds, group << 16 | 0x0102) for group in range(0x6000, 0x6020, 2)),
        )

    @property
    def described(self) -> bool:
        """Whether the size of a frame is known."""
        return bool(self.rows and self.columns and self.allocated)

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return self.rows * self.columns * self.samples


@dataclass(frozen=True, slots=True)
class Decision:
    """What is made of an instance's frames; `reason`: why ORIGINAL or NONE."""

    state: State
    reason: str = ""


def decide(image: Image, syntax: uids.TransferSyntax, sop_class_uid: str, tag: int | None) -> Decision:
    """Return what becomes of an instance, before its frames are looked at.

    Args:
        image: what its data set says.
        syntax: its transfer syntax.
        sop_class_uid: its SOP class.
        tag: the element that holds the pixels; None: there is none.
    """
    if tag is None:
        expected = image.described and not sop_class_uid.startswith(NO_IMAGES) and syntax.uid not in JPIP
        return Decision(State.NONE, "PIXEL_DATA_MISSING" if expected else "NO_PIXEL_DATA")
    if tag in (FLOAT_PIXELS, DOUBLE_PIXELS):
        return Decision(State.ORIGINAL, "PIXELS_FLOAT") if image.rows and image.columns else _UNDESCRIBED
    if syntax.encapsulated and syntax.uid in (*VIDEO, *SEQUENTIAL_JPEG):
        return Decision(State.PASSED)
    if not image.described:
        return Decision(State.ORIGINAL, _UNDESCRIBED.reason) if syntax.encapsulated else _UNDESCRIBED
    reason = _unusable(image) or ("NO_DECODER" if syntax.encapsulated and syntax.uid not in DECODABLE else "")
    return Decision(State.ORIGINAL, reason) if reason else Decision(State.CODED)


_UNDESCRIBED: Final = Decision(State.NONE, "PIXELS_UNDESCRIBED")


def _unusable(image: Image) -> str:
    """Return why samples cannot be coded; empty: they can."""
    if image.allocated == 1:
        return "PIXELS_ONE_BIT"
    if image.stored > 16:
        return "PIXELS_OVER_16_BITS"
    if image.frame_samples > SAMPLES_MOST:
        return "FRAME_TOO_LARGE"
    if image.allocated in (8, 16, 32) and image.samples == 1 and image.photometric in (*GREY, PALETTE):
        return ""
    if image.allocated in (8, 16) and image.samples == 3 and image.photometric in COLOUR and not image.signed:
        # The conversion from YBR is that of 8 bits.
        return "PIXELS_UNUSUAL" if image.photometric in YBR and image.allocated != 8 else ""
    return "PIXELS_UNUSUAL"


def _raw(ds: Any, tag: int) -> Any:
    """An element's value, as it came: what pydicom makes of it would replace it."""
    return ds.get_item(tag).value if tag in ds else None


def _text(ds: Any, tag: int) -> str:
    value = _raw(ds, tag)
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
    return text.split("\\", 1)[0].strip("\0 ")


def _number(ds: Any, tag: int) -> int:
    """The first value of a US; text where somebody wrote that."""
    value = _raw(ds, tag)
    if isinstance(value, bytes) and len(value) >= 2 and ds.get_item(tag).VR in (None, "US", "SS", "UN"):
        return int.from_bytes(value[:2], "little" if ds.get_item(tag).is_little_endian else "big")
    return _whole(_text(ds, tag))


def _whole(text: str) -> int:
    try:
        return max(0, int(float(text or 0)))
    except (OverflowError, ValueError):
        return 0
