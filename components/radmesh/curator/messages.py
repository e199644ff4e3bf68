"""Between values and messages."""

from collections.abc import Sequence

from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.curator.model import Content, Frame, FrameRange, Rendition
from radmesh.runtime.errors import RadmeshError

RANGES_MOST = 4096


def content_of(message: common_pb2.ContentIdentity) -> Content:
    """A content from its message."""
    return Content(message.sop_instance_uid, message.transfer_syntax_uid, message.sha256)


def rendition_message(rendition: Rendition, store_id: str, target: str = "") -> database_pb2.Rendition:
    """A rendition as its message."""
    content = rendition.content
    return database_pb2.Rendition(
        identity=common_pb2.ContentIdentity(
            sop_instance_uid=content.sop_instance_uid,
            transfer_syntax_uid=content.transfer_syntax_uid,
            sha256=content.sha256,
        ),
        study_instance_uid=rendition.study_instance_uid,
        series_instance_uid=rendition.series_instance_uid,
        store_id=store_id,
        state=rendition.state,  # type: ignore[arg-type] # numbers are the proto's
        reason=rendition.reason,
        frame=rendition.frame,
        number_of_frames=rendition.number_of_frames,
        transfer_syntax_uid=rendition.served_syntax,
        photometric_interpretation=rendition.photometric_interpretation,
        derived=rendition.derived,
        bytes=rendition.bytes,
        target=target,
    )


def frame_message(frame: Frame) -> curator_pb2.Frame:
    """A frame as its message."""
    return curator_pb2.Frame(size=frame.size, resolution_offsets=frame.offsets)


def ranges_of(messages: Sequence[curator_pb2.FrameRange]) -> list[FrameRange]:
    """What is wanted, from its messages.

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    if not 1 <= len(messages) <= RANGES_MOST:
        raise RadmeshError("FIELD_INVALID", f"ranges: 1 to {RANGES_MOST}", metadata={"field": "ranges"})
    for index, message in enumerate(messages):
        if message.frame < 1 or len(message.sha256) not in (0, 32):
            rule = f"ranges[{index}]: frame from 1, sha256 of 32 bytes or empty"
            raise RadmeshError("FIELD_INVALID", rule, metadata={"field": "ranges", "index": str(index)})
    return [FrameRange(m.sop_instance_uid, m.sha256, m.frame, m.offset, m.length) for m in messages]
