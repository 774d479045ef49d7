"""Builds the optional C++ extensions: sgl_kernels._cpu on torch's stable ABI, sgl_kernels._key on Python's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc" / "cpu"
KEY_SOURCE = ROOT / "csrc" / "python" / "key.cpp"

# torch 2.10 is the oldest release whose stable ABI has everything the sources use.
OLDEST_TORCH = (2, 10)
FIND_TORCH = """
import importlib.metadata, importlib.util, os
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin:
    print(os.path.dirname(spec.origin))
    print(importlib.metadata.version("torch"))
"""
LOADER = ROOT / "sgl_kernels" / "kernels" / "cpu" / "loader.py"
LOAD = """
import runpy, sys
sys.path.append(sys.argv[1])
try:
    import torch
except Exception:
    sys.exit()  # a build needs torch's files only
sys.exit(runpy.run_path(sys.argv[2])["load"]())
"""
COMMON_FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wall",
    "-Wno-unknown-pragmas",
    # False alarms inside gcc's own AVX-512 headers.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
OPTIMISE = ["-O3"]
SANITIZE = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512VNNI = [*AVX512, "-mavx512vnni"]
AVX512VBMI = [*AVX512VNNI, "-mavx512vbmi"]
AVX512BF16 = [*AVX512VNNI, "-mavx512bf16"]
AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
# SGL_KERNELS_BUILD_EMULATED: the AVX-512 and AMX sources on functions over AVX2 (tests/kernels/native/emulated), for
# machines without those instructions. Slow, and part of no installation.
EMULATION = ROOT / "tests" / "kernels" / "native" / "emulated"
EMULATE = ["-O2", "-Wno-psabi", "-DSGL_KERNELS_EMULATED"]

# The end of a file's name says which instructions its object may contain; every other file is baseline.
ISA_FLAGS = {
    "x86_64": {
        "_avx2": AVX2,
        "_avx512": AVX512,
        "_avx512vnni": AVX512VNNI,
        "_avx512vbmi": AVX512VBMI,
        "_avx512bf16": AVX512BF16,
        "_amx": AMX,
    },
    "aarch64": {"_neon": []},
}
ISA_SUFFIX = re.compile(r"_(avx2|avx512|avx512vnni|avx512vbmi|avx512bf16|amx|neon)$")


COSTS = {
    "sgl_kernels._cpu": "The package works without it: torch serves every call on CPUs, at torch's speed.",
    "sgl_kernels._key": "The package works without it: each call costs about 1 us more.",
}


class BuildError(Exception):
    """The extension cannot be built here; the message says why."""


class NoSourcesError(SystemExit):
    """The source tree is incomplete. Never a reason to install without the extension: nothing would ever say so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"error: there are no C++ sources for {machine()} in {folder}, so the extension would be empty. This "
            "source tree is incomplete: take a whole checkout, or an sdist that `make sdist` made"
        )


def machine() -> str:
    """The architecture to build for, in one spelling."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def isa_flags(source: Path, arch: str) -> list[str] | None:
    """Flags for one source, or None where the source is for another architecture."""
    suffix = ISA_SUFFIX.search(source.stem)
    return [] if suffix is None else ISA_FLAGS.get(arch, {}).get(suffix.group(0))


def emulated(flags: list[str]) -> list[str]:
    """The flags with AVX-512 and AMX as macros only, and the emulation's <immintrin.h> first."""
    wide = [flag for flag in flags if flag.startswith(("-mavx512", "-mamx"))]
    macros = [f"-D__{flag[2:].upper().replace('-', '_')}__=1" for flag in wide]
    include = ["-I", str(EMULATION)] if wide else []
    return [flag for flag in flags if flag not in wide] + macros + include


