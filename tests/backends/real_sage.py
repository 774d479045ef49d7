"""SageAttention 1.x itself, in Triton's interpreter, through our adapter. Run with python -O: its asserts want CUDA.

Started by test_real_vendors.py in a process of its own. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch

from sgl_kernels.core.registry import registry

CALLS = {
    "plain": (64, False, None), "causal": (48, True, None), "scaled": (64, False, 0.2), "not full": (48, False, None),
}  # fmt: skip


def main() -> int:
    op = registry.op("attention")
    declared = next(i for i in registry.implementations("attention") if i.backend == "sage_attn")
    run = declared.load(None)
    found = {}
    for name, (length, causal, scale) in CALLS.items():
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, length, 2, 64, dtype=torch.float16) for _ in range(3))
        before = k.clone()
        args = (q, k, v, None, causal, "bottom_right", scale, -1, -1, 0.0)
        if declared.rejects(op.facts(*args)) is not None:
            raise SystemExit(f"{name} is turned away")
        got, want = run(*args).float(), op.reference(*args).float()
        error = float((got - want).norm() / want.norm())
        found[name] = {"error": error, "k_kept": bool(torch.equal(k, before)), "shape": list(got.shape)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
