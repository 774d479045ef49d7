"""The C++ extension keeps to torch's stable ABI: that is what lets one build serve several torch releases."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sgl_kernels.kernels.cpu import loader

# The C shims of the stable ABI, the C and C++ runtimes, and what the linker itself adds.
STABLE = re.compile(r"aoti_torch_\w+|torch_\w+")
RUNTIME = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+|_ITM_\w+|__gmon_start__|__cxa_finalize")
STANDARD_LIBRARY = re.compile(r"_ZN?[KRO]*S[a-z]\w*")


def undefined_symbols(library: Path) -> list[str]:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed: the symbols of the extension cannot be listed")
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True
    )
    return [line.split()[-1] for line in listed.stdout.splitlines()]


def is_stable(symbol: str) -> bool:
    name = symbol.split("@")[0]
    return bool(RUNTIME.fullmatch(symbol) or STABLE.fullmatch(name) or STANDARD_LIBRARY.fullmatch(name))


def test_a_symbol_of_torch_s_own_c_plus_plus_is_seen() -> None:
    assert not is_stable("_ZN2at4_ops5empty4callEv")
    assert not is_stable("_ZN3c1010TensorImplC1Ev")
    assert is_stable("aoti_torch_get_sizes")


@pytest.mark.skipif(loader.library_path() is None, reason="the C++ extension is not built")
def test_the_extension_uses_no_symbol_outside_the_stable_abi() -> None:
    path = loader.library_path()
    assert path is not None
    symbols = undefined_symbols(path)
    assert any(s.startswith("aoti_torch_") for s in symbols)
    outside = [s for s in symbols if not is_stable(s)]
    assert not outside, f"{path.name} of torch {torch.__version__} needs {outside}"