def torch_root() -> Path:
    """Where torch is installed, without importing it (an import costs seconds).

    An isolated build hides the environment that it installs into; a Python started without that isolation sees it.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    for env in (None, environment):
        command = [sys.executable, "-c", FIND_TORCH]
        answer = subprocess.run(command, capture_output=True, text=True, env=env, cwd=os.sep).stdout.split(
            "\n"
        )
        if len(answer) > 1 and Path(answer[0], "include").is_dir():
            version = tuple(int(part) for part in re.findall(r"\d+", answer[1])[:2])
            if version < OLDEST_TORCH:
                raise BuildError(
                    f"torch is {answer[1]}, and the extension needs 2.10 or newer: upgrade torch"
                )
            return Path(answer[0])
    raise BuildError(
        f"torch is not installed for {sys.executable}: install torch first, then install this package again"
    )


def run(command: list[str]) -> None:
    """Runs one compiler or linker command; its output is the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"no C++ compiler: {command[0]!r} was not found (set CXX)") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr.strip():
        print(done.stderr, file=sys.stderr)


def is_current(target: Path, record: Path, fingerprint: str) -> bool:
    """Whether an object is newer than everything the compiler read for it, and made by the same command."""
    depfile = target.with_suffix(".d")
    if not (target.exists() and record.exists() and depfile.exists()) or record.read_text() != fingerprint:
        return False
    made = target.stat().st_mtime
    inputs = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return all(os.path.exists(name) and os.path.getmtime(name) < made for name in inputs)


