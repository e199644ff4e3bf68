"""What TOML cannot say: generate the protos, and declare the Cython extensions."""

import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
PROTOS = ROOT / "protos"
API = ROOT / "components" / "radmesh" / "api"
NATIVE = ROOT / "native" / "radmesh_native"


def generate_protos() -> None:
    """Write radmesh.api from protos/, if any proto is newer than what was generated.

    Runs before ``setup()``: find_packages must already see the generated packages.
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a build requirement, absent at run time

    sources = sorted(PROTOS.rglob("*.proto"))
    stamp = API / ".generated"
    signature = "\n".join(f"{s.relative_to(PROTOS)} {s.stat().st_mtime_ns} {s.stat().st_size}" for s in sources)
    if stamp.exists() and stamp.read_text() == signature:
        return
    API.mkdir(parents=True, exist_ok=True)
    include = Path(protoc.__file__).parent / "_proto"
    beside = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    typing_plugin = str(beside) if beside.exists() else shutil.which("protoc-gen-mypy_grpc")
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy_grpc={typing_plugin}",
        f"-I{PROTOS}",
        f"-I{include}",
        *(f"--{plugin}_out={ROOT / 'components'}" for plugin in ("python", "pyi", "grpc_python", "mypy_grpc")),
        *map(str, sources),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("radmesh: the protos do not compile; the lines above name the file and the line")
    for folder in {API, *(p for p in API.rglob("*") if p.is_dir() and p.name != "__pycache__")}:
        (folder / "__init__.py").touch()
    stamp.write_text(signature)


def extensions() -> list[Extension]:
    """One extension module for every native/radmesh_native/_*.pyx."""
    from Cython.Build import cythonize  # noqa: PLC0415 - a build requirement, absent at run time

    headers = sorted(str(h.relative_to(ROOT)) for h in NATIVE.glob("*.h"))
    modules = []
    for source in sorted(NATIVE.glob("_*.pyx")):
        libraries = re.findall(r"^# libraries: (.+)$", source.read_text(), re.MULTILINE)
        modules.append(
            Extension(
                f"radmesh_native.{source.stem}",
                [str(source.relative_to(ROOT))],
                include_dirs=[str(NATIVE.relative_to(ROOT))],
                depends=headers,
                libraries=libraries[0].split() if libraries else [],
                # No -march=native: wheels run anywhere, faster paths are chosen at run time.
                extra_compile_args=["-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare"],
            )
        )
    if not modules:
        return []
    built: list[Extension] = cythonize(modules, language_level=3)
    return built


generate_protos()
setup(
    packages=[
        *(f"radmesh{'.' + p if p else ''}" for p in ["", *find_packages("components/radmesh")]),
        "radmesh_native",
        "radmesh_gateway_proxy",
        *(f"radmesh_gateway_proxy.{p}" for p in find_packages("gateway_proxy/radmesh_gateway_proxy")),
    ],
    ext_modules=extensions(),
)
