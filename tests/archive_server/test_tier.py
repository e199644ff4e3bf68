"""The permanent tier: what is written is read back, nothing half has a name, nothing is ever replaced."""

import contextlib
import errno
import hashlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from database_support import CT, element, uid
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_support import admission_key, object_header

from radmesh.api.common.v1 import common_pb2
from radmesh.archive_server import tier as tier_module
from radmesh.archive_server.tier import BLOCK, Entry, Tier, _entry, _line
from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.study_store import IndexRow, Ref

STUDY = uid("study of the tier")
PERMANENT = common_pb2.RESIDENCE_PERMANENT
TIME = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
LOG = Logger("archive-server", "archive-server-0", io.StringIO())


def row(data: bytes, sequence: int = 1, generation: int = 1) -> IndexRow:
    return IndexRow(
        ref=Ref(study_hash(STUDY), generation, sequence),
        header=object_header(STUDY, uid("sop", sequence), admission_key(STUDY)),
        length=len(data),
        sha256=hashlib.sha256(data).digest(),
        queryable=b"\x08\0\x05\0CS\0\0",
        receive_time=TIME,
        remarks=("BAD_VR 0010,1010",),
        transfer_id=bytes(range(16)),
    )


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))


def read(tier: Tier, ref: Ref, offset: int = 0, length: int = 0) -> bytes:
    with tier.read(ref, offset, length) as reader:
        return b"".join(reader)


def keep(tier: Tier, data: bytes, sequence: int = 1) -> IndexRow:
    made = row(data, sequence)
    tier.settle([tier.write(made, pieces(data))])
    return made


def files(tier: Tier) -> list[str]:
    return sorted(path.name for path in tier.root.rglob("*") if path.is_file())


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier(tmp_path, LOG)


@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_comes_back_also_in_another_process(tier: Tier, size: int) -> None:
    data = os.urandom(size)
    made = keep(tier, data)
    for reader in (tier, Tier(tier.root, LOG)):
        assert read(reader, made.ref) == data
        assert reader.entry(made.ref).row == made, "the manifest has the whole index row"
        with reader.read(made.ref) as opened:
            assert (opened.size, opened.sha256, opened.residence) == (size, made.sha256, PERMANENT)


@settings(
    max_examples=examples(60),
)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4), drawn=st.data())
def test_any_sizes_and_ranges(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], drawn: st.DataObject) -> None:
    tier = Tier(tmp_path_factory.mktemp("tier"), LOG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tier_module, "BLOCK", 512)
        contents = [os.urandom(size) for size in sizes]
        made = [row(data, number) for number, data in enumerate(contents, 1)]
        tier.settle([tier.write(r, [data]) for r, data in zip(made, contents, strict=True)])
        for r, data in zip(made, contents, strict=True):
            offset = drawn.draw(st.integers(0, max(0, len(data) - 1)))
            length = drawn.draw(st.integers(0, 4000))
            assert read(tier, r.ref, offset, length) == data[offset : offset + length if length else None]
            with pytest.raises(RadmeshError, match="bytes") as caught:
                tier.read(r.ref, len(data) + 1)
            assert caught.value.reason == "RANGE_INVALID"


def test_pydicom_reads_every_file_and_no_name_has_a_uid(tier: Tier) -> None:
    for sequence in range(1, 4):
        sop = uid("sop", sequence)
        data = element(0x00080016, b"UI", CT.encode() + b"\0" * (len(CT) % 2))
        data += element(0x00080018, b"UI", sop.encode() + b"\0" * (len(sop) % 2))
        data += element(0x00100010, b"PN", b"Doe^John")
        data += element(0x7FE00010, b"OW", os.urandom(2000))
        keep(tier, data, sequence)
    found = sorted(tier.root.rglob("*.dcm"))
    assert len(found) == 3
    for sequence, path in enumerate(found, 1):
        dataset = pydicom.dcmread(path)
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == uid("sop", sequence)
        assert dataset.PatientName == "Doe^John"
        assert len(dataset.PixelData) == 2000
    for path in tier.root.rglob("*"):
        assert "2.25." not in path.name
        assert STUDY not in str(path)


def test_what_a_crash_left_half_is_written_anew(tier: Tier) -> None:
    data = os.urandom(5000)
    made = row(data)
    path = tier.path(made.ref)
    path.parent.mkdir(parents=True)
    path.with_name(f".{path.name}.part").write_bytes(b"half" * 5000)
    keep(tier, data)
    assert read(tier, made.ref) == data
    assert files(tier) == ["1-1.dcm", "1.manifest"]


def test_a_whole_file_is_adopted(tier: Tier) -> None:
    data = os.urandom(5000)
    made = row(data)
    tier.write(made, [data])  # the process is killed before settle
    before = tier.path(made.ref).stat()
    again = Tier(tier.root, LOG)
    with pytest.raises(RadmeshError, match="does not have"):
        again.read(made.ref)
    again.settle([again.write(made, _never())])
    after = tier.path(made.ref).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read(again, made.ref) == data
    # Killed between settle and what the store is told: the line is there twice, the object once.
    again.settle([again.write(made, _never())])
    assert list(again.entries(made.ref.study_hash, 1)) == [1]
    assert read(Tier(tier.root, LOG), made.ref) == data


def _never() -> Iterator[bytes]:
    for _ in range(1):
        raise AssertionError("what is there is not written again")
    yield b""


