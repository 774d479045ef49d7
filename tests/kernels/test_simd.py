"""Each function of csrc/cpu/simd against a scalar definition, on every level that this machine has.

`make emulated` and `make aarch64` run the same checks on the levels that are not here.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SIMD = sorted((ROOT / "csrc" / "cpu" / "simd").glob("*-inl.h"))
CHECKS = sorted((ROOT / "tests" / "kernels" / "native").glob("check_simd*.cpp"))
FAMILIES = sorted(p for p in (ROOT / "csrc" / "cpu").rglob("*-inl.h") if p.parent.name != "simd")

AVX2 = {"avx2": "-mavx2", "fma": "-mfma", "f16c": "-mf16c"}
AVX512 = {**AVX2, **{f"avx512{part}": f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")}}
VNNI = {**AVX512, "avx512_vnni": "-mavx512vnni"}
# What Linux calls the parts of a level, and the compiler's flags for them. VBMI and AMX have
# no words of their own.
LEVELS = {
    "baseline": {},
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512vnni": VNNI,
    "avx512bf16": {**VNNI, "avx512_bf16": "-mavx512bf16"},
}
# `static` functions, which macros and attributes may precede; a definition's name is followed by its arguments.
DEFINITION = re.compile(r"^(?:SGL_INLINE|[^/\n]*\bstatic\b)[^=;\n(]*?(?<![\w(])(\w+)\(", re.M)


def words(path: Path) -> set[str]:
    text = re.sub(r"__attribute__\(\(.*?\)\)", "", path.read_text())
    return set(DEFINITION.findall(text))


def of_this_machine(level: str) -> bool:
    if not LEVELS[level]:
        return True
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    capabilities = Path("/proc/cpuinfo")
    if capabilities.exists():
        return set(LEVELS[level]) <= set(capabilities.read_text().split())
    return level == "avx2" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, and the checks are compiled")
@pytest.mark.parametrize("level", [level for level in LEVELS if of_this_machine(level)])
def test_functions_do_what_their_scalar_definitions_do(level, tmp_path):
    program = tmp_path / "check_simd"
    command = ["g++", "-std=c++20", "-O1", "-fno-math-errno", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
    command += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", *LEVELS[level].values()]
    command += ["-I", str(ROOT / "csrc" / "cpu"), *map(str, CHECKS), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0 and not built.stderr, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_function_is_left_out():
    checked = "".join(path.read_text() for path in CHECKS)
    for path in SIMD:
        found = words(path)
        assert found or path.name == "isa-inl.h", path
        missing = {word for word in found if not re.search(rf'"{word}"', checked)}
        assert not missing, f"{path.name}: no check_simd*.cpp names {sorted(missing)}"


def test_a_word_is_defined_once():
    seen: dict[str, str] = {}
    for path in SIMD:
        for word in words(path):
            assert seen.setdefault(word, path.name) == path.name, f"{word}: {seen[word]} and {path.name}"
    # A family's own function of the same name would hide the shared one from it.
    for path in FAMILIES:
        again = words(path) & set(seen)
        assert not again, f"{path.relative_to(ROOT)} defines again what {sorted(again)} of simd/ says"
