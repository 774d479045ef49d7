"""zentorch, AMD's plug-in for EPYC: its attention and its RMS norm, called as torch ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.peers.peer import Broken, NotOffered, Peer, Variant, attempt, attention_of


class Zentorch:
    """The ops of torch.ops.zentorch; they run on torch's own threads."""

    def __init__(self) -> None:
        import zentorch

        self._version = str(zentorch.__version__).removeprefix("v")
        self._ops = torch.ops.zentorch

    def versions(self) -> dict[str, str]:
        """The plug-in's version."""
        return {"zentorch": self._version}

    def note(self) -> str:
        """Whether its attention is torch's own here: it is, to the bit, on a processor without AVX-512."""
        x = torch.randn(1, 2, 512, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        same = torch.equal(self._ops.zentorch_sdpa(x, x, x)[0], F.scaled_dot_product_attention(x, x, x))
        return "its attention answers with torch's own kernel on this processor, to the bit" if same else ""

    def variants(self, op: str, args: tuple[Any, ...]) -> list[Variant | Broken]:
        """Attention two ways, RMS norm one way."""
        if op == "attention":
            return self._attention(args)
        if op == "rms_norm":
            return [attempt("zentorch_rms_norm", lambda: self._rms_norm(args))]
        raise NotOffered(f"zentorch has no op of its own for {op}")

    def _attention(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        call, ops = attention_of(args), self._ops
        mask, out = call.additive(), torch.empty_like(call.q)
        last = [out]

        def returning() -> None:
            last[0] = ops.zentorch_sdpa(
                call.q, call.k, call.v, 0.0, call.causal, attn_mask=mask, scale=call.scale
            )[0]

        def into() -> None:
            ops.zentorch_sdpa_attn(call.q, *heads, out, call.scale, call.causal)

        found: list[Variant | Broken] = [Variant("zentorch_sdpa", returning, lambda: last[0].transpose(1, 2))]
        if mask is None:  # this one takes none
            heads = call.repeated() if call.group > 1 else (call.k, call.v)
            label = "zentorch_sdpa_attn" + (", K and V repeated beforehand" if call.group > 1 else "")
            found.append(Variant(label, into, lambda: out.transpose(1, 2)))
        return found

    def _rms_norm(self, args: tuple[Any, ...]) -> Variant:
        x, weight, eps, offset = args
        if weight is None or offset:
            raise NotOffered("zentorch_rms_norm needs a weight, and has no offset")
        rows = x.reshape(-1, x.shape[-1])  # of more dimensions it leaves rows unwritten
        last = [rows]

        def run() -> None:
            last[0] = self._ops.zentorch_rms_norm(rows, weight, eps)

        return Variant("zentorch_rms_norm", run, lambda: last[0].reshape(x.shape))


def start(threads: int) -> Peer:
    """`threads` is torch's affair here."""
    return Zentorch()
