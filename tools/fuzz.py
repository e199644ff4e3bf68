#!/usr/bin/env python3
"""Fuzz the native code: libFuzzer, guided by coverage, under AddressSanitizer and UndefinedBehaviorSanitizer.

    make fuzz                                          # every target, RADMESH_FUZZ_SECONDS of CPU time in all (3600)
    python tools/fuzz.py --seconds 60 decode scan      # some of them
    python tools/fuzz.py --keep                        # what was found new goes to tests/native/corpus
    build/fuzz/decode build/fuzz/findings/decode-…     # a finding once more

The targets are those of tests/support/fuzz_targets.py, and tests/native/fuzz/block.c. native/ is compiled anew to
build/fuzz, with clang (Debian: clang, libclang-rt-14-dev; CLANG names another). A run that finds something ends with 1.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
NATIVE: Final = ROOT / "native" / "radmesh_native"
SOURCES: Final = ROOT / "tests" / "native" / "fuzz"
SUPPORT: Final = ROOT / "tests" / "support"
BUILD: Final = ROOT / "build" / "fuzz"
FINDINGS: Final = BUILD / "findings"

sys.path.insert(0, str(SUPPORT))
from fuzz_targets import CORPUS, INPUTS, corpus  # noqa: E402 - it is where tests have it

CLANG: Final = os.environ.get("CLANG", "clang")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# No stack depth: its counter is thread-local, which modules that are loaded late cannot have.
COVERAGE: Final = "-fsanitize-coverage=inline-8bit-counters,pc-table,trace-cmp,indirect-calls"
# What of Cython's lines a file or a peer can reach.
REACHED: Final = "src:*\nfun:*pyx_f_*\nfun:*pyx_p[fw]_*\nfun:*pyx_fuse_*\nfun:htj2k_*\nfun:crc32c_*\n"
OPTIMIZED: Final = ("-O2", "-g1", "-fno-omit-frame-pointer", "-fPIC", "-w")
# Beyond these an input is a finding: seconds, and MiB of one allocation and in all.
LIMITS: Final = ("-detect_leaks=0", "-timeout=20", "-malloc_limit_mb=1024", "-rss_limit_mb=3072")
STARTER: Final = """#!/bin/sh
# libFuzzer's own arguments: files of inputs, or a folder and -help=1.
export PYTHONMALLOC=malloc PYTHONPATH={path} RADMESH_NATIVE_SIMD=
# What counts edges comes before the sanitizer, which has the same names doing nothing.
export LD_PRELOAD={fuzzer}:{sanitizer}
export ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0:allocator_may_return_null=1
exec {python} -c '
import sys, fuzz_driver, fuzz_targets
fuzz_driver.run(sys.argv[1:], fuzz_targets.TARGETS["{name}"])' "$0" "$@"
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a target came to.

    Attributes:
        executions: inputs that were tried.
        cpu: seconds of user and system time.
        reached: edges that were reached, by all inputs of the corpus together.
        edges: that there are, in all of native/ that the target has loaded.
        findings: inputs that should not be.
    """

    executions: int
    cpu: float
    reached: int
    edges: int
    findings: list[Path]


def clang(*arguments: object) -> None:
    """Compile."""
    subprocess.run([CLANG, *OPTIMIZED, *map(str, arguments)], check=True)  # noqa: S603 - our own


def runtime(name: str) -> Path:
    """A library of clang's own, whose name has the processor in it or not."""
    base, dot, kind = name.partition(".")
    for file in (f"libclang_rt.{base}-{os.uname().machine}{dot}{kind}", f"libclang_rt.{name}"):
        asked = [CLANG, f"--print-file-name={file}"]
        said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own
        found = Path(said.strip())
        if found.is_absolute():
            return found
    sys.exit(f"fuzz: {CLANG} has no libclang_rt.{name}: install its compiler-rt")


def older(made: Path, sources: list[Path]) -> bool:
    """Whether something has to be made anew."""
    return not made.exists() or any(one.stat().st_mtime > made.stat().st_mtime for one in sources)


def build(threads: int) -> None:
    """Compile native/ and the driver, and write a starter for each target."""
    package = BUILD / "radmesh_native"
    for folder in (package, FINDINGS):
        folder.mkdir(parents=True, exist_ok=True)
    for source in NATIVE.glob("*.py"):
        shutil.copyfile(source, package / source.name)
    common = [*NATIVE.glob("*.h")]
    include = (f"-I{NATIVE}", f"-I{sysconfig.get_path('include')}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    functions = BUILD / "functions.txt"
    functions.write_text(REACHED)

    def module(source: Path) -> None:
        made = package / (source.stem + suffix)
        if older(made, [source, *common]):
            reached = (COVERAGE, f"-fsanitize-coverage-allowlist={functions}")
            clang(*SANITIZERS, "-shared-libasan", *reached, "-shared", *include, source, "-o", made)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(module, sorted(NATIVE.glob("_*.c"))))
    driver, fuzzer = BUILD / f"fuzz_driver{suffix}", BUILD / "libfuzzer.so"
    if older(driver, [SOURCES / "driver.c", *common]):
        clang("-shared", *include, SOURCES / "driver.c", "-o", driver)
    if older(fuzzer, common):
        whole = ("-Wl,--whole-archive", runtime("fuzzer_no_main.a"), "-Wl,--no-whole-archive")
        clang("-shared", "-o", fuzzer, *whole, "-lstdc++", "-lm", "-lpthread")
    if older(BUILD / "block", [SOURCES / "block.c", *common]):
        clang("-fsanitize=fuzzer", *SANITIZERS, *include, SOURCES / "block.c", "-o", BUILD / "block")
    for name in INPUTS.keys() - {"block"}:
        starter = BUILD / name
        starter.write_text(
            STARTER.format(
                name=name,
                path=shlex.quote(f"{BUILD}:{SUPPORT}"),
                fuzzer=shlex.quote(str(fuzzer)),
                sanitizer=shlex.quote(str(runtime("asan.so"))),
                python=shlex.quote(sys.executable),
            )
        )
        starter.chmod(0o755)


