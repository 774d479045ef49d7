"""The op in csrc/skeleton, which is there to be copied, compiles with the flags and headers of those that are built."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "skeleton").glob("*.cpp"))
FLAGS = {"kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"]}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here; the skeleton is only compiled")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_it_compiles(source):
    if source.name in FLAGS and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("flags of x86-64")
    command = [
        "g++",
        "-std=c++20",
        "-fno-math-errno",
        "-fsyntax-only",
        "-Wall",
        "-Wno-psabi",
        "-Wno-attributes",
    ]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *FLAGS.get(source.name, [])]
    command += ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "cpu")]
    command += ["-isystem", str(Path(torch.__file__).parent / "include"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
