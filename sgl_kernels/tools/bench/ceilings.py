"""What this machine can do at best, measured now: arithmetic and copy bandwidth, for the thread count in force."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

SIZES_MIB = (1, 8, 32, 128)
"""Bytes moved (read plus written) by the copies that are timed: inside L2, and ever further out."""


INSTRUCTIONS = ("float32", "bfloat16", "int8")
"""The order of torch.ops.sgl_kernels_cpu.peak_gflops; each on one core, so a rate is multiplied by the threads."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of one device at one thread count."""

    threads: int
    gflops: dict[str, float]  # by the arithmetic's dtype: float32, bfloat16, float16, int8
    source: dict[str, str]  # how each was measured
    copy_gb_s: dict[int, float] = field(default_factory=dict)  # by bytes moved

    def bandwidth(self, moved: int) -> float:
        """The copy rate at the working set nearest to `moved` bytes, in GB/s."""
        if not self.copy_gb_s:
            return math.nan
        nearest = min(self.copy_gb_s, key=lambda size: abs(math.log2(size / max(moved, 1))))
        return self.copy_gb_s[nearest]

    def arithmetic(self, dtype: torch.dtype) -> float:
        """GFLOP/s of the widest exact arithmetic for `dtype`: half types may also be computed in float32."""
        name = str(dtype).removeprefix("torch.")
        return max(self.gflops.get(name, 0.0), self.gflops.get("float32", 0.0))

    def to_dict(self) -> dict[str, Any]:
        """The ceilings as plain data."""
        return asdict(self)


def measure_ceilings(
    device: torch.device, budget_s: float = 6.0, clock: Callable[[], float] = time.perf_counter
) -> Ceilings:
    """Measure for torch's current number of threads. Takes about `budget_s` seconds."""
    dtypes = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    if (
        device.type != "cpu"
    ):  # on the CPU float16 is computed in float32, and torch's product of it is a plain loop
        dtypes.append(("float16", torch.float16))
    share = budget_s / (len(dtypes) + 2)
    gflops: dict[str, float] = {}
    source: dict[str, str] = {}
    for name, dtype in dtypes:
        gflops[name] = _product(device, dtype, share, clock)
        source[name] = "matrix product"
    int8 = _int8(device, share, clock)
    if int8:
        gflops["int8"], source["int8"] = int8, "matrix product"
    if device.type == "cpu":
        for name, rate in _from_extension().items():
            if rate > gflops.get(
                name, 0.0
            ):  # a product is a lower bound: the instruction alone is the ceiling
                gflops[name], source[name] = rate, "instruction"
    copies = {size << 20: _copy(device, size << 20, share / len(SIZES_MIB), clock) for size in SIZES_MIB}
    return Ceilings(torch.get_num_threads(), gflops, source, copies)


def _best(
    call: Callable[[], object], budget_s: float, device: torch.device, clock: Callable[[], float]
) -> float:
    """Seconds of the fastest of the calls that fit in the budget: a ceiling is what is possible, not usual."""

    def wait() -> None:
        if device.type != "cpu":
            torch.get_device_module(device.type).synchronize()

    call()
    wait()
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < budget_s:
        start = clock()
        call()
        wait()
        best = min(best, clock() - start)
    return best


def _product(device: torch.device, dtype: torch.dtype, budget_s: float, clock: Callable[[], float]) -> float:
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    # as F.linear's weight: the other way round torch's bf16 product without AVX-512 runs at 0.3 GFLOP/s, 7 s a call
    b = torch.randn(n, n, device=device).to(dtype).t()
    out = torch.empty(n, n, device=device, dtype=dtype)
    return 2 * n**3 / _best(lambda: torch.mm(a, b, out=out), budget_s, device, clock) / 1e9


def _int8(device: torch.device, budget_s: float, clock: Callable[[], float]) -> float:
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randint(-8, 8, (n, n), dtype=torch.int8, device=device)
    try:
        return 2 * n**3 / _best(lambda: torch._int_mm(a, a.t()), budget_s, device, clock) / 1e9
    except (RuntimeError, NotImplementedError):  # not offered on this device
        return 0.0


def _copy(device: torch.device, moved: int, budget_s: float, clock: Callable[[], float]) -> float:
    a = torch.ones(moved // 8, device=device)  # float32: half of `moved` is read, half written
    b = torch.empty_like(a)
    repeat = max(1, (32 << 20) // moved)

    def copies() -> None:
        for _ in range(repeat):
            b.copy_(a)

    return moved * repeat / _best(copies, budget_s, device, clock) / 1e9


def _from_extension() -> dict[str, float]:
    """GFLOP/s of single instructions by dtype, where the C++ extension can time them."""
    from sgl_kernels.kernels.cpu import loader

    if loader.load() is not None or not hasattr(torch.ops.sgl_kernels_cpu, "peak_gflops"):
        return {}
    rates = {name: torch.ops.sgl_kernels_cpu.peak_gflops(kind) for kind, name in enumerate(INSTRUCTIONS)}
    return {name: rate * torch.get_num_threads() for name, rate in rates.items() if rate > 0}
