"""Random calls, the float64 oracle and the bound shared by the tests and the fuzzer of the C++ attention."""

from __future__ import annotations

import dataclasses
import random
import sys
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.kernels.cpu.loader import load
from sgl_kernels.ops.attention import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MISSING = load()  # None, or why the extension is not there
ALIGNMENTS = {0: (False, "bottom_right"), 1: (True, "bottom_right"), 2: (True, "top_left")}
INF = float("inf")
# One rounding of the result, and of the softmax weights where they are bf16.
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@dataclasses.dataclass
class Call:
    """One call of torch.ops.sgl_kernels_cpu.attention, in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    causal: int = 0
    scale: float | None = None
    left: int = -1
    right: int = -1
    softcap: float = 0.0

    @property
    def factor(self) -> float:
        """The scale that is applied."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    def run(self) -> tuple[Tensor, Tensor]:
        """(out, lse) of the kernel."""
        return torch.ops.sgl_kernels_cpu.attention(
            self.q, self.k, self.v, self.mask, self.causal, self.factor, self.left, self.right, self.softcap, True
        )  # fmt: skip

    def oracle(self) -> tuple[Tensor, Tensor]:
        """(out, lse) in float64."""
        mask = self.mask
        if mask is not None and mask.dtype is not torch.bool:
            mask = mask.double()
        causal, alignment = ALIGNMENTS[self.causal]
        return reference.attention_lse(
            self.q.double(), self.k.double(), self.v.double(), mask, causal, alignment, self.factor, self.left,
            self.right, self.softcap,
        )  # fmt: skip

    def __str__(self) -> str:
        mask = None if self.mask is None else (self.mask.dtype, tuple(self.mask.shape), self.mask.stride())
        sizes = [(tuple(t.shape), t.stride()) for t in (self.q, self.k, self.v)]
        return (
            f"{self.q.dtype} q, k, v {sizes} mask {mask} causal {self.causal} scale {self.scale} "
            f"window ({self.left}, {self.right}) softcap {self.softcap}"
        )


def poison(call: Call) -> None:
    """Leave NaN in freed memory of the result's size, so that elements nobody writes show."""
    shape = (*call.q.shape[:-1], call.v.shape[-1])
    for _ in range(2):
        torch.full(shape, float("nan"), dtype=call.q.dtype)


def check(call: Call) -> None:
    """Run the call and hold it to the error that float32 accumulation explains."""
    poison(call)
    out, lse = call.run()
    assert out.is_contiguous(), str(call)
    judge(call, out, lse)


def judge(call: Call, out: Tensor, lse: Tensor | None) -> None:
    """Hold a result of the call to the oracle; lse None: there is none."""
    exact, exact_lse = call.oracle()
    assert out.dtype is call.q.dtype and out.shape == exact.shape, str(call)
    if lse is not None:
        assert lse.dtype is torch.float32 and lse.shape == exact_lse.shape, str(call)
        assert torch.equal(torch.isneginf(lse), torch.isneginf(exact_lse)), f"rows without keys: {call}"
    if out.numel() == 0 or call.k.shape[1] == 0:
        assert not out.any(), str(call)
        return
    # A score is a sum of D products, each rounded: its error is some epsilons of the sum of their magnitudes, and
    # an error e of a score changes weights by the factor 1 + e.
    group = call.q.shape[2] // call.k.shape[2]
    magnitude = call.q.double().abs().amax(1, keepdim=True) * call.k.double().abs().amax(1).repeat_interleave(
        group, 1
    ).unsqueeze(1)
    scores = magnitude.sum(-1).max().item() * abs(call.factor)
    if call.mask is not None and call.mask.dtype is not torch.bool:
        scores += call.mask.double().nan_to_num(neginf=0.0).abs().max().item() if call.mask.numel() else 0
    doubt = 2.0**-21 * (1 + scores)
    limit = (ROUNDING[call.q.dtype] + doubt) * call.v.double().abs().max().item() + 1e-7
    worst = (out.double() - exact).abs().max().item()
    assert worst <= limit, f"off by {worst:.2e}, allowed {limit:.2e}: {call}"
    finite = torch.isfinite(exact_lse)
    if lse is not None and finite.any():
        off = (lse.double() - exact_lse)[finite].abs().max().item()
        allowed = 2 * doubt + 4e-7 * exact_lse[finite].abs().max().item() + 1e-6
        assert off <= allowed, f"lse off by {off:.2e}, allowed {allowed:.2e}: {call}"


