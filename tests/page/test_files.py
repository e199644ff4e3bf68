"""What the pages are made of: nothing from elsewhere, nothing inline, the decoder as it was published."""

import gzip
import hashlib
import re

import httpx
import pytest
from browser_support import STATIC
from http_support import HttpDoor

from radmesh.application_server.pages import files

SCRIPTS = sorted(path for path in STATIC.rglob("*.js") if "vendor" not in path.parts)
STYLES = sorted(STATIC.rglob("*.css"))
VENDOR = STATIC / "vendor" / "openjph"


def test_the_decoder_is_the_published_one_with_its_licences():
    digests = dict(
        re.findall(r"^\| (openjphjs\.\w+) \| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.MULTILINE)
    )
    assert set(digests) == {"openjphjs.js", "openjphjs.wasm"}
    for name, digest in digests.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
    assert "MIT License" in (VENDOR / "LICENSE").read_text()
    assert "BSD 2-Clause" in (VENDOR / "LICENSE.OpenJPH").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text_and_import_what_is_there(path):
    text = path.read_text()
    # What comes with an image is text. These turn text into markup, script or style.
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    for name in re.findall(
        r"""^(?:import|export) .*?from "([^"]+)";|^import "([^"]+)";|importScripts\("([^"]+)"\)""", text, re.MULTILINE
    ):
        assert (path.parent / next(filter(None, name))).is_file(), name


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.name)
def test_styles_name_no_other_host(path):
    text = path.read_text()
    assert "@import" not in text
    for name in re.findall(r"url\(\"?([^)\"]+)\"?\)", text):
        assert (path.parent / name).is_file(), name


def test_the_shell_has_nothing_inline():
    text = (STATIC / "index.html").read_text()
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", text)
    for name in re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        assert name.startswith("/static/@/"), name
        assert (STATIC / name.removeprefix("/static/@/")).is_file(), name


def test_both_dark_themes_are_the_same():
    """The system's and the chosen one are written twice, since CSS has no name for a block."""
    text = (STATIC / "css" / "base.css").read_text()
    blocks = re.findall(
        r":root(?::not\(\[data-theme=\"light\"\]\)|\[data-theme=\"dark\"\]) \{\n(.*?)\n\s*\}", text, re.DOTALL
    )
    assert len(blocks) == 2
    assert [line.strip() for line in blocks[0].splitlines()] == [line.strip() for line in blocks[1].splitlines()]


def test_another_file_is_another_digest(tmp_path):
    (tmp_path / "index.html").write_text('<script src="/static/@/a.js"></script>')
    (tmp_path / "a.js").write_text("1")
    before = files.read(tmp_path)
    assert f"/static/{before.digest}/a.js".encode() in before.by_path["index.html"].content
    (tmp_path / "a.js").write_text("2")
    assert files.read(tmp_path).digest != before.digest


@pytest.fixture(scope="module")
def client(door: HttpDoor):
    with httpx.Client(base_url=door.url) as client:
        yield client


def assets(client: httpx.Client) -> str:
    page = client.get("/login")
    assert page.status_code == 200
    found = re.search(r"/static/[0-9a-f]{16}/", page.text)
    assert found
    return found.group()


def test_the_policy_of_pages_and_scripts_is_strict(client):
    for path in ("/login", f"{assets(client)}js/app.js", f"{assets(client)}js/viewer/decode-worker.js"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert policy["style-src"] == policy["connect-src"] == policy["worker-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_files_are_kept_for_good_under_their_digest_alone(client):
    base = assets(client)
    right = client.get(f"{base}vendor/openjph/openjphjs.wasm")
    assert right.headers["content-type"] == "application/wasm"
    assert right.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert right.content == (VENDOR / "openjphjs.wasm").read_bytes()
    assert client.get("/static/0123456789abcdef/js/app.js").headers["cache-control"] == "no-store"
    assert client.get("/login").headers["cache-control"] == "no-cache"
    assert client.get(f"{base}js/nothing.js").status_code == 404
    assert client.get(f"{base}../../files.py").status_code == 404


def test_what_is_large_comes_compressed_to_who_takes_it(client):
    path = f"{assets(client)}vendor/openjph/openjphjs.js"
    with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == (VENDOR / "openjphjs.js").read_bytes()
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(raw) < 0.4 * len(plain.content)


@pytest.mark.parametrize("path", ["/", "/holds", "/status", "/studies/1.2.3"])
def test_who_is_not_signed_in_is_sent_to_sign_in(client, path):
    answer = client.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/login?to={path}"
