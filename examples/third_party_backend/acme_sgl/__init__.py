"""The backend `acme`: attention by explicit softmax and an RMS norm, in plain torch, as an example to copy.

Importing this module costs nothing: what the implementation needs is imported in `_load_*`, when it is first
bound. What it cannot honour it rejects with a reason; nothing is ignored.
"""

from __future__ import annotations

from sgl_kernels.backend import FLOATS, AttentionFacts, Implementation, Reason, Rejected, Requires


def _load_attention(config):
    import torch

    def run(q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap):
        # attn_mask, is_causal, window and softcap cannot be set here: _rejects turned those calls away,
        # and causal_alignment says nothing without is_causal
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * factor
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.float()).to(q.dtype)

    return run


def _rejects(facts: AttentionFacts) -> Rejected | None:
    if facts.mask or facts.causal or facts.window is not None or facts.softcap:
        return Rejected(Reason.FEATURE, "masks, causal, windows and softcap are not supported")
    if facts.gqa:
        return Rejected(Reason.FEATURE, "query and key heads must be equal in number")
    return None


def _load_rms_norm(config):
    import torch

    def run(x, weight, eps, weight_offset):
        wide = x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (y if weight is None else y * (weight.float() + weight_offset)).to(x.dtype)

    return run


EVERYWHERE = Requires(dtypes=FLOATS)

IMPLEMENTATIONS = (
    Implementation(
        op="attention", backend="acme", rank=-1, load=_load_attention, rejects=_rejects, requires=EVERYWHERE
    ),
    Implementation(op="rms_norm", backend="acme", rank=-1, load=_load_rms_norm, requires=EVERYWHERE),
)
