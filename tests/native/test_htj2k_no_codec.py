"""native/ is our own: it imports, includes and links no codec, and starts nothing that might be one."""

import ast
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native" / "radmesh_native"
# What native/ may name; the dynamic loader and the system's C library are all it may link.
IMPORTED = {"numpy", "radmesh_native", "typing_extensions"} | (
    set(sys.stdlib_module_names) - {"ctypes", "importlib", "subprocess"}
)
CIMPORTED = {"cpython", "cython", "libc", "radmesh_native"}
INCLUDED = re.compile(
    r"(std\w+|string|errno|time|poll|cpuid|sys/\w+|netinet/\w+|Python|[a-z]mmintrin|htj2k_\w+|crc32c)\.h"
)
LINKED = re.compile(r"(linux-vdso|linux-gate|ld-linux[\w-]*|libc|libm|libpthread|libgcc_s)\.so[.\d]*")

SOURCES = sorted(path for suffix in ("py", "pyi", "pyx", "pxd", "h") for path in NATIVE.glob(f"*.{suffix}"))
MODULES = sorted(NATIVE.glob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))


def named(path: Path) -> tuple[set[str], set[str], set[str]]:
    """Top level modules that a source imports, those it cimports, and the headers it includes."""
    text = path.read_text()
    if path.suffix in {".py", ".pyi"}:
        nodes = list(ast.walk(ast.parse(text)))
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
        return {module.split(".")[0] for module in modules}, set(), set()
    imports = set(re.findall(r"^\s*import (\w+)|^\s*from (\w+)[\w.]* import ", text, re.MULTILINE))
    cimports = set(re.findall(r"^\s*cimport (\w+)|^\s*from (\w+)[\w.]* cimport ", text, re.MULTILINE))
    includes = re.findall(r'cdef extern from [<"]*([\w./]+)|^\s*#\s*include [<"]([\w./]+)', text, re.MULTILINE)
    return ({a or b for a, b in imports}, {a or b for a, b in cimports}, {a or b for a, b in includes})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_name_no_codec(path: Path) -> None:
    imports, cimports, includes = named(path)
    assert imports <= IMPORTED
    assert cimports <= CIMPORTED
    assert [header for header in includes if not INCLUDED.fullmatch(header)] == []
    assert not re.search(r"\b(dlopen|dlsym|__import__|import_module|exec|popen|libraries:)\b", path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_modules_link_no_codec(path: Path) -> None:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    names = [Path(line.split()[0]).name for line in listed.splitlines() if line.strip() != "statically linked"]
    assert names
    assert [name for name in names if not LINKED.fullmatch(name)] == []


def test_there_is_something_to_look_at() -> None:
    assert {"_htj2k_decoder.pyx", "_htj2k_encoder.pyx", "htj2k.py", "htj2k_tables.h"} <= {path.name for path in SOURCES}
    # What was compiled of a source that has gone may still lie there.
    assert {path.name.split(".")[0] for path in MODULES} >= {path.stem for path in NATIVE.glob("_*.pyx")}
    assert named(NATIVE / "_htj2k_decoder.pyx")[0] == {"numpy"}
    assert named(NATIVE / "_htj2k_packets.pyx")[1] == {"libc", "radmesh_native"}
    assert "htj2k_tables.h" in named(NATIVE / "_htj2k_tables.pxd")[2]


def test_the_environment_names_the_instructions() -> None:
    """A path that there is not is no path; one that this processor has not becomes the best below it."""
    code = (
        "from radmesh_native import _htj2k_decoder as d, _htj2k_encoder as e\n"
        "print(d.use_path('portable'), e.use_path('portable'))"
    )
    for name, expected in (("portable", "portable portable\n"), ("avx512", "portable portable\n"), ("mmx", "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"RADMESH_NATIVE_SIMD": name, "PYTHONPATH": str(NATIVE.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == expected
        assert ("none of portable, sse41, avx2, avx512" in done.stderr) == (not expected)