@pytest.mark.parametrize("wrong", [b"", b"something else", b"\0" * 128 + b"DICM" + b"x" * 5000])
def test_a_wrong_file_is_set_aside_and_kept(tier: Tier, wrong: bytes) -> None:
    data = os.urandom(5000)
    made = row(data)
    for number in range(3):
        path = tier.path(made.ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(wrong)
        keep(tier, data)
        assert read(tier, made.ref) == data
        assert path.with_name(f"1-1.aside-{number}").read_bytes() == wrong


def test_a_torn_line_costs_only_itself(tier: Tier) -> None:
    first, second = os.urandom(100), os.urandom(200)
    one = keep(tier, first)
    manifest = tier.path(one.ref).with_name("1.manifest")
    whole = manifest.read_bytes()
    two = row(second, 2)
    tier.settle([tier.write(two, [second])])
    line = manifest.read_bytes()[len(whole) :]
    for cut in range(0, len(line) - 1, 37):
        manifest.write_bytes(whole + line[:cut])
        again = Tier(tier.root, LOG)
        assert read(again, one.ref) == first
        with pytest.raises(RadmeshError) as caught:
            again.read(two.ref)
        assert caught.value.reason == "OBJECT_NOT_FOUND"
        again.settle([again.write(two, _never())])
        assert read(again, two.ref) == second
        assert read(again, one.ref) == first


@settings(max_examples=examples(200))
@given(st.binary(max_size=200) | st.sampled_from([b"1", b"[]", b'"x"', b"null", b"{}", b'{"crc32c":[-1]}']))
def test_no_line_of_a_manifest_is_too_odd(line: bytes) -> None:
    assert _entry("0" * 32, 1, line) is None


@settings(max_examples=examples(300))
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_line_is_no_error(position: int, bit: int) -> None:
    line = bytearray(_line(Entry(row(b"abc"), [1, 2])))
    line[position % len(line)] ^= 1 << bit
    for piece in bytes(line).split(b"\n"):
        found = _entry("0" * 32, 1, piece)
        assert found is None or isinstance(found, Entry)


def test_a_flipped_bit_is_found(tier: Tier) -> None:
    data = os.urandom(2 * BLOCK + 100)
    made = keep(tier, data)
    path = tier.path(made.ref)
    raw = bytearray(path.read_bytes())
    raw[-50] ^= 4
    path.write_bytes(raw)
    assert read(tier, made.ref, 0, BLOCK) == data[:BLOCK], "blocks that are whole are served"
    with pytest.raises(RadmeshError) as caught:
        read(tier, made.ref)
    assert caught.value.reason == "OBJECT_CORRUPT"


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_bytes(b"short"), lambda p: os.truncate(p, 2000)])
def test_a_file_that_is_gone_or_cut_is_corrupt(tier: Tier, harm: Callable[[Path], Any]) -> None:
    data = os.urandom(5000)
    made = keep(tier, data)
    harm(tier.path(made.ref))
    with pytest.raises(RadmeshError) as caught:
        read(tier, made.ref)
    assert caught.value.reason == "OBJECT_CORRUPT"


def test_what_comes_back_differently_gets_no_name(tier: Tier) -> None:
    made = row(b"what was stored")
    with pytest.raises(RadmeshError) as caught:
        tier.write(made, [b"what was STORED"])
    assert caught.value.reason == "OBJECT_CORRUPT"
    assert files(tier) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "link", "pread", "open", "mkdir"])
def test_a_failing_file_system_leaves_nothing_half(
    tier: Tier, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    data = os.urandom(3 * BLOCK)
    made = row(data)
    calls = {"write": 3, "fsync": 0, "link": 0, "pread": 2, "open": 0, "mkdir": 0}

    real = getattr(os, call)

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[call] -= 1
        if calls[call] < 0:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(RadmeshError) as caught:
            tier.write(made, pieces(data))
    assert caught.value.reason == "TIER_FAILED"
    assert files(tier) == []
    keep(tier, data)
    assert read(tier, made.ref) == data


def test_a_store_that_cannot_be_read_keeps_its_own_reason(tier: Tier) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise RadmeshError("OBJECT_CORRUPT", "of the cache")

    with pytest.raises(RadmeshError, match="of the cache"):
        tier.write(row(b"xx"), broken())
    assert files(tier) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    if os.geteuid():
        pytest.skip("mounting takes root; the failing calls above stand for it")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this machine lets nobody mount; the failing calls above stand for it")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk(small: Path) -> None:
    tier = Tier(small, LOG)
    kept = os.urandom(BLOCK)
    one = keep(tier, kept)
    large = os.urandom(4 * BLOCK)
    for _ in range(3):
        with pytest.raises(RadmeshError) as caught:
            tier.write(row(large, 2), pieces(large))
        assert caught.value.reason == "TIER_FAILED"
        assert files(tier) == ["1-1.dcm", "1.manifest"], "a part would keep the disk full"
    two = keep(tier, os.urandom(BLOCK), 3)
    assert read(tier, one.ref) == kept
    assert two.length == BLOCK
    # Full to the last byte: the manifest's line does not fit, and is written when there is room.
    third = row(b"abc", 4)
    entry = tier.write(third, [b"abc"])
    with contextlib.suppress(OSError), (small / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(b"\0" * 4096)
    manifest = tier.path(third.ref).with_name("1.manifest")
    with pytest.raises(RadmeshError) as caught:
        for _ in range(100):
            tier.settle([entry])
    assert caught.value.reason == "TIER_FAILED"
    assert read(Tier(small, LOG), one.ref) == kept
    (small / "ballast").unlink()
    tier.settle([entry])
    again = Tier(small, LOG)
    assert read(again, third.ref) == b"abc"
    assert manifest.exists()