def compile_one(source: Path, flags: list[str], objects: Path) -> Path:
    """Compiles one source unless its object is current."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    target = objects / f"{'_'.join(source.relative_to(ROOT).with_suffix('').parts)}.o"
    record = target.with_suffix(".command")
    # -MMD writes what was read (system headers and torch's excepted), so a change rebuilds only its users.
    depfile = target.with_suffix(".d")
    command = [*compiler, *flags, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
    fingerprint = hashlib.sha256(shlex.join(command).encode()).hexdigest()
    if not is_current(target, record, fingerprint):
        record.unlink(missing_ok=True)
        print("compiling", source.relative_to(ROOT), flush=True)
        run(command)
        record.write_text(fingerprint)
    return target


def build(library: Path, objects: Path, sanitize: bool, emulate: bool) -> None:
    """Compiles every source for this architecture, in parallel, and links them into `library`."""
    torch = torch_root()
    mode = [*(EMULATE if emulate else []), *(SANITIZE if sanitize else [] if emulate else OPTIMISE)]
    flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *COMMON_FLAGS, *mode]
    flags += [f"-ffile-prefix-map={ROOT}/=", "-I", str(SOURCES), "-isystem", str(torch / "include")]
    found = [(source, isa_flags(source, machine())) for source in sorted(SOURCES.rglob("*.cpp"))]
    if emulate:  # but not the ceilings: their instructions are written out, and an emulation has none
        found = [
            (s, extra and emulated(extra))
            for s, extra in found
            if not (s.parent.name == "peak" and "avx512" in s.stem)
        ]
    work = [(source, [*flags, *extra]) for source, extra in found if extra is not None]
    if not work:
        raise NoSourcesError(SOURCES)
    workers = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    objects.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(objects / "lock", "w") as lock, ThreadPoolExecutor(workers) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one checkout must not write the same objects
        made = list(pool.map(lambda item: compile_one(*item, objects), work))
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        link = [*compiler, "-shared", *(["-fsanitize=address,undefined"] if sanitize else ["-Wl,-s"])]
        link += [*map(str, made), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        # Linked beside its place and moved there: a process that has the old file mapped keeps it.
        fresh = library.with_suffix(".new")
        run([*link, *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(fresh)])
        if not sanitize:  # the sanitizer's runtime would have to be loaded before Python
            verify(fresh, torch)
        os.replace(fresh, library)


def verify(library: Path, torch: Path) -> None:
    """Loads what was linked, in a process of its own, by the very code that will load it for users."""
    command = [sys.executable, "-c", LOAD, str(torch.parent), str(LOADER)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "SGL_KERNELS_CPU_LIBRARY": str(library)}
    )
    if done.returncode:
        raise BuildError(f"the library was built and cannot be used: {(done.stderr or done.stdout).strip()}")


def build_key(library: Path, objects: Path) -> None:
    """The Python module that makes keys of calls: one source, no torch library, Python's limited API."""
    if not KEY_SOURCE.is_file():
        raise NoSourcesError(KEY_SOURCE.parent)
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").is_file():
        raise BuildError(f"Python.h is not in {include}: install Python's headers (python3-dev)")
    flags = [
        *shlex.split(os.environ.get("CXXFLAGS", "")),
        "-std=c++20",
        "-fPIC",
        "-fvisibility=hidden",
        "-O3",
    ]
    flags += ["-Wall", f"-ffile-prefix-map={ROOT}/=", "-isystem", include]
    flags += ["-isystem", str(torch_root() / "include")]
    objects.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(objects / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = compile_one(KEY_SOURCE, flags, objects)
        fresh = library.with_suffix(".new")
        # Python's own symbols come from the process that imports the module.
        dangling = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        run([*shlex.split(os.environ.get("CXX", "g++")), "-shared", *dangling, str(made), "-o", str(fresh)])
        os.replace(fresh, library)


class OptionalBuild(build_ext):
    """A failed build leaves an installable package, unless SGL_KERNELS_REQUIRE_EXTENSION=1 says otherwise.

    Installers show nothing of a build that succeeds, so why there is no extension is installed in its place, for
    `sgl-kernels doctor` and the warning of the first call.
    """

    def run(self) -> None:
        super().run()
        for ext in self.extensions if self.inplace else ():
            package = Path(self.get_finalized_command("build_py").get_package_dir("sgl_kernels"))
            built = [self.built(ext), self.note(ext)]
            for path in (p for p in built if not p.exists() and not self.kind()):
                (package / path.name).unlink(missing_ok=True)  # of an older build
            if self.note(ext).exists():
                self.copy_file(str(self.note(ext)), str(package / self.note(ext).name))

    def built(self, ext: Extension) -> Path:
        """Where the library of `ext` goes."""
        return Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))

    def note(self, ext: Extension) -> Path:
        """Where it says why there is no library."""
        return self.built(ext).with_name(f"{ext.name.rpartition('.')[2]}.not-built.txt")

    @staticmethod
    def kind() -> str:
        """'sanitize', 'emulated' or both for a build that no installation holds; '' for the ordinary one."""
        wanted = (
            name
            for name in ("emulated", "sanitize")
            if os.environ.get(f"SGL_KERNELS_BUILD_{name.upper()}") == "1"
        )
        return "_".join(wanted)

    def build_extension(self, ext: Extension) -> None:
        library, note, kind = self.built(ext), self.note(ext), self.kind()
        if kind:  # for SGL_KERNELS_CPU_LIBRARY
            library = ROOT / "build" / kind / f"_cpu_{kind}.so"
        folder = Path(self.build_temp).resolve()
        note.unlink(missing_ok=True)
        try:
            if ext.name != "sgl_kernels._key":
                build(library, folder / (kind or "cpu"), "sanitize" in kind, "emulated" in kind)
            elif not kind:
                build_key(library, folder / "key")
        except (BuildError, OSError) as error:
            library.unlink(missing_ok=True)  # or an older build would be installed as if it were this one
            if os.environ.get("SGL_KERNELS_REQUIRE_EXTENSION") == "1":
                raise SystemExit(f"error: {ext.name} was not built: {error}") from error
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{error}\n", encoding="utf-8")
            print(f"warning: {ext.name} was not built: {error}\n{COSTS[ext.name]}", file=sys.stderr)


setup(
    ext_modules=[Extension(name, sources=[], py_limited_api=True, optional=True) for name in COSTS],
    cmdclass={"build_ext": OptionalBuild},
    # The library does not touch Python's ABI at all; abi3 is the tag that says so to installers.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
