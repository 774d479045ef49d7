"""Build the host-memory device and give it a name. One name per process: torch allows no second."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("device.cpp")
FLAGS = ("-std=c++20", "-O0", "-g0", "-w", "-shared", "-fPIC")


def library() -> Path:
    """The compiled device, built once for each source and torch release; in build/simulated."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode() + "".join(FLAGS).encode())
    target = ROOT / "build" / "simulated" / f"device-{key.hexdigest()[:16]}.so"
    if not target.exists():
        compiler = shutil.which("g++")
        if compiler is None:
            raise FileNotFoundError("the simulated device needs g++")
        target.parent.mkdir(parents=True, exist_ok=True)
        include, lib = (Path(torch.__file__).parent / part for part in ("include", "lib"))
        partial = target.with_suffix(f".{os.getpid()}")  # renamed when whole: two processes may build at once
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        includes = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
        libraries = [f"-L{lib}", "-ltorch_cpu", "-lc10"]
        command = [compiler, *FLAGS, abi, *includes, str(SOURCE), *libraries, "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.replace(target)
    return target


def register(name: str, product: str, capability: tuple[int, int] | None = None) -> Any:
    """Load the device, call it `name`, and give torch the module it asks about devices of that name."""
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(name)
    ops = torch.ops.simulated
    module = types.ModuleType(f"torch.{name}")

    @contextlib.contextmanager
    def device(where: Any) -> Any:
        before = ops.current_device()
        ops.set_device(torch.device(where).index or 0 if not isinstance(where, int) else where)
        try:
            yield
        finally:
            ops.set_device(before)

    members = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 2,
        "current_device": lambda: ops.current_device(),
        "set_device": lambda index: ops.set_device(index),
        "device": device,
        "synchronize": lambda where=None: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda where=None: torch.get_rng_state(),
        "set_rng_state": lambda state, where=None: None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "get_device_properties": lambda index=0: types.SimpleNamespace(name=product),
        "get_device_capability": lambda index=0: capability,
    }
    for member, value in members.items():
        setattr(module, member, value)
    sys.modules[f"torch.{name}"] = module
    torch._register_device_module(name, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    return module