def words(name: str) -> list[str]:
    """Libfuzzer's argument for the words of a target."""
    if not INPUTS[name].words:
        return []
    file = BUILD / f"{name}.words"
    file.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in INPUTS[name].words))
    return [f"-dict={file}"]


def unpack(name: str) -> Path:
    """The folder of the inputs of a target: what is kept, and what earlier runs found."""
    folder = BUILD / f"{name}.corpus"
    folder.mkdir(exist_ok=True)
    for n, one in enumerate(corpus(name)):
        (folder / f"kept{n:05}").write_bytes(one)
    return folder


def cpu_of(child: int) -> float:
    """Seconds of user and system time of a process that runs."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(name: str, seconds: float) -> Outcome:
    """Fuzz a target for so much CPU time."""
    before = set(FINDINGS.glob(f"{name}-*"))
    log = BUILD / f"{name}.log"
    command = [str(BUILD / name), str(unpack(name)), f"-max_len={INPUTS[name].longest}", *LIMITS, *words(name)]
    command += [f"-artifact_prefix={FINDINGS}/{name}-", "-print_final_stats=1", "-use_value_profile=1"]
    cpu = 0.0
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=BUILD) as child:  # noqa: S603
        try:
            while child.poll() is None:
                cpu = cpu_of(child.pid)
                if cpu >= seconds:
                    # libFuzzer ends by itself, and says what it did.
                    child.send_signal(signal.SIGUSR1)
                    child.wait(60)
                time.sleep(0.2)
        finally:
            child.kill()
    said = log.read_text(errors="replace")
    reached = re.findall(r"cov: (\d+)", said)
    edges = re.search(r"\((\d+) inline 8-bit counters\)", said)
    executions = re.findall(r"stat::number_of_executed_units: +(\d+)|^#(\d+)\t", said, re.MULTILINE)
    findings = sorted(set(FINDINGS.glob(f"{name}-*")) - before)
    if child.returncode and not findings:
        sys.exit(f"fuzz: {name} could not be run: {log} says why")
    return Outcome(
        int("".join(executions[-1])) if executions else 0,
        cpu,
        int(reached[-1]) if reached else 0,
        int(edges[1]) if edges else 0,
        [one for one in findings if "-slow-unit-" not in one.name],
    )


def keep(name: str) -> None:
    """Write the fewest inputs that reach what all reach to tests/native/corpus."""
    fewest = BUILD / f"{name}.fewest"
    shutil.rmtree(fewest, ignore_errors=True)
    fewest.mkdir()
    merge = [str(BUILD / name), "-set_cover_merge=1", f"-max_len={INPUTS[name].longest}", *LIMITS]
    with (BUILD / f"{name}.log").open("ab") as out:
        merge += [str(fewest), str(BUILD / f"{name}.corpus")]
        subprocess.run(merge, check=True, stdout=out, stderr=out, cwd=BUILD)  # noqa: S603 - our own
    inputs = sorted({file.read_bytes() for file in fewest.iterdir()}, key=lambda one: (len(one), one))
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as kept:
        for n, one in enumerate(inputs):
            # The same inputs are the same file.
            kept.writestr(zipfile.ZipInfo(f"{n:04}"), one, zipfile.ZIP_DEFLATED)


def main() -> int:
    """Build, run the targets one after the other, and say what they came to."""
    parser = argparse.ArgumentParser(description="Fuzz the native code under sanitizers.")
    parser.add_argument("targets", nargs="*", choices=[*INPUTS, []], metavar="target", help=", ".join(INPUTS))
    parser.add_argument(
        "--seconds", type=float, default=float(os.environ.get("RADMESH_FUZZ_SECONDS", "3600")), help="CPU time of all"
    )
    parser.add_argument("--keep", action="store_true", help="keep the fewest inputs that reach all that was reached")
    asked = parser.parse_args()
    if shutil.which(CLANG) is None:
        sys.exit(f"fuzz: there is no {CLANG}: install clang, or name it by CLANG")
    build(threads=1)
    names = asked.targets or list(INPUTS)
    whole = sum(INPUTS[name].share for name in names)
    print(f"{'target':10} {'executions':>12} {'CPU s':>8} {'edges':>14} findings", flush=True)
    found = False
    for name in names:
        outcome = run(name, asked.seconds * INPUTS[name].share / whole)
        edges = f"{outcome.reached}/{outcome.edges}"
        print(f"{name:10} {outcome.executions:12} {outcome.cpu:8.0f} {edges:>14} {len(outcome.findings)}", flush=True)
        for one in outcome.findings:
            print(f"  {one}: {BUILD / name} {one}", flush=True)
        found = found or bool(outcome.findings)
        if asked.keep and not outcome.findings:
            keep(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
