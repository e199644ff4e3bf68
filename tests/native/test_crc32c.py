"""CRC-32C on both of its paths, against the vectors of RFC 3720 and a bitwise model."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import radmesh_native.crc32c
from radmesh_native.crc32c import combine, copy, crc32c

# RFC 3720 B.4; the last one is the check value of the polynomial.
VECTORS = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000"
            + "00" * 12
            + "14000000"
            + "00000400"
            + "00000014"
            + "00000018"
            + "28"
            + "00" * 7
            + "02"
            + "00" * 7
        ),
        0xD9963A56,
    ),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


def model(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_known_answers(data: bytes, expected: int) -> None:
    assert crc32c(data) == model(data) == expected


@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1))
def test_model(data: bytes, value: int) -> None:
    assert crc32c(data, value) == model(data, value)


@given(st.binary(max_size=300), st.binary(max_size=3000))
def test_two_pieces(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


def test_long_pieces() -> None:
    data = os.urandom(1_048_560)
    assert combine(crc32c(b"x"), crc32c(data), len(data)) == crc32c(b"x" + data)
    # 5 GiB of zeros, in pieces of a power of two: nobody needs to have them.
    check, size = crc32c(bytes(1 << 20)), 1 << 20
    for _ in range(12):
        check, size = combine(check, check, size), size * 2
    half = crc32c(bytes(1 << 19))
    for _ in range(13):
        half = combine(half, half, (1 << 19) << _)
    assert check == half


# Around the blocks that three streams take: of 256 and of 8,192 bytes each.
@pytest.mark.parametrize("size", [767, 768, 769, 4095, 4096, 24_575, 24_576, 24_577, 24_576 + 768 + 9, 100_003])
def test_long_data_in_any_pieces(size: int) -> None:
    data = os.urandom(size)
    expected = model(data)
    assert crc32c(data) == expected
    for cut in (1, 8, size // 2, size - 1):
        assert crc32c(data[cut:], crc32c(data[:cut])) == expected
    for offset in range(1, 9):  # unaligned
        assert crc32c(memoryview(bytes(offset) + data)[offset:]) == expected


def test_buffers_of_any_kind() -> None:
    data = os.urandom(5000)
    for buffer in (
        bytearray(data),
        memoryview(data),
        memoryview(data).cast("H"),
        memoryview(data).cast("B", (50, 100)),
    ):
        assert crc32c(buffer) == crc32c(data)
    with pytest.raises(BufferError):
        crc32c(memoryview(data)[::2])
    with pytest.raises(TypeError):
        crc32c("text")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        crc32c(data, 1 << 32)


def test_a_buffer_is_let_go() -> None:
    data = bytearray(10_000)
    crc32c(data)
    data.append(1)  # would raise while somebody holds it


def test_the_portable_path_is_the_same() -> None:
    program = """
import sys
from radmesh_native.crc32c import crc32c, path
assert path() == "portable"
data = sys.stdin.buffer.read()
print(*(crc32c(data[:n]) for n in map(int, sys.argv[1:])))
"""
    data = os.urandom(60_000)
    sizes = [0, 1, 7, 8, 9, 63, 768, 4096, 24_576, 60_000]
    answer = subprocess.run(
        [sys.executable, "-c", program, *map(str, sizes)],
        input=data,
        env=os.environ
        | {"RADMESH_NATIVE": "portable", "PYTHONPATH": str(Path(radmesh_native.crc32c.__file__).parents[1])},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert [int(word) for word in answer.stdout.split()] == [crc32c(data[:n]) for n in sizes]


def test_threads() -> None:
    data = os.urandom(1 << 20)
    expected, wrong = crc32c(data), []

    def work() -> None:
        wrong.extend(1 for _ in range(20) if crc32c(data) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(st.binary(max_size=50_000), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_what_is_copied_is_summed(data: bytes, offset: int, value: int) -> None:
    into = bytearray(b"." * (offset + len(data) + 3))
    assert copy(into, offset, data, value) == crc32c(data, value)
    assert into == b"." * offset + data + b"..."


def test_what_does_not_fit_is_not_copied() -> None:
    into = bytearray(10)
    for offset, size in ((0, 11), (10, 1), (11, 0), (2**63, 1)):
        with pytest.raises(ValueError, match="does not fit"):
            copy(into, offset, b"x" * size)
    with pytest.raises(BufferError):
        copy(b"constant", 0, b"x")
    assert into == bytes(10)
