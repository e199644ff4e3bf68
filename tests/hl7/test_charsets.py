"""Character sets: what is declared, what is there, and nothing lost between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.hl7 import charsets
from radmesh.hl7.charsets import decode, encode
from radmesh.hl7.message import parse


def name_in(text: bytes, declared: str, default: str = "") -> tuple[str, str, tuple[str, ...]]:
    raw = rb"MSH|^~\&|R||||||ADT^A08|1|P|2.5||||||" + declared.encode() + b"\rPID|1||P||" + text + b"|after\r"
    read = parse(raw, default_charset=default)
    assert read.get("PID-6") == "after"
    return read.segment("PID").field(5).plain, read.charset, read.remarks


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("8859/1", "latin-1", "Müller^Jörg"),
        ("8859/2", "iso8859-2", "Dvořák^Łukasz"),
        ("8859/5", "iso8859-5", "Иванов^Иван"),
        ("8859/7", "iso8859-7", "Παπαδόπουλος^Νίκος"),
        ("8859/6", "iso8859-6", "محمد^علي"),
        ("8859/8", "iso8859-8", "כהן^משה"),
        ("8859/9", "iso8859-9", "Öztürk^Şule"),
        ("8859/15", "iso8859-15", "Cœur^Zoë €"),
        ("UNICODE UTF-8", "utf-8", "山田^太郎"),
        ("GB 18030-2000", "gb18030", "王^小东"),
        ("BIG-5", "big5", "許^功蓋"),  # whose second bytes are the escape character's and the field separator's
        ("KS X 1001", "euc_kr", "김^희중"),
        ("ISO IR14", "shift_jis", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ASCII", "ascii", "Yamada^Tarou"),
    ],
)
def test_the_declared_set_is_read(declared, codec, name):
    assert name_in(name.encode(codec), declared) == (name, declared, ())


@pytest.mark.parametrize(
    ("written", "known"),
    [("UTF-8", "UNICODE UTF-8"), ("", ""),
     ("UNICODE", "UNICODE UTF-8"), ("utf8", "UNICODE UTF-8"), ("ISO_IR 100", "8859/1"), ("ISO-8859-15", "8859/15"),
     ("ISO8859/1", "8859/1"), ("GB18030", "GB 18030-2000"), ("wrong", ""), ("rot13", "")],
)  # fmt: skip
def test_other_spellings(written, known):
    assert charsets.canonical(written) == known


def test_kanji_by_escape_sequences():
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    iso_2022 = "~".join(name.split("=")).encode("iso2022_jp")
    read, charset, remarks = name_in(iso_2022, "~ISO IR87")
    assert read.split("~") == name.split("=")
    assert charset == "ASCII~ISO IR87"
    assert remarks == ()
    # JIS X 0212, half-width katakana in seven bits, Korean, and a set that ends with the segment.
    assert name_in("丂".encode("iso2022_jp_2"), "ASCII~ISO IR87~ISO IR159")[0] == "丂"
    assert name_in(b"\x1b(I\x54\x4f\x40\x5e\x1b(B", "ISO IR14~ISO IR87")[0] == "ﾔﾏﾀﾞ"
    assert name_in(b"Hong^\x1b$)C\xb1\xe8", "ASCII~KS X 1001")[0] == "Hong^김"
    left_on = rb"MSH|^~\&|R||||||ADT^A08|1|P|2.5||||||~ISO IR87" + b"\rNTE|1||\x1b$B;3ED\rPID|1||P\r"
    assert parse(left_on).get("NTE-3") == "山田"
    assert parse(left_on).get("PID-3") == "P"


def test_the_escapes_of_hl7_switch_sets_too():
    kanji = "山田".encode("iso2022_jp").removeprefix(b"\x1b$B").removesuffix(b"\x1b(B")
    read, _, remarks = name_in(rb"Yamada~\M2442" + b"\\" + kanji + rb"\C2842" + b"\\" + b"^X", "ASCII~ISO IR87")
    assert (read, remarks) == ("Yamada~山田^X", ())
    assert name_in(rb"\CFFFF" + b"\\", "ASCII")[0] == r"\CFFFF" + "\\"


def test_utf_8_under_a_wrong_declaration_is_found_out():
    for declared in ("8859/1", "ASCII", "", "wrong"):
        read, charset, remarks = name_in("Müller § 12".encode(), declared)
        assert (read, charset) == ("Müller § 12", "UNICODE UTF-8")
        assert "read as UNICODE UTF-8" in remarks[0]
        assert (declared if declared not in ("", "wrong") else {"": "none", "wrong": "unknown"}[declared]) in remarks[0]


def test_other_sets_than_declared_lose_nothing():
    read, charset, remarks = name_in("Müller".encode("latin-1"), "UNICODE UTF-8")
    assert (read, charset) == ("Müller", "UNICODE UTF-8")
    assert "declared UNICODE UTF-8" in remarks[0]
    read, charset, remarks = name_in("Müller “x”".encode("cp1252"), "8859/1")
    assert (read, charset) == ("Müller “x”", "WINDOWS-1252")
    assert remarks
    read, charset, remarks = name_in("Müller".encode("latin-1"), "")
    assert (read, charset) == ("Müller", "WINDOWS-1252")
    assert remarks
    assert name_in("Müller".encode("latin-1"), "", default="8859/1") == ("Müller", "8859/1", ())
    assert name_in("王".encode("gb18030"), "", default="GB18030")[0] == "王"
    assert name_in("山".encode(), "CNS 11643-1992")[0] == "山"
    # A remark quotes no declaration that it does not know: it may be anything.
    assert "wrong" not in name_in(b"\xe4", "wrong")[2][0]


def test_many_stray_bytes_cost_no_time_and_no_byte():
    raw = b"\xff" * 200_000
    assert decode(raw, ["UNICODE UTF-8"]).text == "ÿ" * 200_000


DECLARED = st.lists(st.sampled_from(["", "wrong", "UNICODE UTF-16", *charsets._CODECS]), max_size=3)


PIECES = st.one_of(st.binary(max_size=40), st.sampled_from([b"\x1b" + e for e in charsets._DESIGNATIONS]))
OCTETS = st.lists(PIECES, max_size=12).map(b"".join)


@given(OCTETS, DECLARED, st.sampled_from(["", "8859/1", "GB18030", "nonsense"]))
def test_decoding_never_fails(raw, declared, default):
    decoded = decode(raw, declared, default=default)
    decoded.text.encode()
    assert decoded.charset
    # ASCII characters come through whatever else is there, outside sets in which their bytes mean others.
    if not charsets.wide_codec(raw) and b"\x1b" not in raw and raw.isascii():
        assert decoded.text.encode() == raw


@given(st.binary(max_size=300), st.sampled_from(["8859/1", "8859/15", "ASCII", "UNICODE UTF-8", "", "wrong"]))
def test_no_byte_is_dropped(raw, declared):
    if charsets.wide_codec(raw) or b"\x1b" in raw or raw.startswith(b"\xef\xbb\xbf"):
        return
    text = decode(raw, [declared]).text
    assert text.encode() == raw or len(text) >= len(raw.decode("utf-8", "ignore"))
    assert "\ufffd" not in text or "\ufffd".encode() in raw


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))), st.sampled_from([*charsets._CODECS, "~ISO IR87", "?"]))
def test_what_is_encoded_says_truly_in_which_set(text, wanted):
    octets, said = encode(text, wanted)
    assert octets.decode("iso2022_jp_ext" if said.startswith("~") else charsets._CODECS[said or "ASCII"]) == text
