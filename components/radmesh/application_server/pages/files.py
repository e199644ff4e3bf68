"""Serves the files of static/, from memory.

Their addresses name a digest of all of them: browsers keep them for good, and never mix two releases of the pages.
"""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.responses import Response

from radmesh.application_server.http.app import PAGE_POLICY, Door, Request
from radmesh.application_server.http.routes import ANYBODY, SIGNED_IN, Route
from radmesh.runtime.errors import RadmeshError

STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
# Licences and notes lie beside what they are about, and are served as text.
_TEXT: Final = "text/plain; charset=utf-8"
_KEEP: Final = "public, max-age=31536000, immutable"
_SHELL: Final = "index.html"
_PLACE: Final = b"/static/@/"
_PATHS: Final = {
    "/login": "The page that signs in.",
    "/": "The page of the study list.",
    "/studies/{study}": "The page of a study.",
    "/holds": "The page of held studies.",
    "/status": "The page of the cluster's status.",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file: what it is, as it is, and compressed (empty: that saves nothing)."""

    media_type: str
    content: bytes
    compressed: bytes


@dataclass(frozen=True, slots=True)
class Files:
    """All files of the pages, by path below static/; `digest`: 16 hexadecimal digits of all of them."""

    by_path: dict[str, File]
    digest: str


def read(folder: Path = STATIC) -> Files:
    """Read and compress every file."""
    contents = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    whole = hashlib.sha256()
    for path, content in contents.items():
        whole.update(f"{path}\0{len(content)}\0".encode() + content)
    digest = whole.hexdigest()[:16]
    contents[_SHELL] = contents[_SHELL].replace(_PLACE, f"/static/{digest}/".encode())
    return Files({path: _file(path, content) for path, content in contents.items()}, digest)


def _file(path: str, content: bytes) -> File:
    compressed = gzip.compress(content, 9, mtime=0)
    return File(
        _TYPES.get(Path(path).suffix, _TEXT), content, compressed if len(compressed) < 0.9 * len(content) else b""
    )


def routes(_door: Door) -> Sequence[Route]:
    """Return the pages and what they are made of: the same for everybody, so that only their data needs a session."""
    files = read()

    async def page(request: Request) -> Response:
        return _answer(request, files.by_path[_SHELL], "no-cache")

    async def static(request: Request) -> Response:
        found = files.by_path.get(request.path_params["path"])
        if found is None:
            raise RadmeshError("PATH_UNKNOWN", "there is no such file of the pages")
        # Another digest is that of another release, behind the same address: it must not be kept as this one's.
        return _answer(request, found, _KEEP if request.path_params["digest"] == files.digest else "no-store")

    return (
        *(
            Route("GET", path, ANYBODY if path == "/login" else SIGNED_IN, page, doc, page=True)
            for path, doc in _PATHS.items()
        ),
        Route(
            "GET",
            "/static/{digest}/{path*}",
            ANYBODY,
            static,
            "Scripts, styles and the decoder of the pages.",
            page=True,
        ),
    )


def _answer(request: Request, file: File, cache: str) -> Response:
    headers = {"Cache-Control": cache, "Vary": "Accept-Encoding", "Content-Security-Policy": PAGE_POLICY}
    content = file.content
    if file.compressed and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        content = file.compressed
    return Response(content, headers=headers, media_type=file.media_type)