def tensor(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal values in (B, S, H, D), in one of the memory layouts that callers have."""
    b, s, h, d = shape
    layout = rng.choice(("bshd", "bshd", "bhsd", "padded", "sliced", "expanded", "channels", "reversed"))
    if layout == "bhsd":
        return torch.randn(b, h, s, d).to(dtype).transpose(1, 2)
    if layout == "padded":  # an odd gap: rows of 16-bit elements that start at odd multiples of two bytes
        return torch.randn(b, s, h, d + 3).to(dtype)[..., 1 : d + 1]
    if layout == "sliced":
        return torch.randn(b, s + 2, h + 1, d).to(dtype)[:, 1 : s + 1, 1:]
    if layout == "expanded":
        return torch.randn(1, s, 1, d).to(dtype).expand(shape)
    if layout == "channels":  # last dim not contiguous
        return torch.randn(b, s, d, h).to(dtype).transpose(2, 3)
    if layout == "reversed":
        return torch.randn(s, h, b, d).to(dtype).permute(2, 0, 1, 3)
    return torch.randn(shape).to(dtype)


def random_mask(rng: random.Random, full: tuple[int, ...]) -> Tensor | None:
    """A mask that broadcasts to `full`, or None."""
    kind = rng.choice(("none", "none", "bool", "float", "padding", "transposed"))
    if kind == "none":
        return None
    shape = [n if rng.random() < 0.6 else 1 for n in full][rng.choice((0, 0, 0, 1, 2)) :]
    if kind == "padding":
        return torch.rand(full[0], 1, 1, full[3]) > 0.4
    if kind == "transposed":
        return (torch.rand(full[3], full[2]) > 0.3).t()
    hidden = torch.rand(shape) < rng.choice((0.1, 0.5, 0.95, 1.0))
    if kind == "bool":
        return ~hidden
    bias = torch.randn(shape).to(rng.choice(DTYPES))
    return bias.masked_fill(hidden, -INF) if rng.random() < 0.5 else bias


def random_call(rng: random.Random) -> Call:
    """A call over shapes, strides, masks, windows, softcap, scales and dtypes."""
    torch.manual_seed(rng.randrange(2**31))
    dtype = rng.choice(DTYPES)
    b, hk, group = rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 4, 5))
    sq = rng.choice((0, 1, 1, 2, 3, 5, 8, 9, 16, 17, 31, 33, 63, 64, 65, 130, 257))
    sk = rng.choice((0, 1, 2, 5, 6, 7, 23, 24, 25, 64, 100, 191, 192, 193, 255, 257, 400, 900))
    d = rng.choice((1, 3, 8, 15, 16, 17, 32, 40, 64, 72, 80, 96, 127, 128, 160, 256))
    dv = d if rng.random() < 0.7 else rng.choice((1, 5, 16, 24, 33, 64, 72, 128))
    q = tensor(rng, (b, sq, hk * group, d), dtype)
    if rng.random() < 0.2:  # peaked softmax, and references that must move
        q = q * rng.choice((5, 30))
    k, v = tensor(rng, (b, sk, hk, d), dtype), tensor(rng, (b, sk, hk, dv), dtype)
    return Call(
        q, k, v, random_mask(rng, (b, hk * group, sq, sk)),
        causal=rng.choice((0, 0, 1, 2)),
        scale=rng.choice((None, None, None, 0.0, -0.3, 1.0)),
        left=rng.choice((-1, -1, 0, 5, 40, 200)),
        right=rng.choice((-1, -1, 0, 3, 100)),
        softcap=rng.choice((0.0, 0.0, 0.0, 5.0, 30.0)),
    )  # fmt: skip


def main(arguments: list[str]) -> Any:
    """python -m tests.kernels.cpu_attention COUNT SEED: that many random calls; prints the instruction set."""
    count, seed = int(arguments[0]), int(arguments[1])
    assert MISSING is None, MISSING
    torch.set_num_threads(2)
    for i in range(count):
        check(random_call(random.Random(seed * 1_000_003 + i)))
    print(torch.ops.sgl_kernels_cpu.isa_level(), count)


if __name__ == "__main__":
    main(sys.argv[1:])
