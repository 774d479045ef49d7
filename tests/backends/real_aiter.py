"""AITER's own Triton RMS norm, in Triton's interpreter, through our adapter.

Started by test_real_vendors.py in a process of its own with the folder that AITER's wheel was unpacked to. Only the
files of the kernel are imported: AITER's own start-up looks for ROCm and builds C++. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from sgl_kernels.core.registry import registry


class Mi300(DriverBase):
    """A driver that only says which GPU it stands for: AITER asks when it is imported."""

    def __init__(self) -> None:
        self.target = GPUTarget("hip", "gfx942", 64)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> object:
        raise RuntimeError("nothing is timed here")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def _package(name: str, path: Path) -> types.ModuleType:
    """A package with these files whose __init__ does not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module
    return module


def main(folder: Path) -> int:
    triton.runtime.driver.set_active(Mi300())
    _package("aiter", folder / "aiter")
    _package("aiter.ops", folder / "aiter" / "ops")
    from aiter.ops.triton import rmsnorm

    rmsnorm.get_num_sms = lambda: 304  # of an MI300X; asked of torch.cuda otherwise
    # the adapter calls aiter.ops.rmsnorm, whose kernel is C++; the signature and the mathematics are the same
    sys.modules["aiter.ops.rmsnorm"] = rmsnorm
    op = registry.op("rms_norm")
    run = next(i for i in registry.implementations("rms_norm") if i.backend == "aiter").load(None)
    found = {}
    for rows, width in ((5, 96), (3, 130)):
        torch.manual_seed(0)
        x = (3 * torch.randn(rows, width)).half()
        args = (x, torch.randn(width).half(), 1e-6, 0.0)
        got, want = run(*args).float(), op.reference(*args).float()
        found[f"{rows}x{width}"] = {
            "error": float((got - want).norm() / want.norm()),
            "shape": list(got.shape) == [rows, width],
        }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
