"""Many frames at once, and code streams in memory of the caller's."""

import threading

import numpy as np
import pytest
from htj2k_support import KINDS, made

from radmesh_native import htj2k


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_frames_come_back_in_their_order(threads: int | None) -> None:
    frames = np.stack([made((70, 90), 12, False, KINDS[n % len(KINDS)], n) for n in range(13)])
    expected = [htj2k.encode(frame, bits_stored=12, levels=2) for frame in frames]
    assert htj2k.encode_frames(frames, bits_stored=12, levels=2, threads=threads) == expected
    assert htj2k.encode_frames(iter(frames), bits_stored=12, levels=2, threads=threads) == expected


def test_frames_of_many_sizes_share_work_space() -> None:
    """From large to small and back, in more threads than arenas are kept for."""
    frames = [made((n, 2 * n + 1), 16, True, "noise", n) for n in (400, 3, 250, 1, 64, 500, 7, 128) * 3]
    for frame, encoded in zip(frames, htj2k.encode_frames(frames, bits_stored=16, threads=8), strict=True):
        assert encoded == htj2k.encode(frame, bits_stored=16)
        assert np.array_equal(htj2k.decode(encoded.codestream), frame)


def test_no_frames_are_no_code_streams() -> None:
    assert htj2k.encode_frames([], bits_stored=8) == []


def test_a_frame_that_cannot_be_encoded_ends_the_batch() -> None:
    frames = [np.zeros((8, 8), np.uint16)] * 5
    frames[3] = frames[3] + 255
    alive = threading.active_count()
    for threads in (1, 3):
        with pytest.raises(ValueError, match="outside of 7 bits"):
            htj2k.encode_frames(frames, bits_stored=7, threads=threads)
    assert threading.active_count() == alive
    with pytest.raises(ValueError, match="threads are 1 or more, not 0"):
        htj2k.encode_frames(frames, bits_stored=8, threads=0)


def test_into_memory_of_the_caller() -> None:
    frame = made((61, 77, 3), 8, False, "smooth", 1)
    whole = htj2k.encode(frame, bits_stored=8)
    size = len(whole.codestream)
    for out in (bytearray(size), memoryview(bytearray(size + 9)), memoryview(np.zeros(size, np.int8).data)):
        assert htj2k.encode_into(frame, out, bits_stored=8) == whole.resolution_offsets
        assert bytes(memoryview(out).cast("B")[:size]) == whole.codestream
    # One byte less, and none: nothing is written.
    for room in (size - 1, 0):
        short = bytearray(b"\x55" * room)
        with pytest.raises(ValueError, match=f"takes {size} bytes, and there is room for {room}"):
            htj2k.encode_into(frame, short, bits_stored=8)
        assert short == b"\x55" * room
    with pytest.raises(ValueError, match="outside of 7 bits"):
        htj2k.encode_into(np.full((4, 4), 200, np.uint8), bytearray(999), bits_stored=7)
    with pytest.raises((ValueError, BufferError, TypeError)):
        htj2k.encode_into(frame, memoryview(bytes(size)), bits_stored=8)
