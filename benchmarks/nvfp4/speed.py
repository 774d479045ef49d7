"""NVFP4 linear layers and quantisation on this CPU against what torch offers, interleaved in one process.

    python -m benchmarks.nvfp4.speed [--rows 1,16,256] [--seconds 4]

One thread, process CPU time (steady on a machine that others use), medians of rounds in which every candidate runs
once; ratios are medians of per-round ratios. Small M rotates copies of the weight so that it comes from memory.
Writes benchmarks/results/<machine>/nvfp4_linear.json, which `make docs` tells in docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sgl_kernels
from sgl_kernels.ops.nvfp4.placing import for_device
from sgl_kernels.tools.bench.results import describe_machine, machine_slug
from sgl_kernels.tools.doctor.diagnosis import versions

ROOT = Path(__file__).resolve().parents[2]
COLD_BYTES = 64 << 20  # weight copies to rotate through at small M
Run = Callable[[], Any]


def rounds(candidates: dict[str, Run], seconds: float) -> dict[str, list[float]]:
    """CPU seconds of each candidate, round by round."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or (
        time.perf_counter() - begin < seconds and len(next(iter(times.values()))) < 101
    ):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def cycle(make: Callable[[], Any], size: int, m: int) -> Callable[[], Any]:
    """The next of several equal operands, so that a small product finds its weight in memory, not in cache."""
    copies = max(1, min(12, COLD_BYTES // size)) if m <= 16 else 1
    return itertools.cycle([make() for _ in range(copies)]).__next__


def dynamic_int8(w: Tensor, x: Tensor) -> Run | None:
    """torch's own dynamic int8 linear: one scale per output channel, one byte a weight."""
    try:
        from torch.ao.quantization import quantize_dynamic

        linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(w.float(), requires_grad=False)
        quantised = quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)
        wide = x.float()
        quantised(wide)
    except Exception:  # not built, or gone from this torch
        return None
    return lambda: quantised(wide)


def linear(m: int, n: int, k: int, seconds: float) -> dict[str, Any]:
    """One shape: every candidate's median, rate and ratios."""
    w, x = torch.randn(n, k) * 0.02, torch.randn(m, k).bfloat16()
    q = for_device(sgl_kernels.nvfp4_quantize(w))
    half, full = cycle(lambda: w.bfloat16(), 2 * n * k, m), cycle(lambda: w.clone(), 4 * n * k, m)
    four = cycle(lambda: q.map(torch.clone), q.nbytes, m)
    scale = x.float().abs().max() / 2688
    wide = x.float()
    candidates: dict[str, Run] = {
        "F.linear bf16": lambda: F.linear(x, half()),
        "F.linear fp32": lambda: F.linear(wide, full()),
        "W4A16": lambda: sgl_kernels.nvfp4_linear(x, four()),
        "W4A8": lambda: sgl_kernels.nvfp4_linear(x, four(), activation="int8"),
        "W4A4": lambda: sgl_kernels.nvfp4_linear(x, four(), activation="nvfp4", input_scale=scale),
        "W4A16, x fp32": lambda: sgl_kernels.nvfp4_linear(wide, four()),
    }
    int8 = dynamic_int8(w, x)
    if int8 is not None:
        candidates["dynamic int8 (x fp32)"] = int8
    times = rounds(candidates, seconds)
    row: dict[str, Any] = {"m": m, "n": n, "k": k, "rounds": len(times["W4A8"]), "candidates": {}}
    for name, values in times.items():
        median = statistics.median(values)
        row["candidates"][name] = {
            "us": round(median * 1e6, 1),
            "gops": round(2 * m * n * k / median / 1e9, 1),
            "vs_bf16": round(
                statistics.median(a / b for a, b in zip(times["F.linear bf16"], values, strict=True)), 2
            ),
            "vs_fp32": round(
                statistics.median(a / b for a, b in zip(times["F.linear fp32"], values, strict=True)), 2
            ),
        }
    return row


def quantisation(seconds: float) -> list[dict[str, Any]]:
    """GB/s of input of the quantiser, with the global scale given and found."""
    rows = []
    sgl_kernels.nvfp4_quantize(torch.zeros(16), backend="cpu")  # loads the extension, or says why not
    kernel = torch.ops.sgl_kernels_cpu.nvfp4_quantize.default
    for dtype, m in itertools.product((torch.bfloat16, torch.float16, torch.float32), (256, 1024)):
        x, scale = torch.randn(m, 3072).to(dtype), torch.tensor(1e-3)
        times = rounds({"given": partial(kernel, x, scale), "found": partial(kernel, x, None)}, seconds / 4)
        # by itself: its temporaries push x out of the caches, which halved the rate of the kernel that followed
        floor = partial(sgl_kernels.nvfp4_quantize, x, scale, backend="torch")
        times.update(rounds({"torch": floor}, seconds / 8))
        size = x.numel() * x.element_size()
        rates = {name: round(size / statistics.median(v) / 1e9, 2) for name, v in times.items()}
        best = round(size / min(times["given"]) / 1e9, 2)
        rows.append(
            {"dtype": str(dtype).removeprefix("torch."), "m": m, "k": 3072, "best_given": best, **rates}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", default="1,2,4,8,16,64,256,1024")
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    shapes = [(int(m), 3072, 3072) for m in options.rows.split(",")]
    shapes += [(1, 12288, 3072), (256, 3072, 12288)] if options.rows == parser.get_default("rows") else []
    result: dict[str, Any] = {
        "machine": describe_machine(torch.device("cpu")), "versions": versions(),
        "date": datetime.date.today().isoformat(), "threads": 1, "clock": "process CPU time", "linear": [],
        "quantise_gb_per_s": [],
    }  # fmt: skip
    for shape in shapes:
        row = linear(*shape, options.seconds)
        result["linear"].append(row)
        print(
            shape,
            {n: (c["us"], c["gops"], c["vs_bf16"], c["vs_fp32"]) for n, c in row["candidates"].items()},
            flush=True,
        )
    result["quantise_gb_per_s"] = quantisation(options.seconds)
    print(result["quantise_gb_per_s"])
    path = ROOT / "benchmarks" / "results" / machine_slug(result["machine"]) / "nvfp4_linear.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
